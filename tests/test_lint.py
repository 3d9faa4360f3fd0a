"""What no module of the package may do, found in its syntax trees.

Run code from a file, unpack without checks, fetch over plain HTTP.
"""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "pytorch_course"
MODULES = sorted(PACKAGE.glob("*.py"))

# Anything that reads a pickle runs whatever code is in it. `torch.load` may, with `weights_only=True` written out.
FORBIDDEN_CALLS = {
    "pickle.load": "runs any code that is in the file",
    "pickle.loads": "runs any code that is in the file",
    "pickle.Unpickler": "runs any code that is in the file",
    "marshal.load": "not made for data",
    "marshal.loads": "not made for data",
    "shelve.open": "a pickle inside",
    "joblib.load": "a pickle inside",
    "pandas.read_pickle": "a pickle",
    "torch.hub.load": "runs code from the network",
    "torch.hub.load_state_dict_from_url": "no checked hash by default",
    "torch.utils.model_zoo.load_url": "no checked hash by default",
    "shutil.unpack_archive": "no checks",
    "eval": "runs code",
    "exec": "runs code",
    "os.system": "a shell",
    "os.popen": "a shell",
    "tempfile.mktemp": "a name that somebody else may take first",
}
FORBIDDEN_METHODS = {  # of whatever object
    "extractall": "use extract_zip or extract_tar of the archives module, which check every member first",
    "load_state_dict_from_url": "use downloads.download, which knows the hash",
}
FORBIDDEN_KEYWORDS = {("weights_only", False), ("shell", True), ("verify", False), ("allow_pickle", True)}

# Names of XML vocabularies. They look like addresses, but nobody fetches them: without this text an SVG is no SVG.
NAMESPACES = ("http://www.w3.org/",)
OWN_MACHINE = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(?=[:/]|$)")


def dotted(node, names):
    'The full name of a function: `torch.load` for `load` after `from torch import load`; "" if it is no plain name.'
    parts = []
    while isinstance(node, ast.Attribute):
        parts, node = [node.attr, *parts], node.value
    if not isinstance(node, ast.Name): return ""
    return ".".join([names.get(node.id, node.id), *parts])


def imported(tree):
    "Name in this module -> full name."
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def docstrings(tree):
    "The nodes of all docstrings and of other texts that stand alone: they are read, not used."
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def violations(source):
    "`(line, what is wrong)` of a module, in order."
    tree, found = ast.parse(source), []
    names, prose = imported(tree), docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):  # the name is enough: it may be called later, under another one
            name = dotted(node, names)
            if name in FORBIDDEN_CALLS:
                found.append((node.lineno, f"{name}: {FORBIDDEN_CALLS[name]}"))
            method = node.attr if isinstance(node, ast.Attribute) else names.get(node.id, "").rpartition(".")[2]
            if method in FORBIDDEN_METHODS and name not in FORBIDDEN_CALLS:
                found.append((node.lineno, f"{method}: {FORBIDDEN_METHODS[method]}"))
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            safe = isinstance(given.get("weights_only"), ast.Constant) and given["weights_only"].value is True
            if dotted(node.func, names) in ("torch.load", "torch.serialization.load") and not safe:
                found.append((node.lineno, "torch.load without weights_only=True"))
            for name, value in given.items():
                if isinstance(value, ast.Constant) and (name, value.value) in FORBIDDEN_KEYWORDS:
                    found.append((node.lineno, f"{name}={value.value}"))
        if isinstance(node, ast.Dict):  # `{"weights_only": False}` for `**options`
            for key, value in zip(node.keys, node.values):
                if (
                    isinstance(key, ast.Constant)
                    and isinstance(value, ast.Constant)
                    and (key.value, value.value) in FORBIDDEN_KEYWORDS
                ):
                    found.append((node.lineno, f"{key.value}={value.value}"))
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)) and id(node) not in prose:
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            for match in re.finditer("http://", text, re.IGNORECASE):
                address = text[match.start() :]
                if not address.startswith(NAMESPACES) and not OWN_MACHINE.match(address):
                    found.append((node.lineno, f"plain HTTP: {address[:40]}"))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append((node.lineno, "import *"))
    return sorted(found)


def test_package():
    found = {path.stem: violations(path.read_text(encoding="utf-8")) for path in MODULES}
    assert not any(found.values()), found


def test_there_is_a_package():
    assert len(MODULES) > 15 and {"files", "weights_files", "training"} <= {path.stem for path in MODULES}


BAD = {  # source -> part of what has to be found
    "import torch\ntorch.load('a.pt')": "torch.load without",
    "import torch as t\nt.load('a.pt', weights_only=None)": "torch.load without",
    "from torch import load as read\nread('a.pt', map_location='cpu')": "torch.load without",
    "import torch\ntorch.load('a.pt', weights_only=False)": "weights_only=False",
    "import torch\ndef f(flag): return torch.load('a.pt', weights_only=flag)": "torch.load without",
    "def f(load): return load('a.pt', weights_only=False)": "weights_only=False",
    "options = {'weights_only': False}": "weights_only=False",
    "options = dict(weights_only=False)": "weights_only=False",
    "import pickle\npickle.load(open('a', 'rb'))": "pickle.load",
    "from pickle import loads\nloads(b'')": "pickle.loads",
    "import pickle as p\nread = p.Unpickler": "pickle.Unpickler",
    "import numpy as np\nnp.load('a.npy', allow_pickle=True)": "allow_pickle=True",
    "import pandas as pd\npd.read_pickle('a')": "pandas.read_pickle",
    "import zipfile\nzipfile.ZipFile('a.zip').extractall('b')": "extractall",
    "import tarfile\nwith tarfile.open('a') as archive: archive.extractall('b', filter='data')": "extractall",
    "import shutil\nshutil.unpack_archive('a.zip')": "unpack_archive",
    "import torch\ntorch.hub.load_state_dict_from_url('https://example.org/a.pt')": "load_state_dict_from_url",
    "from torch.hub import load_state_dict_from_url\nload_state_dict_from_url('https://x.org')": "load_state_dict",
    "import torchvision\ntorchvision._utils.load_state_dict_from_url('https://x.org')": "load_state_dict_from_url",
    "url = 'http://example.org/data.zip'": "plain HTTP",
    "url = f'http://{host}/data.zip'": "plain HTTP",
    "url = b'HTTP://example.org'": "plain HTTP",
    "url = 'http://127.0.0.1.example.org/'": "plain HTTP",
    "url = 'see https://example.org or http://example.org'": "plain HTTP",
    "url = 'http://www.w3.org.example.org/'": "plain HTTP",
    "eval('1 + 1')": "eval",
    "def f(text): exec(text)": "exec",
    "import os\nos.system('ls')": "os.system",
    "from os import system\nsystem('ls')": "os.system",
    "import subprocess\nsubprocess.run('ls', shell=True)": "shell=True",
    "import requests\nrequests.get('https://example.org', verify=False)": "verify=False",
    "from os.path import *": "import *",
}

GOOD = [
    "import torch\ntorch.load('a.pt', map_location='cpu', weights_only=True)",
    "import json\njson.load(open('a'))\njson.loads('{}')",
    "def f(model):\n    'See http://example.org for the formula.'\n    model.eval()\n    model.load_state_dict({})",
    "# http://example.org, eval(x), pickle.load(x)",
    "svg = '<svg xmlns=\"http://www.w3.org/2000/svg\">'",
    "url = 'http://127.0.0.1:8000/a'\nother = 'http://localhost/a'\nsafe = 'https://example.org'",
    "from zipfile import ZipFile\nZipFile('a').open('b')",
    "import pickle\npickle.dumps(1)",
]


def test_the_lint_finds():
    missed = [source for source, what in BAD.items() if not any(what in found for _, found in violations(source))]
    assert missed == []


def test_the_lint_lets_pass():
    assert [source for source in GOOD if violations(source)] == []
