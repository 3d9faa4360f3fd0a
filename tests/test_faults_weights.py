"""Faults of model files, by the rows of the fault table.

Killed writes, full disks, flipped bits, foreign, cut and hostile files. Everything is deterministic: a process dies
at *every* write in turn, or at every so many bytes, not at random moments.
"""
import errno
import io
import json
import math
import os
import pickle
import random
import shutil
import signal
import sys
import traceback
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pytorch_course.checkpoint_files import load_checkpoint, save_checkpoint
from pytorch_course.images import ImageTransform
from pytorch_course.model import TinyVGG
from pytorch_course.save_load import ModelInfo, load_model, save_model
from pytorch_course.seeds import get_rng_state, set_rng_state
from pytorch_course.transfer_weights import load_weights
from pytorch_course.weights_files import ModelFileError, explain_file_errors, read_weights_file, write_weights_file

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
ENDINGS = (".pt", ".safetensors")
ARGUMENTS = {"input_shape": 1, "hidden_units": 2, "output_shape": 3, "image_size": 28}
CLASSES = ["pizza", "steak", "sushi"]
INFO = ModelInfo("tinyvgg", ARGUMENTS, CLASSES, ImageTransform(image_size=28, channels=1))
OLD = {"bias": torch.zeros(5), "weight": torch.arange(3000.0)}
NEW = {"bias": torch.ones(5), "weight": -torch.arange(3000.0)}


def tensors(path):
    with explain_file_errors(path):
        content = read_weights_file(path)
    return content["state_dict"] if Path(path).suffix == ".safetensors" else content


def bits(tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(a, b) -> bool:
    "The same types, names and values all the way down, tensors bit for bit."
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def in_child(action) -> int:
    """Run `action` in a forked process; its exit status.

    0 it returned, 1 it raised, 9 it was told to die, negative: killed by a signal.
    """
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)  # noqa: B036
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Row 1: killed while saving


class DyingFile:
    "A file that ends the process in the middle of a write."

    def __init__(self, file, clock):
        self.file, self.clock = file, clock
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()
    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        data = memoryview(data).cast("B")
        if self.clock.rings():
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            os._exit(9)
        return self.file.write(data)


class Clock:
    "Counts the calls that touch the disk and rings at one of them."

    def __init__(self, when):
        self.left = when

    def rings(self):
        self.left -= 1
        return self.left == -1

    def around(self, function, after):
        def dying(*args, **kwargs):
            rings = self.rings()
            if rings and not after:
                os._exit(9)
            result = function(*args, **kwargs)
            if rings:
                os._exit(9)
            return result

        return dying


def save_and_die(path, when, after):
    "Save the new weights; die at call number `when` to write, fsync or replace, just before or just after it."
    clock, opened = Clock(when), Path.open
    os.fsync, os.replace = clock.around(os.fsync, after), clock.around(os.replace, after)

    def dying_open(self, mode="r", *rest, **named):
        file = opened(self, mode, *rest, **named)
        return DyingFile(file, clock) if "w" in mode else file

    Path.open = dying_open
    write_weights_file(path, NEW)


@posix
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_row_01_dying_at_every_call_leaves_the_old_file_or_the_new_one(tmp_path, ending, after):
    path, found = tmp_path / f"weights{ending}", []
    for when in range(1000):
        write_weights_file(path, OLD)
        status = in_child(lambda: save_and_die(path, when, after))
        found.append("old" if same(tensors(path), OLD) else "new")
        if found[-1] == "new":
            assert same(tensors(path), NEW)
        if status == 0: break
        assert status == 9
    calls = {".pt": 20, ".safetensors": 3}[ending]  # safetensors writes from Rust: see the next test
    assert len(found) > calls and found[-1] == "new"
    assert found == sorted(found, reverse=True), "old files up to the replacement, then new ones"
    assert found.count("old") >= len(found) - 4


@posix
@pytest.mark.parametrize("ending", ENDINGS)
def test_row_01_killed_in_the_middle_of_the_bytes(tmp_path, ending):
    "The kernel kills a process that writes past its limit (`SIGXFSZ`), in whatever language it writes."
    import resource

    path = tmp_path / f"weights{ending}"
    size = write_weights_file(path, OLD).stat().st_size

    def save_with_limit(limit):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        write_weights_file(path, NEW)

    for limit in range(0, size, size // 23):
        assert in_child(lambda: save_with_limit(limit)) == -signal.SIGXFSZ
        assert same(tensors(path), OLD), limit
    assert in_child(lambda: save_with_limit(size)) == 0
    assert same(tensors(path), NEW)


# Row 2: the disk is full


def check_full(path, error, size):
    assert isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG)
    for part in (f"cannot write {path}: ", os.strerror(error.errno), f"it needs {size:,} bytes", " are free"):
        assert part in str(error), (part, error)
    assert "\n" not in str(error) and ".part" not in str(error)


@pytest.mark.parametrize("ending", ENDINGS)
def test_row_02_full_disk_keeps_the_old_file_and_names_it(tmp_path, monkeypatch, ending):
    path = write_weights_file(tmp_path / f"weights{ending}", OLD)
    before = path.read_bytes()

    def half(content, target, *_):
        if isinstance(target, io.IOBase):
            target.write(b"half a file")
        else:
            Path(target).write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch.save", half)
    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(OSError) as caught:
        write_weights_file(path, NEW)
    check_full(path, caught.value, 12_020)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]


@posix
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("limit", [0, 1, 700, 5000, 12_000])
def test_row_02_the_kernel_refuses_to_write_more(tmp_path, ending, limit):
    "The same with the real thing: a limit on the size of files, with both libraries' own ways to report it."
    import resource

    path = write_weights_file(tmp_path / f"weights{ending}", OLD)
    before = path.read_bytes()

    def save():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write_weights_file(path, NEW)
        except OSError as error:
            check_full(path, error, 12_020)
            os._exit(9)

    assert in_child(save) == 9
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_row_02_other_errors_of_a_save_are_not_called_a_full_disk(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr("torch.save", broken)
    with pytest.raises(RuntimeError, match="^something else$"):
        write_weights_file(tmp_path / "weights.pt", NEW)
    assert not list(tmp_path.iterdir())


# Row 3: one flipped bit


def samples(folder) -> dict[str, bytes]:
    "Five small files, of every kind that this library writes."
    torch.manual_seed(0)
    small = {
        "weight": torch.rand(5, 3),
        "half": torch.rand(4).bfloat16(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
    }
    model = nn.Linear(3, 2)
    model.info = None
    paths = [write_weights_file(folder / "bare.pt", small), write_weights_file(folder / "bare.safetensors", small)]
    described = TinyVGG(**ARGUMENTS)
    paths += [
        save_model(described, folder, "described.pt", INFO),
        save_model(described, folder, "described.safetensors", INFO),
    ]
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    paths.append(save_checkpoint(folder / "checkpoint.pth", models=model, optimizers=optimizer, extra={"epoch": 3}))
    return {path.name: path.read_bytes() for path in paths}


@contextmanager
def flipped(path, place):
    "The file with one other bit, as long as the block lasts; written in place, for emptying a file first is slow."
    with path.open("r+b", buffering=0) as file:
        file.seek(place // 8)
        byte = file.read(1)[0]
        def put(value):
            file.seek(place // 8)
            file.write(bytes([value]))

        put(byte ^ 1 << place % 8)
        try:
            yield
        finally:
            put(byte)


@pytest.mark.parametrize(
    "name", ["bare.pt", "bare.safetensors", "described.pt", "described.safetensors", "checkpoint.pth"]
)
def test_row_03_one_flipped_bit_is_noticed_or_changes_nothing(tmp_path, name):
    good = samples(tmp_path)[name]
    path, noticed = tmp_path / name, 0
    places = random.Random(name).sample(range(8 * len(good)), 600)
    truth = read_weights_file(path)
    for place in places:
        try:
            with flipped(path, place), explain_file_errors(path):
                content = read_weights_file(path)
        except ModelFileError as error:
            assert name in str(error)
            noticed += 1
        else:
            assert same(content, truth), place
    assert noticed > 200  # the rest hits what nobody reads: dates, padding, names of things that nobody asks for


@pytest.mark.parametrize("name", ["bare.pt", "bare.safetensors"])
def test_row_03_every_bit_of_every_number(tmp_path, name):
    good = samples(tmp_path)[name]
    path = tmp_path / name
    weights = read_weights_file(path)["state_dict"] if name.endswith(".safetensors") else read_weights_file(path)
    for tensor in weights.values():
        numbers = bits(tensor)
        for start in (at for at in range(len(good)) if good.startswith(numbers, at)) if len(numbers) > 4 else ():
            for place in range(8 * start, 8 * (start + len(numbers))):
                with flipped(path, place), pytest.raises(ModelFileError, match="damaged: .*checksum"):
                    read_weights_file(path)


def test_row_03_every_bit_of_the_table_of_contents(tmp_path):
    "A flag there makes PyTorch hand out memory that nobody filled, and the checksum of the zip file is right."
    path = write_weights_file(tmp_path / "w.pt", {"w": torch.rand(7)})
    good, truth = path.read_bytes(), read_weights_file(path)
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    for place in range(8 * start, 8 * len(good)):
        try:
            with flipped(path, place), explain_file_errors(path):
                content = read_weights_file(path)
        except ModelFileError:
            continue
        assert same(content, truth), place - 8 * start


@pytest.mark.parametrize("ending", ENDINGS)
def test_row_03_what_was_compared_is_what_is_used(tmp_path, ending):
    "Somebody overwrites the file, or empties it, after it has been read; safetensors alone would hand out windows."
    path = write_weights_file(tmp_path / f"weights{ending}", OLD)
    loaded = tensors(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert same(loaded, OLD)
    os.truncate(path, 0)
    assert same(loaded, OLD)


def test_row_03_safetensors_are_still_everybodys(tmp_path):
    from safetensors.torch import load_file, save_file

    path = write_weights_file(tmp_path / "ours.safetensors", OLD, {"note": "hello"})
    assert same(dict(sorted(load_file(path).items())), OLD)
    save_file(OLD, tmp_path / "theirs.safetensors", {"format": "pt", "info": "no JSON", "sha256": "not ours"})
    assert same(dict(sorted(tensors(tmp_path / "theirs.safetensors").items())), OLD)
    save_file(OLD, tmp_path / "none.safetensors")
    tensors(tmp_path / "none.safetensors")
    save_file(OLD, tmp_path / "mandatory.safetensors", {"format": "pytorch_course weights 1"})
    with pytest.raises(ModelFileError, match="mandatory.safetensors: damaged: its checksum is wrong or missing"):
        tensors(tmp_path / "mandatory.safetensors")


def test_row_03_the_checksum_covers_names_types_shapes_and_text(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = write_weights_file(
        tmp_path / "weights.safetensors", {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, {"note": "hello"}
    )
    with safe_open(path, framework="pt") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    save_file(weights, path, metadata)
    assert set(tensors(path)) == {"a", "b"}
    changed = [
        (weights | {"a": torch.zeros(3, 2)}, metadata),
        (weights | {"a": torch.zeros(2, 3, dtype=torch.int32)}, metadata),
        (weights, metadata | {"note": "hallo"}),
        ({"a": weights["a"], "c": weights["b"]}, metadata),
        ({"a": weights["a"]}, metadata),
        (weights, metadata | {"more": "text"}),
    ]
    for other, text in changed:
        save_file(other, path, text)
        with pytest.raises(ModelFileError, match="damaged: its checksum is wrong"):
            tensors(path)


# Rows 4 to 6: empty, cut, web pages, pointers


def message_of(path, load=None) -> str:
    with pytest.raises(ModelFileError) as caught:
        (load or tensors)(path)
    message = str(caught.value)
    assert path.name in message and "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("ending", [*ENDINGS, ".pth"])
@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html>\n<html><body>404", "it is a web page, so a download went wrong"),
        (b"\n\n  <HTML lang=en>Please log in", "it is a web page, so a download went wrong"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "it is a Git LFS pointer, not the file itself; run 'git lfs pull'",
        ),
        (b"\0" * 1000, "it is not a model file, or only the beginning of one"),
        (b"PK\3\4", "it is not a model file, or only the beginning of one"),
    ],
    ids=["empty", "page", "login", "pointer", "zeros", "start"],
)
def test_row_04_to_06_says_what_the_file_is(tmp_path, ending, content, words):
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    model = nn.Linear(1, 1)
    for load in (
        tensors,
        load_model,
        lambda path: load_weights(model, path),
        lambda path: load_checkpoint(path, models=model),
    ):
        assert message_of(path, load).endswith(words)


@pytest.mark.parametrize("name", ["described.pt", "described.safetensors", "checkpoint.pth"])
def test_row_05_cut_at_many_lengths(tmp_path, name):
    good = samples(tmp_path)[name]
    path = tmp_path / name
    for length in [*range(0, 40), *range(40, len(good) - 40, len(good) // 150), *range(len(good) - 40, len(good))]:
        path.write_bytes(good[:length])
        assert "cannot load" in message_of(path)
    path.write_bytes(good)
    tensors(path)


def test_row_04_a_missing_file_is_missing(tmp_path):
    for load in (tensors, load_model):
        pytest.raises(FileNotFoundError, load, tmp_path / "gone.pt").match("gone.pt")


def test_row_06_formats_of_others_are_named(tmp_path):
    old, script = tmp_path / "old.pth", tmp_path / "script.pt"
    bare = tmp_path / "bare.pt"
    torch.save(OLD, old, _use_new_zipfile_serialization=False)
    assert "PyTorch's format of before 2020" in message_of(old)
    with zipfile.ZipFile(script, "w") as archive:
        for name in ("script/data.pkl", "script/constants.pkl", "script/version"):
            archive.writestr(name, b"\x80\x02}.")
    assert "TorchScript" in message_of(script)
    bare.write_bytes(pickle.dumps(OLD))
    assert "not a model file" in message_of(bare)
    for value, words in (([1, 2], "it holds a list"), (torch.ones(2), "it holds a Tensor")):
        torch.save(value, bare)
        assert words in message_of(bare)


# Row 7: malicious pickles


class Payload:
    def __init__(self, function, *args):
        self.call = function, args
    def __reduce__(self):
        return self.call


HOSTILE = [os.system, os.mkdir, exec, eval, open, Path.touch, shutil.rmtree, getattr, __import__]


@pytest.mark.parametrize("function", HOSTILE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("where", ["whole", "value", "key"])
def test_row_07_hostile_pickle_is_refused_without_advice_to_trust_it(tmp_path, function, where):
    canary = tmp_path / "canary"
    canary.mkdir()
    argument = {
        os.system: f"touch {canary}/x",
        exec: f"open('{canary}/x', 'w')",
        eval: f"open('{canary}/x', 'w')",
        Path.touch: canary / "x",
        shutil.rmtree: canary,
    }
    args = [argument.get(function, f"{canary}/x"), *{open: ["w"], getattr: ["format"]}.get(function, [])]
    bad = Payload(function, *args)
    path = tmp_path / "model.pt"
    torch.save(
        {"whole": bad, "value": {"format": "pytorch_course model 2", "info": bad}, "key": {"a": OLD, "x": {bad: 1}}}[
            where
        ],
        path,
    )
    model = nn.Linear(1, 1)
    for load in (
        tensors,
        load_model,
        lambda path: load_weights(model, path),
        lambda path: load_checkpoint(path, models=model),
    ):
        with pytest.raises(ModelFileError) as caught:
            load(path)
        said = "".join(traceback.format_exception(caught.value)).lower()
        assert (
            "model.pt" in str(caught.value)
            and "it asks for" in str(caught.value)
            and "could run any code" in str(caught.value)
        )
        for advice in (
            "weights_only=false",
            "`weights_only`",
            "safe_globals",
            "allowlist",
            "if you trust",
            "file an issue",
        ):
            assert advice not in said, advice
    assert list(canary.iterdir()) == [] and canary.is_dir()


@pytest.mark.parametrize(
    "error, words",
    [
        (MemoryError(), "there is not enough memory for it"),
        (
            RuntimeError("Cannot use ``weights_only=True`` with such files. Set `weights_only` to `False`."),
            "its instructions are damaged",
        ),
        (
            RuntimeError("Expected a record.  (Could this error message be improved?  If so, please report it.)"),
            "PyTorch cannot read it: Expected a record.",
        ),
        (AssertionError(), "its instructions are damaged"),
    ],
    ids=["memory", "advice", "report", "assertion"],
)
def test_row_07_whatever_pytorch_says_is_put_into_one_line_without_advice(tmp_path, monkeypatch, error, words):
    path = write_weights_file(tmp_path / "weights.pt", OLD)

    def failing(*_, **options):
        assert options["weights_only"] is True
        raise error

    monkeypatch.setattr("torch.load", failing)
    message = message_of(path)
    assert words in message and "weights_only" not in message and "report" not in message


def test_row_07_a_compressed_entry_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"data.pkl": b"\x80\x02}.", "data/0": bytes(50 << 20), "version": b"3\n"}.items():
            archive.writestr(f"bomb/{name}", content)
    assert path.stat().st_size < 100_000 and "its table of contents is not one that PyTorch writes" in message_of(path)


def test_row_07_the_payload_of_this_test_is_alive(tmp_path):
    pickle.loads(pickle.dumps(Payload(os.mkdir, str(tmp_path / "x"))))
    assert (tmp_path / "x").is_dir()


# Row 8: what may go into a file


def test_row_08_numpy_numbers_and_random_states_come_back(tmp_path):
    model = nn.Linear(2, 2)
    values = {"loss": np.float32(0.25), "best": np.float64("inf"), "epoch": np.int64(3), "ok": np.bool_(True)}
    values |= {"history": [np.float16(1.5)], "z": np.complex64(1j), "name": np.str_("a")}
    values |= {
        "version": torch.__version__,
        "shape": torch.Size([2, 3]),
        "nested": {"betas": (0.9, 0.999), 3: None},
        "order": OrderedDict(b=1, a=2),
    }
    path = save_checkpoint(tmp_path / "checkpoint.pt", models=model, extra=values)
    loaded = load_checkpoint(path, models=model)
    assert loaded == {**values, "shape": (2, 3)} and math.isinf(loaded["best"])
    for name in ("loss", "best"):
        assert type(loaded[name]) is float
    assert (
        type(loaded["epoch"]) is int
        and type(loaded["ok"]) is bool
        and type(loaded["version"]) is str
        and type(loaded["order"]) is OrderedDict
    )
    state = get_rng_state()
    def roll():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()

    first = roll()
    path = save_checkpoint(tmp_path / "again.pt", models=model, extra={"state": state})
    assert roll() != first
    set_rng_state(load_checkpoint(path, models=model, training=False)["state"])
    assert roll() == first


@pytest.mark.parametrize(
    "values, place",
    [
        ({"folder": Path("runs")}, r"extra\['folder'\] is of type \w*Path"),
        ({"history": [{"when": {1, 2}}]}, r"extra\['history'\]\[0\]\['when'\] is of type set"),
        ({"scores": np.ones(3)}, r"extra\['scores'\] is of type ndarray"),
        ({"generator": torch.Generator()}, r"extra\['generator'\] is of type Generator"),
        ({"f": len}, r"extra\['f'\] is of type builtin"),
        ({"raw": b"bytes"}, r"extra\['raw'\] is of type bytes"),
        ({("a", Path("b")): 1}, r"a key of extra\[1\] is of type \w*Path"),
        ({"t": torch.ones(2, device="meta")}, r"extra\['t'\] is a tensor on the device meta"),
        (
            {"t": torch.eye(2).to_sparse()},
            r"extra\['t'\] is a tensor with the layout torch.sparse_coo; call to_dense\(\)",
        ),
        ({"dtype": torch.float32}, r"extra\['dtype'\] is of type dtype"),
    ],
    ids=lambda case: "" if isinstance(case, str) else "-".join(map(str, case)),
)
def test_row_08_anything_else_is_refused_when_saving(tmp_path, values, place):
    path = save_checkpoint(tmp_path / "checkpoint.pt", models=nn.Linear(1, 1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=place):
        save_checkpoint(path, models=nn.Linear(1, 1), extra=values)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match=place.partition("] ")[2] or place.partition("is of")[2]):
        write_weights_file(tmp_path / "other.pt", values)


@pytest.mark.parametrize("ending", ENDINGS)
def test_row_08_what_is_saved_can_be_loaded(tmp_path, ending):
    "Tensors of every kind: views, expanded, shared, empty, transposed, of all types."
    base = torch.arange(12.0).reshape(3, 4)
    content = {"view": base[1], "expanded": torch.ones(1, 3).expand(5, 3), "shared": base, "again": base}
    content |= {"transposed": base.T, "empty": torch.empty(0, 3), "scalar": torch.tensor(3)}
    types = (
        "float64",
        "float16",
        "bfloat16",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int64",
        "bool",
        "complex64",
        "float8_e4m3fn",
    )
    content |= {name: torch.ones(3).to(getattr(torch, name)) for name in types} | {
        "grad": nn.Parameter(torch.ones(2)),
        "step": base[0].requires_grad_() * 2,
    }
    path = write_weights_file(tmp_path / f"all{ending}", content)
    loaded = tensors(path)
    assert set(loaded) == set(content)
    for name, tensor in content.items():
        assert same(loaded[name], tensor.detach()), name
    if ending == ".safetensors":
        with pytest.raises(ValueError, match="epoch is of type int; a .safetensors file holds only tensors"):
            write_weights_file(path, {"epoch": 3})
        assert set(tensors(path)) == set(content)


@pytest.mark.parametrize("name", ["weights.bin", "weights", "weights.PT.gz"])
def test_row_08_other_endings_are_refused_before_anything_is_made(tmp_path, name):
    with pytest.raises(ValueError, match="must end in .pt, .pth or .safetensors"):
        write_weights_file(tmp_path / "new" / name, OLD)
    assert not list(tmp_path.iterdir())


# Row 9: wrong shapes, wrong classes


def test_row_09_wrong_shapes_name_file_tensor_shapes_and_classes(tmp_path):
    path = save_model(TinyVGG(**ARGUMENTS), tmp_path, "food.pt", INFO)
    animals = ["cat", "dog", "eel", "fox", "gnu"]
    other = TinyVGG(**{**ARGUMENTS, "output_shape": 5})
    kept = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ModelFileError) as caught:
        load_weights(other, path, strict=True, class_names=animals)
    parts = (
        "food.pt",
        "classifier.1.weight",
        "(3, 32)",
        "(5, 32)",
        "(3,)",
        "(5,)",
        "pizza, steak, sushi",
        "cat, dog, eel, fox, gnu",
    )
    for part in parts:
        assert part in str(caught.value), part
    assert same(dict(other.state_dict()), kept)
    report = load_weights(other, path, class_names=animals)
    assert report.mismatched_shapes == {"classifier.1.weight": ((3, 32), (5, 32)), "classifier.1.bias": ((3,), (5,))}
    assert "pizza, steak, sushi" in repr(report) and "cat, dog, eel" in repr(report)


def test_row_09_checkpoints_say_the_same(tmp_path):
    path = save_checkpoint(tmp_path / "food.pt", models=nn.Linear(4, 3), extra={"class_names": CLASSES})
    with pytest.raises(ModelFileError) as caught:
        load_checkpoint(path, models=nn.Linear(4, 2), class_names=["cat", "dog"])
    parts = (
        "food.pt",
        "weight (3, 4), in the model (2, 4)",
        "bias (3,), in the model (2,)",
        "pizza, steak, sushi",
        "cat, dog",
    )
    for part in parts:
        assert part in str(caught.value), part
    swapped = ["steak", "pizza", "sushi"]  # every shape fits, and every pizza would be a steak
    model = nn.Linear(4, 3)
    kept = model.weight.detach().clone()
    with pytest.raises(ModelFileError, match="food.pt.*there: pizza, steak, sushi.*here: steak, pizza, sushi"):
        load_checkpoint(path, models=model, class_names=swapped)
    assert torch.equal(model.weight, kept)
    load_checkpoint(path, models=model, class_names=CLASSES)
    assert not torch.equal(model.weight, kept)


def test_row_09_a_description_that_does_not_fit_its_weights(tmp_path):
    model = TinyVGG(**ARGUMENTS)
    def info(names=CLASSES, **arguments):
        return ModelInfo("tinyvgg", {**ARGUMENTS, **arguments}, names, INFO.transform)

    liars = {
        "hidden_units": (info(hidden_units=5), ["conv_block_1.0.weight", "[2, 1, 3, 3]", "[5, 1, 3, 3]"]),
        "outputs": (info(output_shape=4), ["classifier.1.weight", "[3, 32]", "[4, 32]", "pizza, steak, sushi"]),
        "names": (info(["zero", "one"]), ["gives (1, 3) for one image", "2 class names: zero, one"]),
        "huge": (info(hidden_units=100_000), ["conv_block_1.0.weight", "[100000, 1, 3, 3]"]),
    }
    for name, (description, parts) in liars.items():
        for ending in ENDINGS:
            path = tmp_path / f"{name}{ending}"
            with pytest.raises(ValueError, match="info does not fit the model"):  # so somebody else has written it
                save_model(model, tmp_path, path.name, description)
            content = {"format": "pytorch_course model 2", "info": description.to_dict()}
            if ending == ".safetensors":
                write_weights_file(path, model.state_dict(), {**content, "info": json.dumps(content["info"])})
            else:
                write_weights_file(path, {**content, "state_dict": model.state_dict()})
            message = " ".join(str(pytest.raises(ModelFileError, load_model, path).value).split())
            for part in [path.name, *parts]:
                assert part in message, (part, message)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
