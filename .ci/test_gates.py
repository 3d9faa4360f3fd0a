"""What must hold for the repository as a whole; run in a clean clone by `.ci/run`."""
import ast
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest
import style
from readme import readme
from style import NBS, ROOT, is_exported, is_main

NOTEBOOKS = style.notebooks(with_index=False)
LESSONS = [path for path in NOTEBOOKS if is_main(path) and re.match(r"0\d_", path.name)]  # without the prologue


def run(*command, **kwargs):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", ["nbdev_export", "nbdev_clean"])
def test_leaves_no_difference(command):
    run(command, cwd=ROOT)
    assert run("git", "status", "--porcelain", cwd=ROOT) == "", (
        f"{command} changed something, or a test left files behind"
    )


def test_readme_is_what_index_makes():
    text, pictures = readme()
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "run: python .ci/readme.py"
    for name, content in pictures.items():
        assert (ROOT / name).read_bytes() == content, "run: python .ci/readme.py"


@pytest.mark.parametrize("faults", [style.notebook_faults, style.file_faults, style.import_faults])
def test_house_style(faults):
    found = list(faults())
    assert not found, "\n".join(found)


def test_ruff_and_pyright_find_nothing():
    run("ruff", "check", ".", cwd=ROOT)
    run("pyright", "--pythonpath", sys.executable, cwd=ROOT)


def test_editable_install_is_a_plain_path():
    "Editors and type checkers follow a path; an import hook, which setuptools writes otherwise, they do not run."
    for site in map(Path, sys.path):
        for hook in site.glob("__editable__*pytorch_course*.pth") if site.is_dir() else ():
            assert Path(hook.read_text(encoding="utf-8").strip()).is_dir(), f"{hook} is no path: pip install -e . again"


USER_SCRIPT = """\
from pathlib import Path

import torch
from torch import nn

from pytorch_course import Callback, ImageTransform, Trainer, build_model, create_cached_dataloaders, find_splits, fit
from pytorch_course.callbacks import EarlyStopping
from pytorch_course.get_data import get_data
from pytorch_course.model import LinearRegressionModel, TinyVGG
from pytorch_course.performance import ChannelsLast
from pytorch_course.save_load import ModelInfo, load_model, save_model


class Count(Callback):
    batches = 0

    def after_batch(self, trainer: Trainer) -> None:
        super().after_batch(trainer)
        self.batches += 1


class Twice(Trainer):
    def step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return super().step(batch)


def run(folder: Path) -> float:
    transform = ImageTransform(image_size=28, channels=1)
    train_dir, test_dir = find_splits(get_data("digits", folder))
    train_dataloader, test_dataloader, names = create_cached_dataloaders(train_dir, test_dir, transform, batch_size=32)
    model = build_model("tinyvgg", input_shape=1, hidden_units=16, output_shape=len(names), image_size=28)
    trainer = fit(model, train_dataloader, test_dataloader, callbacks=[Count(), EarlyStopping(), ChannelsLast()])
    save_model(trainer.model, folder, "model.pt", ModelInfo("tinyvgg", {"input_shape": 1}, names, transform))
    network, info = load_model(folder / "model.pt", "cpu")
    reveal_type(trainer)
    reveal_type(trainer.history)
    reveal_type(names)
    reveal_type(train_dataloader)
    reveal_type(TinyVGG(1, 10, len(names)))
    reveal_type(Twice(LinearRegressionModel(), nn.L1Loss()).evaluate(test_dataloader))
    reveal_type(info)
    return float(trainer.history[-1]["valid_acc"])
"""
TYPES = {  # of what it reveals
    "trainer": "Trainer", "trainer.history": "list[dict[", "names": "list[str]", "train_dataloader": "DataLoader[",
    "TinyVGG(1, 10, len(names))": "TinyVGG", "evaluate(test_dataloader)": "dict[str, float]", "info": "ModelInfo",
}


@pytest.mark.parametrize("checker", ["mypy --strict --python-executable", "pyright --pythonpath"])
def test_user_script_is_typed(tmp_path, checker):
    "Outside of the repository, by what is installed: every import is found, and nothing of ours is untyped."
    (tmp_path / "script.py").write_text(USER_SCRIPT, encoding="utf-8")
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    printed = run(*checker.split(), sys.executable, "script.py", cwd=tmp_path, env=alone)
    told = re.findall(r'(?:Revealed type|Type of ".*") is "(?:[\w.]+\.)?(.*)"', printed)
    assert len(told) == len(TYPES) and all(map(str.startswith, told, TYPES.values())), printed


def test_notebooks_keep_to_their_budget():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        size = sum(len(str(cell.get("outputs", ""))) for cell in cells)
        assert len(cells) <= 90, f"{path.name} has {len(cells)} cells"
        assert size <= 100_000, f"{path.name} keeps {size:,} bytes of outputs"


def ends_in_docstring(node):
    return isinstance(node.body[-1], ast.Expr) and isinstance(node.body[-1].value, ast.Constant)


def public_definitions(source):
    "How many public functions and classes a cell defines; a class with nothing but a docstring needs no test."
    nodes = [node for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return sum(not node.name.startswith("_") and not ends_in_docstring(node) for node in nodes)


def test_definitions_are_shown_or_tested():
    "At least 80% of a lesson's public exported definitions are followed by a cell that is not exported."
    for path in NOTEBOOKS:
        cells = [source for _, source in style.code_cells(path)]
        pairs = [(cell, following) for cell, following in zip(cells, [*cells[1:], "#| export"]) if is_exported(cell)]
        defined = sum(public_definitions(cell) for cell, _ in pairs)
        followed = sum(public_definitions(cell) for cell, following in pairs if not is_exported(following))
        assert followed >= 0.8 * defined, f"{path.name}: {followed} of {defined}"


def test_run_all_leaves_the_library_alone():
    for path in NOTEBOOKS:
        assert "nbdev_export(" not in "".join(source for _, source in style.code_cells(path)), path.name


def words_of_prose(path):
    "Words in the markdown cells, without headings, tables and fences."
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    lines = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines()
    return sum(len(line.split()) for line in lines if not line.startswith(("#", "|")))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_main_lessons_explain(path):
    words = words_of_prose(path)
    assert words >= 1200, f"{path.name} has {words} words of prose"


def test_pages_of_the_site_can_be_made(tmp_path):
    "Everything that `nbdev_docs` does before it calls Quarto, which is not a Python package."
    ignored = shutil.ignore_patterns(".git", "data", "runs")
    copy = shutil.copytree(ROOT, tmp_path / "copy", symlinks=True, ignore=ignored)
    code = "from nbdev import quarto, serve; quarto.refresh_quarto_yml(); serve.proc_nbs('nbs', n_workers=0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "imports and other code" not in done.stderr, done.stderr
    made = {path.relative_to(copy / "_proc") for path in (copy / "_proc").rglob("*.ipynb")}
    assert made == {path.relative_to(NBS) for path in style.notebooks()}
    doubled = [path for path in made if r"Args:\n" in (copy / "_proc" / path).read_text(encoding="utf-8")]
    assert not doubled, "parameters are shown as comments already"
    assert (NBS / "_quarto.yml").resolve() == ROOT / "_quarto.yml"


@pytest.mark.skipif("NOTEBOOK_TIMES" not in os.environ, reason="needs the file with what `nbdev_test --timing` printed")
def test_notebooks_keep_to_their_time():
    "The lessons in 120 seconds, each notebook in 60."
    printed = Path(os.environ["NOTEBOOK_TIMES"]).read_text(encoding="utf-8")
    seconds = {name: int(number) for name, number in re.findall(r"^(\S+\.ipynb): (\d+) secs", printed, re.MULTILINE)}
    assert set(seconds) == {path.name for path in style.notebooks()}
    assert sum(seconds[path.name] for path in LESSONS) < 120, seconds
    assert max(seconds.values()) <= 60, seconds


def test_wheel_works_alone(tmp_path):
    "Built from the tree, installed in another environment, used in an empty folder."
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").iterdir()
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", "--quiet", wheel)
    installed = run(scripts / "python", "-m", "pip", "list", cwd=tmp_path)
    assert "nbdev" not in installed and "jupyter" not in installed, "the runtime must stay light"
    empty = tmp_path / "empty"
    empty.mkdir()
    printed = run(scripts / "pytorch-course", "train", cwd=empty)
    assert float(re.search(r"test accuracy ([\d.]+)%", printed)[1]) >= 95, printed
    advice = printed.strip().splitlines()[-1].removeprefix("next: pytorch-course ").split()
    assert "%" in run(scripts / "pytorch-course", *advice, cwd=empty)
    run(scripts / "pytorch-course", "scaffold", "scripts", cwd=empty)  # its templates are files of the package
