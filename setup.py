"""Everything comes from settings.ini; this file only translates it for setuptools."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
assert settings["license"] == "apache2", "write the SPDX name of the new license below"

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    keywords=settings["keywords"].split(),
    classifiers=["Intended Audience :: Education", "Programming Language :: Python :: 3"],
    packages=find_packages(include=[f"{settings['lib_name']}*"]),
    package_dir={"": "."},  # an editable install then is a plain path, which editors and type checkers follow
    package_data={settings["lib_name"]: ["py.typed", "*.pyi", "film_reviews.txt", "templates/*"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={
        name: settings[f"{name}_requirements"].split() for name in ("dev", "notebooks", "tracking", "bench")
    },
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
