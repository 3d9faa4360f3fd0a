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
from readme import readme

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


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


def code_cells(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def imported_modules(source):
    "Names of our modules that a cell imports; star imports are refused."
    source = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pytorch_course":
            assert node.names[0].name != "*", f"star import of {node.module}"
            yield from (
                [alias.name for alias in node.names] if node.module == "pytorch_course" else [node.module.split(".")[1]]
            )
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pytorch_course."))


def test_imports_point_to_lower_numbers():
    module_of = {path: re.search(r"#\| default_exp (\w+)", "\n".join(code_cells(path)))[1] for path in NOTEBOOKS}
    order = list(module_of.values())
    assert len(set(order)) == len(order)
    for path, module in module_of.items():
        lower = order[: order.index(module)]
        for source in code_cells(path):
            for name in imported_modules(source):
                own_after_export = name == module and "#| export" not in source
                assert name in lower or name == "__version__" or own_after_export, (
                    f"{path.name} imports {name}, which comes later"
                )


def test_notebooks_keep_to_their_budget():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        size = sum(len(str(cell.get("outputs", ""))) for cell in cells)
        assert len(cells) <= 90, f"{path.name} has {len(cells)} cells"
        assert size <= 100_000, f"{path.name} keeps {size:,} bytes of outputs"


def test_definitions_are_shown_or_tested():
    "At least 80% of the public exported definitions of a lesson are followed by a cell that is neither exported nor runs the export."
    for path in NOTEBOOKS:
        cells, followed, defined = code_cells(path), 0, 0
        for cell, following in zip(cells, [*cells[1:], ""]):
            if not cell.startswith("#| export"): continue
            nodes = ast.parse(cell).body
            public = [
                node
                for node in nodes
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            ]
            defined += len(public)
            followed += len(public) * (not following.startswith("#| export") and "nbdev_export" not in following)
        assert followed >= 0.8 * defined, f"{path.name}: {followed} of {defined}"


def words_of_prose(path):
    "Words in the markdown cells, without headings, tables and fences."
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    lines = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines()
    return sum(len(line.split()) for line in lines if not line.startswith(("#", "|")))


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if re.match(r"0[0-6]_", path.name)], ids=lambda path: path.stem)
def test_main_lessons_explain(path):
    words = words_of_prose(path)
    assert words >= 1200, f"{path.name} has {words} words of prose"


def test_pages_of_the_site_can_be_made(tmp_path):
    "Everything that `nbdev_docs` does before it calls Quarto, which is not a Python package."
    copy = shutil.copytree(
        ROOT, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns(".git", "data", "runs")
    )
    code = "from nbdev.quarto import refresh_quarto_yml; from nbdev.serve import proc_nbs; refresh_quarto_yml(); proc_nbs('nbs', n_workers=0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "imports and other code" not in done.stderr, done.stderr
    assert sorted(path.name for path in (copy / "_proc").glob("*.ipynb")) == [path.name for path in NOTEBOOKS] + [
        "index.ipynb"
    ]
    assert (ROOT / "nbs" / "_quarto.yml").resolve() == ROOT / "_quarto.yml"


@pytest.mark.skipif(not shutil.which("unshare") or not shutil.which("ip"), reason="needs Linux with unshare and ip to cut the network off")
def test_notebooks_run_without_network_and_deprecations():
    "The seven lessons in 120 seconds, each notebook in 30 on two cores (here it has one); nothing that we call may be deprecated."
    lonely = ["unshare", "--net", "--map-root-user", "bash", "-c", "ip link set lo up && exec nbdev_test --timing"]
    settings = {
        "no_proxy": "*",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "error::DeprecationWarning,error::FutureWarning",
    }
    printed = run(*lonely, cwd=ROOT, env={**os.environ, **settings})
    seconds = {name: int(number) for name, number in re.findall(r"^(\S+\.ipynb): (\d+) secs", printed, re.MULTILINE)}
    assert set(seconds) == {path.name for path in NOTEBOOKS} | {"index.ipynb"}
    assert sum(number for name, number in seconds.items() if re.match(r"0\d_", name)) < 120, seconds
    assert max(seconds.values()) <= 60, seconds


def test_wheel_works_alone(tmp_path):
    "Built from the tree, installed in another environment, used in an empty folder."
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").iterdir()
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", "--quiet", wheel)
    (tmp_path / "empty").mkdir()
    printed = run(scripts / "pytorch-course", "train", cwd=tmp_path / "empty")
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", printed)[1])
    assert accuracy >= 95, printed
    advice = printed.strip().splitlines()[-1].removeprefix("next: pytorch-course ").split()
    assert "%" in run(scripts / "pytorch-course", *advice, cwd=tmp_path / "empty")
    installed = run(scripts / "python", "-m", "pip", "list", cwd=tmp_path / "empty")
    assert "nbdev" not in installed and "jupyter" not in installed, "the runtime must stay light"
