"""Thousands of damaged and malicious archives: only our own errors come out, nothing is left or written elsewhere.

Half of them are whole archives with hostile entries, the other half has been cut, spliced and flipped on top. Every
archive follows from its number, so a failure can be repeated with `python tests/test_fuzz.py zip 1234`; `FUZZ_ROUNDS`
and `FUZZ_SEED` make a longer campaign.
"""
import gzip
import os
import random
import re
import stat
import struct
import sys
import tarfile
import tempfile
import time
import tracemalloc
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import pytest

from pytorch_course.archives import MAX_COMPRESSION_RATIO, extract_tar, extract_zip

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", 6000))  # of each kind
SEED = os.environ.get("FUZZ_SEED", "0")

HARMLESS = [
    "a.txt",
    "train/cat/1.txt",
    "train/dog/2.txt",
    "train/dog/",
    "./b/c.txt",
    "test//x.txt",
    ".hidden",
    "__MACOSX/._a",
    "caf\u00e9.txt",
]
HOSTILE = [
    "../evil.txt",
    "a/../../evil.txt",
    "..\\evil.txt",
    "{outside}/evil.txt",
    "/{outside}/evil.txt",
    "C:\\evil.txt",
    "C:evil.txt",
    "\\\\host\\evil.txt",
    "",
    ".",
    "..",
    "/",
    "...",
    "a/..",
    "a.txt/b",
    "A.TXT",
    "cafe\u0301.txt",
    "a.txt.",
    "x" * 300,
    "y/" * 200 + "z",
    "z" * 5000,
    "a\nb.txt",
    "a\0b.txt",
    "mine.txt",
    "mine.txt/x",
    "canary",
    "\udcff\udcfe.txt",
    "con",
    "nul.txt",
]
NUMBERS = [0, 1, 5, 511, 512, 513, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


def some_name(random, outside):
    name = random.choice(HARMLESS if random.random() < 0.75 else HOSTILE)
    return name.replace("{outside}", str(outside))


def some_content(random):
    kind = random.random()
    if kind < 0.02: return bytes(3_000_000)  # a bomb
    return (
        b""
        if kind < 0.2
        else random.randbytes(random.randrange(60))
        if kind < 0.6
        else b"word " * random.randrange(300)
    )


def names_once(random, outside, count):
    "Names for the entries of an archive, mostly without duplicates."
    names = [some_name(random, outside) for _ in range(count)]
    return names if random.random() < 0.2 else list(dict.fromkeys(names))


# --- zip: written by hand, so that every field can lie while the rest is right ---


def zip_entry(random, name, content, offset):
    "Local header with data, and the entry for the table of contents."
    method = random.choice([0, 8, 8, 8, 8, 8, 8, 12, 14, 9, 99] if random.random() < 0.1 else [0, 8])
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(content) + packer.flush() if method == 8 else content
    crc, flags = zlib.crc32(content), 0x800
    packed, size = len(data), len(content)
    mode, extra = stat.S_IFREG | 0o644, b""
    lie = random.random()
    if lie < 0.03:
        crc ^= 1 << random.randrange(32)
    elif lie < 0.06:
        size = random.choice(NUMBERS)
    elif lie < 0.09:
        packed = random.choice(NUMBERS)
    elif lie < 0.12:
        flags ^= 1 << random.randrange(16)
    elif lie < 0.15:
        mode = (
            random.choice(
                [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFDIR, 0, 0xF000]
            )
            | 0o777
        )
    elif lie < 0.18:
        extra = struct.pack(
            "<HH", random.choice([1, 0x7075, 0x5455, 0xCAFE]), random.choice([0, 4, 8, 24, 0xFFFF])
        ) + random.randbytes(8)
    elif lie < 0.20:
        offset = random.choice(NUMBERS)
    encoded = name.encode("utf-8", "surrogateescape")[:65535]
    local_name = random.choice([encoded, encoded, encoded[::-1]]) if random.random() < 0.05 else encoded
    fields = (flags, method, 0, 0x21, crc, packed, size)

    def clip(number):
        return number & 0xFFFFFFFF

    local = (
        struct.pack("<4s5H3I2H", b"PK\3\4", 20, *fields[:4], *map(clip, fields[4:]), len(local_name), len(extra))
        + local_name
        + extra
        + data
    )
    central = struct.pack(
        "<4s6H3I5H2I",
        b"PK\1\2",
        3 << 8 | 20,  # made on Unix
        20,
        *fields[:4],
        *map(clip, fields[4:]),
        len(encoded),
        len(extra),
        0,
        0,
        0,
        clip(mode << 16),
        clip(offset),
    )
    return local, central + encoded + extra


def some_zip(random, outside):
    body, table = b"", b""
    count = 0
    for name in names_once(random, outside, random.randrange(1, 6)):
        local, central = zip_entry(random, name, b"" if name.endswith("/") else some_content(random), len(body))
        body, table = body + local, table + central
        count += 1
    end = [0, 0, count, count, len(table), len(body), 0]
    if random.random() < 0.05:
        end[random.randrange(7)] = random.choice(NUMBERS)
    return (
        body
        + table
        + struct.pack(
            "<4s4H2IH",
            b"PK\5\6",
            *(number & 0xFFFF for number in end[:4]),
            *(number & 0xFFFFFFFF for number in end[4:6]),
            end[6] & 0xFFFF,
        )
    )


# --- tar: headers with checksums that are right, whatever the fields say ---

TYPES = [
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CONTTYPE,
    tarfile.AREGTYPE,
    tarfile.DIRTYPE,
]
TYPES += [
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.GNUTYPE_SPARSE,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    b"Z",
    b"\xff",
]
PAX = [
    "path",
    "linkpath",
    "size",
    "mtime",
    "uid",
    "GNU.sparse.map",
    "GNU.sparse.size",
    "GNU.sparse.major",
    "GNU.sparse.name",
    "hdrcharset",
    "charset",
    "",
]
PAX_VALUES = [
    "../evil.txt",
    "-1",
    "0",
    "-512",
    "99999999999999999999",
    "1e999",
    "nan",
    "1,2,3",
    "BINARY",
    "{outside}/evil.txt",
    "a\0b",
    "\u00e9",
]


def sealed(block):
    "The same header with the right checksum."
    total = sum(block[:148]) + sum(block[156:]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


def tar_header(random, name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo("x")
    info.size, info.type = size, kind
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    encoded = name.encode("utf-8", "surrogateescape")[:100]
    block[:100] = encoded + bytes(100 - len(encoded))
    lie = random.random()
    if lie < 0.10:  # a field of digits, in decimal, octal or binary, perhaps negative
        start, width = random.choice([(100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (329, 8), (337, 8)])
        value = random.choice(
            [
                b"%o" % random.choice(NUMBERS),
                b"-1",
                b"9" * width,
                b"\x80" + random.randbytes(3),
                b"\xff" * width,
                b"\xff" * (width - 2) + b"\xfe\x00",
                b"",
            ]
        )
        block[start : start + width] = value[:width] + bytes(max(0, width - len(value)))
    elif lie < 0.15:
        block[156:157] = random.choice(TYPES)
    elif lie < 0.18:
        block[random.randrange(500)] = random.randrange(256)
    elif lie < 0.20:
        block[345:375] = b"../../../../../../../../../../"  # the prefix of the name
    return sealed(bytes(block))


def padded(content):
    return content + bytes(-len(content) % 512)


def pax_record(random, outside):
    key, value = random.choice(PAX), random.choice(PAX_VALUES).replace("{outside}", str(outside))
    body = f" {key}={value}\n".encode()
    length = len(body) + 2 if len(body) + 2 < 100 else len(body) + 3
    if random.random() < 0.15:
        length = random.choice([0, 1, 5, 999, 10**9])
    return str(length).encode() + body


def some_tar(random, outside):
    plain = b""
    for name in names_once(random, outside, random.randrange(1, 6)):
        content = some_content(random)
        if random.random() < 0.12 or len(name) > 100:  # a header for the next header
            special = random.choice(
                [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
            )
            text = name.encode("utf-8", "surrogateescape") + b"\0"
            if special in (tarfile.XHDTYPE, tarfile.XGLTYPE):
                text = b"".join(pax_record(random, outside) for _ in range(random.randrange(4)))
            plain += (tar_header(random, "pax", len(text), special) + padded(text)) * (
                500 if random.random() < 0.01 else 1
            )
        if name.endswith("/"):
            plain += tar_header(random, name, 0, tarfile.DIRTYPE)
        else:
            plain += tar_header(random, name, len(content)) + padded(content)
    return plain + bytes(1024 if random.random() < 0.9 else random.choice([0, 512, 20_000]))


# --- what the road does to them ---


def damaged(random, data):
    "Flip, overwrite, cut, repeat, insert, remove, swap: one to three times."
    data = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        if not data: break
        at, to = sorted(random.randrange(len(data) + 1) for _ in range(2))
        what = random.randrange(8)
        if what == 0:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        elif what == 1:
            data[random.randrange(len(data))] = random.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif what == 2:
            del data[at:]
        elif what == 3:
            data[at:at] = data[at : min(to, at + 2000)]
        elif what == 4:
            data[at:at] = random.randbytes(random.randrange(40))
        elif what == 5:
            del data[at : min(to, at + 600)]
        elif what == 6:
            data[at : at + 4] = struct.pack("<I", random.choice(NUMBERS))
        elif what == 7:
            data[:] = data[to:] + data[:to]
    return bytes(data)


def some_archive(kind, number, outside):
    chance = random.Random(f"{SEED} {kind} {number}")
    if kind == "zip":
        data = some_zip(chance, outside)
        return damaged(chance, data) if number % 2 else data
    plain = some_tar(chance, outside)
    if number % 4 == 1:
        plain = damaged(chance, plain)  # inside a gzip file that is in order
    packed = gzip.compress(plain, 6, mtime=0)
    return damaged(chance, packed) if number % 4 == 3 else packed


def snapshot(folder):
    "Names, kinds, sizes and times of change of everything below a folder."
    found, todo = {}, [str(folder)]
    while todo:
        for entry in os.scandir(todo.pop()):
            status = entry.stat(follow_symlinks=False)
            is_folder = stat.S_ISDIR(status.st_mode)
            found[entry.path] = (
                status.st_mode,
                0 if is_folder else status.st_size,
                0 if is_folder else status.st_mtime_ns,
            )
            if is_folder:
                todo.append(entry.path)
    return found


class Sandbox:
    "An archive, a target with a file of ours in it, and a place outside that hostile names point to."

    def __init__(self, folder, kind):
        self.folder, self.kind = folder, kind
        self.target, self.archive = folder / "inner" / "target", folder / "inner" / f"archive.{kind}"
        self.outside = folder / "outside"
        self.target.mkdir(parents=True)
        self.outside.mkdir()
        (self.target / "mine.txt").write_text("mine")
        if os.name == "posix":
            (self.target / "canary").symlink_to(self.outside)
        else:
            (self.target / "canary").mkdir()
        self.archive.touch()
        self.reasons, self.unpacked = {}, 0
        self.slowest = 0.0

    def make(self, number):
        data = some_archive(self.kind, number, self.outside)
        self.archive.write_bytes(data)
        return len(data)

    def run(self, number):
        "Unpack one archive into a new folder, now and then into the target, and look at everything."
        packed = self.make(number)
        self.look(self.target.with_name("new") if number % 16 else self.target, packed)

    def unpack(self, target):
        (extract_zip if self.kind == "zip" else extract_tar)(self.archive, target)

    def look(self, target, packed):
        before, start = snapshot(self.folder), time.perf_counter()
        try:
            self.unpack(target)
        except (ValueError, OSError) as error:
            message = str(error)
            assert message.startswith(f"cannot unpack {self.archive}: "), message
            assert "\n" not in message and "\0" not in message and len(message) < 3000, message
            assert snapshot(self.folder) == before, "a failure must leave no trace"
            reason = re.sub(
                r"""'.*?'|".*?"|\d[\d,]*|\(.*|/\S*""", "", message.removeprefix(f"cannot unpack {self.archive}: ")
            ).strip()
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
        else:
            after = snapshot(self.folder)
            assert {path: after.get(path) for path in before} == before, "nothing that was there may change"
            new = {path: status for path, status in after.items() if path not in before}
            for path, (mode, _, _) in new.items():
                inside = os.path.relpath(path, target).split(os.sep)
                assert inside == ["."] or not any(part.startswith(".") or part == "__MACOSX" for part in inside), path
                assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), path
            assert sum(size for _, size, _ in new.values()) <= max(1 << 20, MAX_COMPRESSION_RATIO * packed)
            self.unpacked += bool(new)
            for path in sorted(new, reverse=True):
                remove = os.rmdir if os.path.isdir(path) else os.unlink
                remove(path)
        self.slowest = max(self.slowest, time.perf_counter() - start)


@pytest.fixture
def folder(tmp_path):
    "In memory where that is possible: tens of thousands of small files take a minute on a slow disk."
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            yield Path(folder)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_damaged_and_malicious_archives(folder, kind):
    sandbox = Sandbox(folder, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(ROUNDS):
            try:
                sandbox.run(number)
            except BaseException as error:
                error.add_note(f"repeat with: FUZZ_SEED={SEED} python tests/test_fuzz.py {kind} {number}")
                raise
    print(
        f"{kind}: {sandbox.unpacked} of {ROUNDS} unpacked, slowest {sandbox.slowest:.2f} s",
        dict(sorted(sandbox.reasons.items(), key=lambda item: -item[1])),
    )
    # The archives must be neither all good nor all bad at first sight, or the test would look at nothing.
    assert 0.05 < sandbox.unpacked / ROUNDS < 0.7
    expected = {
        "damaged, or another kind of file",
        "points outside the archive",
        "is a link or a device, not a file",
        "two files have the same name,",
        "is not an empty folder; unpack into a new one",
        "and  are the same name on some systems",
        "unpacks to  bytes or more from",
    }
    assert not [reason for reason in expected if sandbox.reasons.get(reason, 0) < ROUNDS / 1000]
    assert sandbox.slowest < 20


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_memory_stays_small(folder, kind):
    "Whatever the headers claim and however far the content would unpack, it passes in small pieces."
    sandbox, peaks = Sandbox(folder, kind), []
    tracemalloc.start()
    try:
        for number in range(200):
            size = sandbox.make(number)
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            with suppress(ValueError, OSError):
                sandbox.unpack(folder / str(number))
            peaks.append(tracemalloc.get_traced_memory()[1] - before - 3 * size)
    finally:
        tracemalloc.stop()
    print(f"{kind}: at most {max(peaks):,} bytes")
    assert max(peaks) < 4 << 20


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(folder), sys.argv[1])
        sandbox.run(int(sys.argv[2]))
        print("unpacked" if sandbox.unpacked else sandbox.reasons)
