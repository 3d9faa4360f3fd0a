"""Promises about the source as a whole."""
import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.name != "index.ipynb"]
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
REPOSITORY = f"{SETTINGS['DEFAULT']['user']}/{SETTINGS['DEFAULT']['repo']}/blob/{SETTINGS['DEFAULT']['branch']}"


def text(path):
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_colab_badge_points_here(path):
    badge = f"https://colab.research.google.com/github/{REPOSITORY}/nbs/{path.name}"
    assert badge in text(path), f"the badge must lead to {badge}"
    assert badge in (ROOT / "README.md").read_text(encoding="utf-8"), (
        f"{path.name} is missing in the table of nbs/index.ipynb"
    )


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_has_its_closing_parts(path):
    for heading in ("## Summary", "## Exercises"):
        assert heading in text(path), heading


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_between_lessons_lead_somewhere(path):
    for name in re.findall(r"\]\((\w+\.ipynb)", text(path)):
        assert (ROOT / "nbs" / name).is_file(), name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_source_is_a_list_of_lines(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert isinstance(cell["source"], list)


@pytest.mark.parametrize("forbidden", ["weights_only=False", "pickle.load", "extractall", "load_state_dict_from_url", "import *"])
def test_package_avoids(forbidden):
    for path in (ROOT / "pytorch_course").glob("*.py"):
        assert forbidden not in path.read_text(encoding="utf-8"), path.name


def test_no_paths_of_a_machine_in_outputs():
    for path in NOTEBOOKS:
        for place in ("/home/", "/root/", "/Users/", "site-packages", str(ROOT)):
            assert place not in path.read_text(encoding="utf-8"), f"{path.name} shows {place}"
