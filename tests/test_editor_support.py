"""What `help()`, Jupyter and editors show of the package, and what that costs. (.ci/ asks type checkers.)"""
import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pytorch_course

PACKAGE = Path(pytorch_course.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("[a-z]*.py"))


def python(code, *options, cwd=None, path=PACKAGE.parent):
    "What a new process prints, with the package from another place."
    command = [sys.executable, *options, "-c", f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def comments(node, lines):
    "Those beside the parameters and the result of a function, or beside the fields of a dataclass."
    if isinstance(node, ast.FunctionDef):
        rows = lines[node.lineno - 1 : max(node.lineno, node.body[0].lineno - 1)]
    else:
        rows = [lines[field.lineno - 1] for field in node.body if isinstance(field, ast.AnnAssign)]
    return [row.split("  # ", 1)[1] for row in rows if "  # " in row and "init=False" not in row]


def documented(module):
    "`(object, what is beside its parameters)` for all functions, methods and dataclasses of a module."
    source = inspect.getsource(module)
    lines = source.splitlines()
    for node in ast.parse(source).body:
        found = getattr(module, getattr(node, "name", ""), None)
        if isinstance(node, ast.FunctionDef):
            yield found, comments(node, lines)
        if isinstance(node, ast.ClassDef):
            if "__dataclass_fields__" in vars(found):
                yield found.__init__, comments(node, lines)
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not isinstance(vars(found)[method.name], property):
                    yield getattr(found, method.name), [c for c in comments(method, lines) if c != "itself"]


@pytest.mark.parametrize("name", MODULES)
def test_help_shows_every_parameter(name):
    for function, beside in documented(importlib.import_module(f"pytorch_course.{name}")):
        text = inspect.getdoc(function) or ""
        assert not (missing := [comment for comment in beside if comment not in text]), (function, missing)
        if "Args:" in text:
            parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
            section = text.partition("Args:")[2].partition("\nReturns:")[0]
            shown = re.findall(r"^    \*{0,2}(\w+)(?: \(|:|$)", section, re.MULTILINE)
            assert sorted(shown) == sorted(parameters), function
        assert text.count("Args:") <= 1 and text.count("Returns:") <= 1, function


def test_docstring_of_fit():
    text = pytorch_course.fit.__doc__
    first, rest = text.split("\n\nArgs:\n    model (nn.Module): moved to `device` and trained\n")
    assert first.startswith("Train with all good defaults") and "    lr (float | None): learning rate of Adam; " in rest
    assert rest.endswith("\n\nReturns:\n    Trainer: with the trained model and `history`, a row per epoch")
    assert "Args:" not in inspect.getsource(pytorch_course.fit), "the source is as it was written"


def test_jupyter_shows_parameters():
    oinspect = pytest.importorskip("IPython.core.oinspect")
    shown = oinspect.Inspector(theme_name="nocolor").info(pytorch_course.Trainer)
    assert "optimizer (torch.optim.Optimizer | None): of the model's parameters" in shown["init_docstring"]


def test_help_of_commands_is_as_before():
    code = "from pytorch_course.going_modular import main; main(['train', '--help'])"
    printed = python(code)
    assert "Args" not in printed and "Train an image classifier." in printed


SHOW = "from pytorch_course.system import cpu_count; print(cpu_count.__doc__)"


def test_docstrings_from_a_zip_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "library.zip", "w") as archive:
        for path in PACKAGE.glob("*.py"):
            archive.write(path, f"pytorch_course/{path.name}")
    assert "Returns:\n    int: at least 1" in python(SHOW, cwd=tmp_path, path=tmp_path / "library.zip")


def test_no_source_no_sections(tmp_path):
    copy = shutil.copytree(PACKAGE, tmp_path / "pytorch_course", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-b", str(copy)], check=True)
    for path in copy.glob("*.py"):
        path.unlink()
    assert python(SHOW, "-I", cwd=tmp_path, path=tmp_path).startswith("How many cores")
    assert python(SHOW, "-OO") == "None", "who leaves docstrings out gets none"


def test_reload_and_errors_of_modules(tmp_path):
    "A module that fails fails with its own error."
    copy = shutil.copytree(PACKAGE, tmp_path / "pytorch_course", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "broken.py").write_text("1 / 0\n")
    code = "try:\n    import pytorch_course.broken\nexcept ZeroDivisionError: print('its own')"
    assert python(code, "-I", path=tmp_path) == "its own"
    code = "import importlib, pytorch_course\nprint(importlib.reload(pytorch_course).__name__)"
    assert python(code) == "pytorch_course"


def test_lazy_names_cost_nothing():
    "The package in 20 ms, the help of a command in 0.3 s, docstrings in 2 ms a module; processor time, the best."
    clock = "import time; begin = time.process_time()\n"
    times = [float(python(clock + "import pytorch_course; print(time.process_time() - begin)")) for _ in range(5)]
    assert min(times) < 0.020, times
    code = clock + "from pytorch_course.going_modular import make_parser, train\nprint(time.process_time() - begin)"
    times = [float(python(code + "\nassert 'torch' not in sys.modules")) for _ in range(5)]
    assert min(times) < 0.3, times
    code = "import time\nfrom pytorch_course import _docstrings, command_line, doctor, going_modular, runs\n"
    code += "modules = [command_line, doctor, going_modular, runs]\nt = time.process_time()\n"
    code += "for module in modules: _docstrings.add_parameters(module)\n"
    code += "print((time.process_time() - t) / 4)"
    times = [float(python(code)) for _ in range(2)]
    assert min(times) < 0.002, times


def test_names_of_the_package():
    "Attribute access, completion, `from ... import`, help: without an import of torch before it is needed."
    code = "import pytorch_course, sys\nassert {'fit', 'Trainer', 'training'} <= set(dir(pytorch_course))\n"
    code += "print('torch' in sys.modules, pytorch_course.training.train.__name__, pytorch_course.Trainer.__name__)"
    assert python(code) == "False train Trainer"
