"""Promises about the source as a whole."""
import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytorch_course

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(path for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
LESSONS = [path for path in NOTEBOOKS if path.name != "index.ipynb"]
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
USER, NAME, BRANCH = (SETTINGS["DEFAULT"][key] for key in ("user", "repo", "branch"))
COLAB = f"https://colab.research.google.com/github/{USER}/{NAME}/blob/{BRANCH}/nbs"


def cells_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def text(path):
    return "\n".join("".join(cell["source"]) for cell in cells_of(path))


def nothing(faults):
    "All faults at once, as the message of a single failure."
    faults = list(faults)
    assert not faults, "\n".join(map(str, faults))


def test_colab_badges_point_here():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in LESSONS:
        badge = f"{COLAB}/{path.relative_to(NBS).as_posix()}"
        assert badge in text(path), f"{path.name}: the badge must lead to {badge}"
        assert f"({badge})" in readme, f"{path.name} is missing in the tables of nbs/index.ipynb"
        assert text(path).count("https://colab.research.google.com/github/") == 1, path.name


def test_hidden_cells_are_alike():
    "One that installs the course on Colab, and one that gives a notebook under `nbdev_test` a single thread."
    for word in ('if "COLAB_RELEASE_TAG" in', '"IN_TEST" in'):
        cells = [(path, "".join(cell["source"])) for path in LESSONS for cell in cells_of(path)]
        cells = [(path, source) for path, source in cells if word in source]
        assert [path for path, _ in cells] == LESSONS, word
        (source,) = {source for _, source in cells}
        assert source.startswith("#| hide") and (f"{USER}/{NAME}" in source or "COLAB" not in source)


def test_lessons_have_their_closing_parts():
    closing = {path: ["## Summary", "## Exercises", "## Next lesson"] for path in LESSONS}
    closing[NBS / "06_going_modular.ipynb"].pop()  # the last of the main lessons
    nothing(f"{path.name}: no {part}" for path in LESSONS for part in closing[path] if part not in text(path))


def test_links_between_lessons_lead_somewhere():
    links = [(path, link) for path in NOTEBOOKS for link in re.findall(r"\]\(([\w./]+\.ipynb)", text(path))]
    nothing(f"{path.name}: {link}" for path, link in links if not (path.parent / link).is_file())


def test_sources_are_lists_of_lines():
    cells = [(path, cell) for path in NOTEBOOKS for cell in cells_of(path)]
    nothing(f"{path.name} #{cell['id']}" for path, cell in cells if not isinstance(cell["source"], list))


def test_package_avoids():
    forbidden = ("weights_only=False", "pickle.load", "extractall", "load_state_dict_from_url", "import *")
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "pytorch_course").glob("*.py")}
    nothing(f"{name}: {word}" for name, source in sources.items() for word in forbidden if word in source)


def test_no_paths_of_a_machine_in_outputs():
    places = ("/home/", "/root/", "/Users/", "site-packages", str(ROOT))
    sources = {path.name: path.read_text(encoding="utf-8") for path in NOTEBOOKS}
    nothing(f"{name} shows {place}" for name, source in sources.items() for place in places if place in source)


def test_importing_the_package_is_light():
    code = "import sys, pytorch_course; print([name for name in ('torch', 'numpy', 'inspect') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def public_modules():
    return [path.stem for path in (ROOT / "pytorch_course").glob("[a-z]*.py")]


def test_package_offers_its_names():
    "At run time and for editors the same names, each from the module that defines it."
    stub = ast.parse((ROOT / "pytorch_course" / "__init__.pyi").read_text(encoding="utf-8"))
    lines = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert {name.asname for line in lines if line.module is None for name in line.names} == set(public_modules())
    assert {name.asname: line.module for line in lines if line.module for name in line.names} == pytorch_course._HOME
    for name, module in pytorch_course._HOME.items():
        found = getattr(pytorch_course, name)
        assert found is getattr(importlib.import_module(f"pytorch_course.{module}"), name)
        assert found.__module__ == f"pytorch_course.{module}" and name in dir(pytorch_course)


def test_map_of_the_package_names_every_module():
    modules = public_modules()
    nothing(name for name in modules if not re.search(rf"\b{name}\b", pytorch_course.__doc__))
    for name in modules:
        assert getattr(pytorch_course, name).__name__ == f"pytorch_course.{name}"


def test_the_address_is_set_by_one_command(tmp_path):
    files = ["settings.ini", "README.md", "CONTRIBUTING.md", "nbs/00_tensors.ipynb", ".ci/set_address.py"]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "--all"], cwd=tmp_path, check=True)
    command = [sys.executable, ".ci/set_address.py"]
    for user, repository in (("ada-lovelace", "notes"), ("Grace", "pytorch_course")):
        subprocess.run([*command, user, repository], cwd=tmp_path, check=True, capture_output=True)
        for name in files[1:4]:
            written = (tmp_path / name).read_text(encoding="utf-8")
            assert f"{user}/{repository}" in written and f"{USER}/{NAME}" not in written, name
        config = ConfigParser(delimiters=["="])
        config.read(tmp_path / "settings.ini", encoding="utf-8")
        assert config["DEFAULT"]["git_url"] == f"https://github.com/{user}/{repository}"
    refused = subprocess.run([*command, "your_name"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode and "GitHub allows no account" in refused.stderr
