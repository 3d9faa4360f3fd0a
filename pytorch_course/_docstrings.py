"""What the comments beside parameters say, as sections `Args` and `Returns` of the docstrings.

Python drops comments; `help()` and Jupyter show docstrings. (The site has the comments: nbdev reads them itself.)
"""
import re
from types import ModuleType

_HEAD = re.compile(  # of a function: decorators, rows of parameters or a single row, type and comment of the result
    r"(?: *@.*\n)* *def \w+\((?:\n((?:.*\n)*?) *|(.*?))\)(?: -> (.*?))?:(?:  # (.*))?\n"
)
_PARAMETER = re.compile(r"^ +(?!self\b|cls\b)(\*{0,2}\w+)(?:: (.*?))?(?: = .*?)?,?(?:  # (.*))?$", re.MULTILINE)

def _of_function(lines: list[str]) -> tuple[list, str]:
    "Parameters and result of the function whose definition, or first decorator, is the first line."
    head = _HEAD.match("\n".join(lines[:60]))
    if not head: return [], ""
    rows, row, kind, comment = head.groups(default="")
    if row and not kind:  # a comment behind the only line is about the last parameter
        rows, comment = f" {row}".replace(", ", ",\n ") + f",  # {comment}", ""
    return _PARAMETER.findall(rows), comment and f"{kind}: {comment}"

def _of_dataclass(cls: type, source: str) -> list:
    "The fields of a dataclass, with those that it inherits from classes of the same module."
    found = {name: (name, "", "") for name, field in vars(cls)["__dataclass_fields__"].items() if field.init}
    for one in reversed(cls.__mro__):
        body = re.search(rf"^class {one.__name__}\b.*\n((?:(?: .*)?\n)*)", source, re.MULTILINE)
        rows = re.findall(r"^    \w+: .*", body[1] if body else "", re.MULTILINE)
        found |= {name: (name, *rest) for name, *rest in _PARAMETER.findall("\n".join(rows)) if name in found}
    return [*found.values()]

def _complete(function, parameters: list, result: str = ""):
    "Append parameters `(name, type, comment)`, if one has a comment, and the result to a docstring, in Google's style."
    text = (function.__doc__ or "").rstrip()
    lines = [text] if text else []
    if any(comment for *_, comment in parameters):
        lines += ["", "Args:"]
        for name, kind, comment in parameters:
            row = f"    {name} ({kind})" if kind else f"    {name}"
            lines.append(f"{row}: {comment}" if comment else row)
    if result:
        lines += ["", "Returns:", f"    {result}"]
    if len(lines) > 1:
        margin = re.search(r"\n( *)\S", text)
        function.__doc__ = ("\n" + (margin[1] if margin else "")).join(lines)

def add_parameters(module: ModuleType):
    "Complete the docstrings of a module's functions, methods and dataclasses."
    source = getattr(module.__loader__, "get_source")(module.__name__)
    lines = source.splitlines()
    own = [found for found in vars(module).values() if getattr(found, "__module__", None) == module.__name__]
    classes = [found for found in own if isinstance(found, type)]
    for found in [*own, *(member for cls in classes for member in vars(cls).values())]:
        function = getattr(found, "__func__", found)  # of a class method
        code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
        if code and code.co_filename != "<string>":  # which `dataclass` makes
            _complete(function, *_of_function(lines[code.co_firstlineno - 1 :]))
    for cls in classes:
        if "__dataclass_fields__" in vars(cls):
            _complete(cls.__init__, _of_dataclass(cls, source))
