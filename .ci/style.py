"""House style that ruff does not know: sizes, one statement a line, where imports may point: `python .ci/style.py`."""
import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pytorch_course import _HOME  # module of each name that the package itself offers

NBS = ROOT / "nbs"
PACKAGE = ROOT / "pytorch_course"
MAX_MODULE, MAX_PACKAGE = 300, 8000  # lines
MAX_CELL = {True: 40, False: 60}  # lines of an exported cell in a main lesson, and elsewhere
MAX_COLUMNS = {True: 100, False: 120}
LONG_CELL = ("class Trainer:", 100)  # the one exception: it reads best as a whole

GROUND_FLOOR = {"seeds", "system", "files", "images", "plots", "weights_files"}
MAIN_LESSONS = ["tensors", "data", "model", "autograd", "training", "save_load"]
PROLOGUE = {"workflow": {"tensors", "model", "training", "save_load", "plots"}}
ROOF = "going_modular"  # may import everything


def notebooks(with_index=True):
    "Paths of all notebooks in the order of their numbers."
    found = [path for path in NBS.rglob("*.ipynb") if not path.relative_to(NBS).parts[0].startswith(("_", "."))]
    found = [path for path in found if ".ipynb_checkpoints" not in path.parts]
    return sorted((path for path in found if with_index or path.name != "index.ipynb"), key=lambda path: path.name)


def is_main(path):
    "Whether a notebook is a main lesson: it lies in `nbs` itself."
    return path.parent == NBS


def code_cells(path):
    "`(cell id, source)` of a notebook's code cells."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["id"], "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]


def is_exported(source):
    return re.search(r"^#\| ?exports?\s*$", source, re.MULTILINE) is not None


def default_exp(path):
    "The module that a notebook makes; the name of a notebook that makes none."
    found = re.search(r"#\| default_exp (\w+)", "\n".join(source for _, source in code_cells(path)))
    return found[1] if found else path.stem.partition("_")[2]


def is_guard(node, field, body):
    "A condition with `return`, `raise`, `continue` or `break` in its own line."
    leaves = isinstance(body[0], (ast.Return, ast.Raise, ast.Continue, ast.Break))
    return isinstance(node, ast.If) and field == "body" and not node.orelse and leaves and len(body) == 1


def crowded(tree, lines):
    "`(line, what)` for statements that share a line with another one or with the header of their block."
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if not (isinstance(body, list) and body and isinstance(body[0], ast.stmt)): continue
            for one, following in zip(body, body[1:]):
                if one.end_lineno == following.lineno:
                    yield following.lineno, "two statements in a line"
            first = body[0]
            before = lines[first.lineno - 1].encode()[: first.col_offset].decode().strip()
            if isinstance(node, ast.Module) or not before or before == "@": continue
            if field == "orelse" and isinstance(first, ast.If): continue  # an `elif`
            stub = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and first.value.value is ...
            if not stub and not is_guard(node, field, body):
                yield first.lineno, "a statement in the line of its header"


def dense(tree):
    "`(line, what)` for assignments and expressions that do several things at once."
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            if len(node.targets) > 2:
                yield node.lineno, "a chain of assignments"
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(value.elts) > 2:
                yield node.lineno, f"{len(value.elts)} assignments in a line"
        statement = isinstance(node, ast.Expr) and node is not tree.body[-1]  # a cell may show its last expression
        if statement and isinstance(node.value, (ast.Tuple, ast.IfExp, ast.BoolOp, ast.ListComp)):
            yield node.lineno, "an expression in the place of statements"


def faults(source, label, columns):
    "What is wrong with a cell or a file, as lines of text."
    if re.search(r"^\s*[%!]", source, re.MULTILINE): return
    lines = source.splitlines()
    for number, line in enumerate(lines, 1):
        if len(line) > columns and not line.startswith("#|"):  # a directive cannot be continued
            yield f"{label}:{number}: {len(line)} columns, at most {columns} are allowed"
    tree = ast.parse(source)
    for number, what in sorted({*crowded(tree, lines), *dense(tree)}):
        yield f"{label}:{number}: {what}: {lines[number - 1].strip()[:60]}"


def notebook_faults():
    "Columns and statements of all cells, and sizes of exported ones."
    for path in notebooks():
        main, name = is_main(path), path.relative_to(NBS)
        for cell, source in code_cells(path):
            yield from faults(source, f"{name} #{cell}", MAX_COLUMNS[main])
            size = sum(bool(line.strip()) and not line.startswith("#|") for line in source.splitlines())
            start, longest = LONG_CELL
            limit = longest if f"\n{start}" in source else MAX_CELL[main]
            if is_exported(source) and size > limit:
                yield f"{name} #{cell}: an exported cell of {size} lines, at most {limit} are allowed"


def file_faults():
    "Columns and statements of the files that are written by hand, and sizes of all modules."
    by_hand = [ROOT / "setup.py", *(PACKAGE / f"{name}.py" for name in ("__init__", "__main__", "_docstrings"))]
    for folder in ("tests", "benchmarks", ".ci"):
        by_hand += sorted((ROOT / folder).glob("*.py"))
    for path in by_hand:
        yield from faults(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)), MAX_COLUMNS[False])
    modules = [path for path in PACKAGE.glob("*.py") if path.name != "_modidx.py"]
    sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in modules}
    for name, size in sorted(sizes.items()):
        if size > MAX_MODULE:
            yield f"pytorch_course/{name}: {size} lines, at most {MAX_MODULE} are allowed"
    total = sum(sizes.values())
    if total > MAX_PACKAGE:
        yield f"pytorch_course: {total:,} lines, at most {MAX_PACKAGE:,} are allowed"


def imported_modules(source):
    "Our modules that a cell imports."
    if re.search(r"^\s*[%!]", source, re.MULTILINE): return
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        module = getattr(node, "module", None) or ""
        if isinstance(node, ast.Import):
            yield from (name.split(".")[1] for name in names if name.startswith("pytorch_course."))
        elif module == "pytorch_course":
            yield from (_HOME.get(name, name) for name in names if name != "__version__")
        elif module.startswith("pytorch_course."):
            yield module.split(".")[1]


def allowed_imports(module, order):
    "The modules that the notebook of `module` may import; `order` are all modules by the number of their notebook."
    lower = order[: order.index(module)]
    if module in PROLOGUE: return PROLOGUE[module]
    if module == ROOF: return set(order)
    if module in GROUND_FLOOR: return GROUND_FLOOR
    if module in MAIN_LESSONS: return GROUND_FLOOR | set(MAIN_LESSONS[: MAIN_LESSONS.index(module)])
    return GROUND_FLOOR | set(MAIN_LESSONS) | (set(lower) - {ROOF, *PROLOGUE})


def import_faults():
    "Imports that point upward, and circles."
    module_of = {path: default_exp(path) for path in notebooks(with_index=False)}
    order = list(module_of.values())
    if len(set(order)) < len(order):
        yield "two notebooks make the same module"
    arrows = {module: set() for module in order}
    for path, module in module_of.items():
        allowed = allowed_imports(module, order)
        for cell, source in code_cells(path):
            used, exported = set(imported_modules(source)), is_exported(source)
            if exported:
                arrows[module] |= used
            if exported and module in ("training", "tensors") and used:
                yield f"{module} imports {', '.join(used)}"
            for name in sorted(used - allowed - ({module} if not exported else set())):
                yield f"{path.relative_to(NBS)} #{cell} imports {name}, which is not below it"
    while free := [module for module, used in arrows.items() if not used & set(arrows)]:
        for module in free:
            del arrows[module]
    if arrows:
        yield f"modules that import each other in a circle: {', '.join(sorted(arrows))}"


def main():
    found = [*notebook_faults(), *file_faults(), *import_faults()]
    print(*found, f"{len(found)} faults", sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
