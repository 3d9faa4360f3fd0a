"""More than ten thousand broken and hostile model files: one kind of error comes out, and nothing else happens.

No code of the file runs, no file is written, no process or connection is started, memory stays bounded.
The same files every time: the mutations follow from a seed.
"""
import io
import json
import os
import pickle
import random
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from pytorch_course.checkpoint_files import load_checkpoint, save_checkpoint
from pytorch_course.images import ImageTransform
from pytorch_course.model import register_model
from pytorch_course.save_load import ModelInfo, load_model, save_model
from pytorch_course.transfer_weights import load_weights
from pytorch_course.weights_files import ModelFileError, explain_file_errors, read_weights_file, write_weights_file


@register_model
class OneWeight(nn.Module):
    "The smallest classifier: one pixel in, one number out."

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1))

    def forward(self, x):
        return x.flatten(1) * self.weight


CASES = {
    "bytes": 6000,
    "pieces": 4000,
    "instructions": 4000,
    "archive": 3000,
    "header": 4000,
    "description": 1000,
}  # 22,000
OPCODES = b"(.012FIJKLMNPQRSTUVXabcdeghijloqrstup" + bytes(
    [0x80, 0x81, 0x82, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8B, 0x8C, 0x8E, 0x8F, 0x90, 0x92, 0x93, 0x94, 0x95, 0x96]
)
MEMORY = 400 << 20  # so many bytes more than before are too many; the files have less than 20 kB

# What a process can do to the world, as Python's audit events tell it.
ACTIONS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.putenv",
    "subprocess.Popen",
    "socket.connect",
    "shutil.",
    "ctypes.",
    "exec",
    "compile",
    "import",
    "pickle.find_class",
    "builtins.input",
)
watching, seen = False, []


def watch(event, args):
    if not watching: return
    writes = event == "open" and (
        set(str(args[1])) & set("wax+") or isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )
    if writes or event.startswith(ACTIONS):
        seen.append((event, str(args)[:200]))


class Hostile:
    "A pickle that calls a function."

    def __init__(self, function, *args):
        self.call = function, args
    def __reduce__(self):
        return self.call


def instructions_of(value) -> bytes:
    "A pickle in the protocol of PyTorch, without the first and the last opcode."
    return pickle.dumps(value, protocol=2)[2:-1]


class Fuzzer:
    "Small good files, and ways to break them."

    def __init__(self, folder):
        self.folder, self.canary = folder, folder / "canary"
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.rand(1, 2)).sum().backward()
        optimizer.step()
        self.info = ModelInfo(
            "neuralnetwork", {"image_size": 1, "output_shape": 2}, ["a", "b"], ImageTransform(image_size=1, channels=1)
        )
        small = {"w": torch.rand(2, 3), "b": torch.rand(2).half(), "n": torch.tensor(3)}
        paths = [write_weights_file(folder / "bare.pt", small), write_weights_file(folder / "bare.safetensors", small)]
        description = ModelInfo("oneweight", {}, ["a"], ImageTransform(image_size=1, channels=1))
        paths += [
            save_model(OneWeight(), folder, "model.pt", description),
            save_model(OneWeight(), folder, "model.safetensors", description),
        ]
        paths.append(
            save_checkpoint(
                folder / "checkpoint.pt",
                models=model,
                optimizers=optimizer,
                extra={"epoch": 1, "history": [0.5, 0.25]},
            )
        )
        self.good = {path.name: path.read_bytes() for path in paths}
        for path in paths:
            path.unlink()
        self.zipped = {name: self.entries(content) for name, content in self.good.items() if name.endswith(".pt")}
        self.hostile = [instructions_of(Hostile(*call)) for call in self.calls()]

    def entries(self, content) -> dict[str, bytes]:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def calls(self):
        target = str(self.canary)
        yield from [
            (os.system, f"touch {target}"),
            (os.mkdir, target),
            (open, target, "w"),
            (exec, f"open({target!r}, 'w')"),
            (eval, f"open({target!r}, 'w')"),
        ]
        yield from [
            (Path.touch, Path(target)),
            (bytearray, 1 << 40),
            (bytearray, 3 << 30),
            (torch.zeros, 1 << 16, 1 << 16),
            (getattr, Path, "touch"),
            (__import__, "antigravity"),
        ]
        yield from [
            (torch.UntypedStorage, 1 << 40),
            (torch.UntypedStorage, 1 << 32),
            (torch.Tensor, 1 << 17, 1 << 17),
            (torch.device, "cuda:99"),
            (torch.Size, [1 << 62, 1 << 62]),
        ]
        yield from [
            (torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (1 << 40,), (1,), False),
            (set, [1, 2]),
            (complex, "1j"),
            (pickle.loads, b"cos\nsystem\n."),
        ]

    def bytes(self, rng) -> tuple[str, bytes]:
        "Some bytes are other bytes."
        name, content = rng.choice(list(self.good.items()))
        content = bytearray(content)
        for _ in range(rng.choice([1, 1, 1, 2, 4, 16, 64])):
            place = rng.randrange(len(content))
            content[place] = rng.choice([content[place] ^ 1 << rng.randrange(8), rng.randrange(256), 0, 255])
        return name, bytes(content)

    def pieces(self, rng):
        "Something is cut off, missing, twice, or from another file."
        (name, a), (_, b) = rng.sample(list(self.good.items()), 2)
        i, j = sorted(rng.sample(range(len(a) + 1), 2))
        k, m = sorted(rng.sample(range(len(b) + 1), 2))
        return name, rng.choice(
            [
                a[:i],
                a[i:],
                a[:i] + a[j:],
                a[:j] + a[i:],
                a[:i] + b[k:],
                a[:i] + b[k:m] + a[i:],
                a[:i] + b[k:m] + a[j:],
                b[:k] + a[i:],
                a + b,
                a + a[:i],
                bytes(i) + a,
            ]
        )

    def packed(self, entries, **attributes) -> bytes:
        "A zip file with right checksums."
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in entries.items():
                member = zipfile.ZipInfo(name)
                for key, value in attributes.get(name, {}).items():
                    setattr(member, key, value)
                archive.writestr(member, content)
        return file.getvalue()

    def instructions(self, rng):
        "The pickle is another one, and its checksum is right."
        name, entries = rng.choice(list(self.zipped.items()))
        entries = dict(entries)
        (where,) = (entry for entry in entries if entry.endswith("/data.pkl"))
        code = bytearray(entries[where])
        for _ in range(rng.choice([1, 1, 2, 4])):
            place = rng.randrange(2, len(code))
            number = rng.choice([0, -1, 1 << 31, 1 << 62, -(1 << 63), 10**6])
            inserted = rng.choice(
                [
                    rng.choice(self.hostile),
                    rng.choice(self.hostile) + b"0",
                    bytes([rng.choice(OPCODES)]),
                    b"J" + struct.pack("<i", max(-(1 << 31), min(number, (1 << 31) - 1))),
                    b"\x8a\x08" + number.to_bytes(8, "little", signed=True)
                    if abs(number) < 1 << 63
                    else b"\x8a\xff" + bytes(255),
                    b"r\xff\xff\xff\xff",
                    b"j\xff\xff\xff\xff",
                    b"X\xff\xff\xff\x7f",
                    b"T\xff\xff\xff\x7f",
                    b"\x8d" + b"\xff" * 8,
                    b"\x96" + b"\xff" * 8,
                    b"](h\x00h\x00h\x00e" * rng.choice([1, 30]),
                    b"]q\x00(" + b"h\x00" * 5 + b"e",
                    b"(" * 3000,
                    b"]" * 3000,
                    b"}" * 3000 + b"a" * 3000,
                    b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
                    b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R",
                    b"ctorch\nUntypedStorage\nJ\xff\xff\xff\x7f\x85R",
                    bytes(rng.randrange(256) for _ in range(4)),
                ]
            )
            how = rng.randrange(4)
            if how == 0:
                code[place] = rng.randrange(256)
            elif how == 1:
                code[place:place] = inserted
            elif how == 2:
                code[place : place + len(inserted)] = inserted
            else:
                del code[place : place + rng.randrange(1, 9)]
        entries[where] = bytes(code)
        return name, self.packed(entries)

    def laughs(self, depth) -> bytes:
        "A list of two lists, which are the same list of two lists ...: printed, it would fill the disk."
        code = b"\x80\x02]q\x00K\x07a"
        for _ in range(depth):
            code += b"]q\x01(h\x00h\x00eq\x00"
        return code + b"}X\x01\x00\x00\x00wh\x00s."

    def archive(self, rng):
        "Entries are renamed, missing, swapped, twice, compressed, encrypted, folders, or lie about their size."
        name, entries = rng.choice(list(self.zipped.items()))
        entries = dict(entries)
        one, other = rng.sample(list(entries), 2)
        how = rng.randrange(9)
        attributes = {}
        if how == 0:
            entries[one], entries[other] = entries[other], entries[one]
        elif how == 1:
            del entries[one]
        elif how == 2:
            entries[one] = entries[one][: rng.randrange(len(entries[one]) + 1)] + bytes(rng.randrange(9))
        elif how == 3:
            entries[
                rng.choice(
                    ["../x", "/etc/x", one + "/x", "data.pkl", "x/data.pkl", "", "a/constants.pkl", "a/.data/x", "\0"]
                )
            ] = entries.pop(one)
        elif how == 4:
            attributes = {
                one: {"compress_type": rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])}
            }
        elif how == 5:
            entries[one] = bytes(20_000)
            attributes = {one: {"compress_type": zipfile.ZIP_DEFLATED}}
        elif how == 6:
            attributes = {one: {"external_attr": rng.getrandbits(32)}}
        elif how == 7:
            entries[next(entry for entry in entries if entry.endswith("/data.pkl"))] = self.laughs(rng.randrange(100))
        content = bytearray(self.packed(entries, **attributes))
        if how == 8 or rng.random() < 0.3:  # numbers in the tables, anywhere: sizes, offsets, flags, methods
            starts = [
                at
                for mark in (b"PK\1\2", b"PK\3\4", b"PK\5\6")
                for at in range(len(content) - 20)
                if content.startswith(mark, at)
            ]
            place = rng.choice(starts) + rng.randrange(4, 46)
            number = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\1\0\0\0", rng.randbytes(4)])
            content[place : place + 4] = number
        return name, bytes(content)

    def header(self, rng):
        "A `.safetensors` file with a header made by hand."
        name = rng.choice(["bare.safetensors", "model.safetensors"])
        good = self.good[name]
        (length,) = struct.unpack("<Q", good[:8])
        header, body = json.loads(good[8 : 8 + length]), good[8 + length :]
        tensors = [key for key in header if key != "__metadata__"]
        absurd = [
            0,
            1,
            -1,
            7,
            1 << 31,
            1 << 32,
            1 << 62,
            (1 << 64) - 1,
            1 << 64,
            10**30,
            1.5,
            "1",
            None,
            [],
            True,
            len(body),
            len(body) + 1,
        ]
        for _ in range(rng.choice([1, 1, 2, 3])):
            entry = header.get(rng.choice(tensors))
            if not isinstance(entry, dict): continue
            how = rng.randrange(9)
            if how == 0:
                entry["data_offsets"] = rng.choices(absurd, k=rng.choice([1, 2, 2, 2, 3]))
            elif how == 1:
                entry["shape"] = rng.choices(absurd, k=rng.randrange(5))
            elif how == 2:
                entry["dtype"] = rng.choice(
                    ["F64", "F16", "BF16", "F8_E5M2", "F4", "C64", "BOOL", "U64", "X", "", None, 3, "f32"]
                )
            elif how == 3:
                header[rng.choice([*tensors, "__metadata__", "new", "a" * 5000, "\0", "../x"])] = rng.choice(
                    [entry, {}, None, [], "x", {"dtype": "F32"}]
                )
            elif how == 4:
                header["__metadata__"] = rng.choice(
                    [
                        None,
                        [],
                        {"format": 1},
                        {"sha256": "x"},
                        {"format": "pytorch_course x"},
                        {"format": "pt", "info": "{"},
                        {},
                        {"x": {}},
                    ]
                )
            elif how == 5:
                entry[rng.choice(["shape", "dtype", "data_offsets"])] = rng.choice(absurd)
            elif how == 6:
                if entry:
                    entry.pop(rng.choice(list(entry)))
            elif how == 7:
                entry["shape"], entry["data_offsets"] = [0, 1 << 40], [0, 0]
            else:
                header[f"empty{rng.randrange(9)}"] = {
                    "dtype": "F32",
                    "shape": [rng.choice([0, 1 << 62])] * rng.randrange(1, 9),
                    "data_offsets": [0, 0],
                }
        text = json.dumps(header).encode()
        text = rng.choice(
            [text] * 8
            + [
                text[: rng.randrange(len(text))],
                text.replace(b":", b"::", 1),
                b"[" * 5000,
                b'{"a":' * 3000,
                text.replace(b'"F32"', b'"F\xff2"'),
                b'{"a":1e999}',
                text[:-1] + b"," + text[1:],
            ]
        )
        length = rng.choice(
            [len(text)] * 10
            + [
                0,
                1,
                1 << 63,
                (1 << 64) - 1,
                100_000_001,
                max(0, len(text) - 1),
                len(text) + 1,
                len(text) + len(body) + 1,
            ]
        )
        return name, struct.pack("<Q", length) + text + rng.choice(
            [body] * 6 + [b"", body[:-1], body + b"\0", body * 2]
        )

    def description(self, rng):
        "The checksums are right, the weights too; what the file says about them is a lie."
        odd = [
            0,
            -1,
            1,
            2,
            3,
            28,
            1 << 20,
            1 << 31,
            1 << 62,
            10**30,
            -(1 << 63),
            1.5,
            float("nan"),
            float("inf"),
            "",
            "x" * 500,
            None,
            [],
            {},
            [1] * 500,
            True,
            {"a": {"b": []}},
        ]
        info = json.loads(
            json.dumps(
                self.info.to_dict()
                if rng.random() < 0.5
                else ModelInfo("oneweight", {}, ["a"], ImageTransform(1, 1)).to_dict()
            )
        )
        for _ in range(rng.choice([1, 1, 2, 3])):
            place = rng.choice([info, info, info.get("model_kwargs"), info.get("transform")])
            if not isinstance(place, dict): continue
            key = rng.choice(
                [
                    *place,
                    *rng.sample(
                        [
                            "image_size",
                            "hidden_units",
                            "input_shape",
                            "output_shape",
                            "channels",
                            "mean",
                            "class_names",
                            "__class__",
                            "self",
                        ],
                        2,
                    ),
                ]
            )
            if rng.random() < 0.15:
                place.pop(key, None)
            else:
                place[key] = rng.choice([*odd, "tinyvgg", "Cifar10Net", "cnn", "neuralnetwork", "os.system", "../x"])
        model = OneWeight()
        weights = dict(model.state_dict())
        path = self.folder / "made"
        if rng.random() < 0.5:
            write_weights_file(
                path.with_suffix(".safetensors"),
                weights,
                {
                    "format": "pytorch_course model 2",
                    "info": rng.choice([json.dumps(info)] * 9 + ["{", "[]", "3", "[" * 9999]),
                },
            )
            return "made.safetensors", path.with_suffix(".safetensors").read_bytes()
        state = rng.choice(
            [weights] * 6 + [{}, [], None, {"weights": 1}, {**weights, "bias": [1.0]}, {3: torch.ones(1)}]
        )
        write_weights_file(
            path.with_suffix(".pt"),
            {
                "format": "pytorch_course model 2",
                "info": info if rng.random() < 0.9 else rng.choice(odd),
                "state_dict": state,
            },
        )
        return "made.pt", path.with_suffix(".pt").read_bytes()


def resident() -> int:
    "The most memory that this process has ever had, in bytes."
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    "Everything that is imported late is imported before anybody watches."
    fuzzer = Fuzzer(tmp_path_factory.mktemp("fuzz"))
    model = nn.Linear(2, 2)
    for name, content in [
        *fuzzer.good.items(),
        ("bad.safetensors", b"x"),
        ("bad.pt", fuzzer.packed({"a/data.pkl": b"\x80\x02" + fuzzer.hostile[0] + b"."})),
    ]:
        path = fuzzer.folder / name
        path.write_bytes(content)
        for load in (
            reading,
            load_model,
            lambda path: load_weights(model, path),
            lambda path: load_checkpoint(path, models=model),
        ):
            try:
                load(path)
            except ModelFileError:
                pass
        path.unlink()
    if not getattr(sys, "fuzz_is_watched", False):
        sys.addaudithook(watch)
        sys.fuzz_is_watched = True
    return fuzzer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CASES)
def test_only_model_file_errors_come_out(fuzzer, kind):
    global watching
    rng, refused = random.Random(f"weights {kind}"), 0
    model = nn.Linear(2, 2)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before, wrong = (resident() if os.name == "posix" else 0), []
    for case in range(CASES[kind]):
        name, content = getattr(fuzzer, kind)(rng)
        for file in fuzzer.folder.iterdir():
            file.unlink()
        path = fuzzer.folder / name
        path.write_bytes(content)
        load = [
            reading,
            load_model,
            lambda path: load_weights(model, path),
            lambda path: load_checkpoint(path, models=model),
        ][0 if case % 2 else rng.randrange(4)]
        if kind == "description":
            load = load_model
        seen.clear()
        watching = True
        try:
            load(path)
        except ModelFileError as error:
            refused += 1
            if name not in str(error) or "\n" in str(error) or len(str(error)) > 5000 or "weights_only" in str(error):
                wrong.append((case, str(error)[:300]))
        except Exception as error:
            wrong.append((case, name, repr(error)[:300]))
        finally:
            watching = False
        if seen or [file.name for file in fuzzer.folder.iterdir()] != [name] or path.read_bytes() != content:
            wrong.append((case, name, "it did something", list(seen)))
        model.load_state_dict(kept)
    assert not wrong, (len(wrong), wrong[:10])
    assert refused > CASES[kind] / 2
    if os.name == "posix":
        assert resident() - before < MEMORY, f"{(resident() - before) >> 20} MiB more"


def reading(path):
    with explain_file_errors(path):
        return read_weights_file(path)


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: torch.zeros(1).expand(1 << 20, 1 << 20),
            "a tensor of shape (1048576, 1048576), but not so many numbers",
        ),
        (lambda: torch.ones(1 << 20, 1 << 20, device="meta"), "on the device meta"),
        (
            lambda: torch.sparse_coo_tensor(size=(1 << 20, 1 << 20), check_invariants=True),
            "the layout torch.sparse_coo",
        ),
        (lambda: bytearray(10), "its instructions are not those that PyTorch writes"),
    ],
    ids=["expanded", "meta", "sparse", "bytearray"],
)
@pytest.mark.filterwarnings("ignore")
def test_small_files_that_ask_for_much(fuzzer, tmp_path, make, words):
    torch.save({"w": make()}, tmp_path / "small.pt")
    assert (tmp_path / "small.pt").stat().st_size < 5000
    with pytest.raises(ModelFileError) as caught:
        reading(tmp_path / "small.pt")
    assert words in str(caught.value)


@pytest.mark.parametrize("depth", [20, 100, 900])
def test_nested_lists_are_counted_not_printed(fuzzer, tmp_path, depth):
    (tmp_path / "laughs.pt").write_bytes(
        fuzzer.packed(
            {"laughs/data.pkl": fuzzer.laughs(depth), "laughs/version": b"3\n", "laughs/byteorder": b"little"}
        )
    )
    with pytest.raises(ModelFileError, match="nested in a way|recursion"):
        reading(tmp_path / "laughs.pt")


def test_the_watchdog_is_awake(fuzzer):
    "What the payloads in these files would do is seen when somebody does it."
    global watching
    seen.clear()
    watching = True
    try:
        pickle.loads(b"\x80\x02" + fuzzer.hostile[1] + b".")
    finally:
        watching = False
    assert fuzzer.canary.is_dir() and seen
    fuzzer.canary.rmdir()


def test_there_are_more_than_ten_thousand():
    assert sum(CASES.values()) >= 10_000
