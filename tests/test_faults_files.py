"""Rows 18 to 39 of the table of faults: downloads, archives, folders and images as the world delivers them.

The numbers in the names are those of the rows. Servers are real ones on 127.0.0.1, killed processes are really killed.
"""
import gzip
import hashlib
import http.server
import io
import os
import shutil
import signal
import ssl
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from pytorch_course import archives, get_data as get_data_module, images
from pytorch_course.archives import extract_tar, extract_zip
from pytorch_course.data import ImageFolder, create_dataloaders
from pytorch_course.downloads import DownloadError, RemoteFile, download, file_hash
from pytorch_course.files import atomic_folder, atomic_write, remove_stale_files
from pytorch_course.get_data import get_data
from pytorch_course.images import ImageError, ImageTransform, open_image

BODY = bytes(range(256)) * 400  # 102,400 bytes
NOISE = np.random.default_rng(0).bytes(40_000)
RIGHT = "sha256:" + hashlib.sha256(BODY).hexdigest()
POSIX = os.name == "posix"
needs_links = pytest.mark.skipif(not POSIX, reason="links need special rights on Windows")


def everything(folder):
    "All files below a folder with their content, links with their target."
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


# --- 18 to 25: downloads ---


class Handler(http.server.BaseHTTPRequestHandler):
    "Plays the part that the address names."

    def do_GET(self):
        self.server.asked.append(self.path)
        part = self.path.strip("/").split("/")[0]
        getattr(self, f"play_{part}", self.play_good)()

    def answer(self, body=BODY, status=200, length="right", **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(len(body)) if length == "right" else length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def play_good(self):
        self.answer()
    def play_cut(self):
        self.answer(BODY[:50_000], length=str(len(BODY)))
    def play_cut_once(self):
        if self.server.asked.count(self.path) == 1:
            self.play_cut()
        else:
            self.answer()
    def play_long(self):
        self.answer(BODY + b"more", length=str(len(BODY) + 4))
    def play_short_length(self):
        self.answer(length=str(len(BODY) - 1))
    def play_no_length(self):
        self.answer(length=None)
    def play_cut_no_length(self):
        self.answer(BODY[:50_000], length=None)
    def play_odd_length(self):
        self.answer(length={"words": "many", "negative": "-5", "huge": "9" * 40}[Path(self.path).parent.name])
    def play_missing(self):
        self.answer(b"<html>Not found</html>", status=404)
    def play_broken(self):
        self.answer(b"", status=503)
    def play_login(self):
        self.answer(b"\n\n<!DOCTYPE html>\n<HTML><body>Welcome! Please log in.</body></HTML>")
    def play_other(self):
        self.answer(BODY[::-1])
    def play_to_http(self):
        self.answer(b"", status=302, Location=f"http://{self.server.elsewhere}/good/data.bin")
    def play_loop(self):
        self.answer(b"", status=302, Location=self.path)
    def play_empty(self):
        self.close_connection = True

    def play_stall(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:1000])
        self.wfile.flush()
        self.server.closing.wait(20)

    def play_silent(self):
        self.server.closing.wait(20)

    def play_slow(self):  # most of it, then nothing until the test goes on
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        most = len(self.server.body) * 3 // 4
        self.wfile.write(self.server.body[:most])
        self.wfile.flush()
        self.server.go_on.wait(20)
        self.wfile.write(self.server.body[most:])

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def __init__(self, host="127.0.0.1"):
        super().__init__((host, 0), Handler)
        self.asked, self.elsewhere = [], ""
        self.body = BODY
        self.closing, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def handle_error(self, request, client_address):
        pass  # the client has gone

    def url(self, part):
        return f"http://127.0.0.1:{self.server_port}/{part}/data.bin"

    def close(self):
        self.closing.set()
        self.go_on.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch):
    for name in (
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "PYTORCH_COURSE_MIRROR",
    ):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def no_pause(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def fails(server, part, folder, contains, attempts=1, hash=RIGHT, **kwargs):
    "The download fails with this text and leaves nothing behind; returns the whole message."
    with pytest.raises(DownloadError) as caught:
        download(RemoteFile(server.url(part), hash, **kwargs), folder, attempts=attempts, timeout=(2, 0.3))
    message = str(caught.value)
    assert contains in message and "\n" not in message
    assert everything(folder) == {}
    return message


def test_row_18_download_cut(server, tmp_path, no_pause):
    fails(server, "cut", tmp_path, "the connection broke off", attempts=3)
    assert len(server.asked) == 3 and no_pause == [1, 2]  # bounded, with growing pauses


def test_row_18_second_attempt_succeeds(server, tmp_path, no_pause):
    path = download(RemoteFile(server.url("cut_once"), RIGHT), tmp_path)
    assert path.read_bytes() == BODY and len(server.asked) == 2
    assert list(everything(tmp_path)) == ["data.bin"]


def test_row_18_the_old_file_survives_a_cut(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"an older version")
    with pytest.raises(DownloadError):
        download(RemoteFile(server.url("cut"), RIGHT), tmp_path, attempts=1)
    assert everything(tmp_path) == {"data.bin": b"an older version"}


def test_row_18_more_than_expected(server, tmp_path):
    fails(server, "long", tmp_path, "expected " + RIGHT[7:])
    fails(server, "good", tmp_path, "sends more than 1,000 bytes", max_bytes=1000)
    fails(server, "no_length", tmp_path, "sends more than 1,000 bytes", max_bytes=1000)
    fails(
        server, "stall", tmp_path, "sends more than 10,000 bytes", max_bytes=10_000
    )  # the announced length is enough to know


def test_row_19_without_length(server, tmp_path):
    fails(server, "cut_no_length", tmp_path, "expected " + RIGHT[7:])
    assert download(RemoteFile(server.url("no_length"), RIGHT), tmp_path).read_bytes() == BODY


def test_row_19_length_that_is_wrong(server, tmp_path):
    fails(server, "short_length", tmp_path, "expected " + RIGHT[7:])


@pytest.mark.parametrize("kind", ["words", "negative", "huge"])
def test_row_19_length_that_is_no_number(server, tmp_path, kind):
    "The file is whole in spite of it, or the download fails as any other; no other exception comes out."
    try:
        path = download(RemoteFile(server.url(f"odd_length/{kind}"), RIGHT), tmp_path, attempts=1, timeout=(2, 0.3))
    except DownloadError:
        assert everything(tmp_path) == {}
    else:
        assert path.read_bytes() == BODY


def test_row_20_page_not_found(server, tmp_path, no_pause):
    fails(server, "missing", tmp_path, "the server answered 404 Not Found", attempts=3)
    assert len(server.asked) == 1 and no_pause == []  # asking again would not help


def test_row_20_server_in_trouble(server, tmp_path, no_pause):
    fails(server, "broken", tmp_path, "the server answered 503", attempts=3)
    assert len(server.asked) == 3
    fails(server, "loop", tmp_path, "the server answered 302")
    fails(server, "empty", tmp_path, "no connection")


def test_row_21_login_page_with_status_200(server, tmp_path):
    message = fails(server, "login", tmp_path, "a web page (a login page or a proxy?)")
    assert f"save it as {tmp_path / 'data.bin'}" in message


KILLED_DOWNLOAD = """
import sys
from pytorch_course.downloads import RemoteFile, download
download(RemoteFile(sys.argv[1], sys.argv[2]), sys.argv[3])
"""


def wait_for(found, process):
    end = time.monotonic() + 30
    while not found():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


def has_bytes(folder):
    "Has some of the download arrived? pooch makes an empty file for a moment, to see whether it can."
    try:
        return any(path.stat().st_size for path in folder.glob("*"))
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not POSIX, reason="SIGKILL")
def test_row_22_killed_midway(server, tmp_path):
    "Two processes are killed while they download; the next one recovers and removes what they left."
    remote = RemoteFile(server.url("slow"), RIGHT)
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED_DOWNLOAD, remote.url, remote.hash, tmp_path], stderr=subprocess.PIPE
        )
        wait_for(lambda: has_bytes(tmp_path / f".data.bin.{process.pid}.part"), process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
        assert not (tmp_path / "data.bin").exists()
        assert [path.name for path in tmp_path.iterdir()] == [
            f".data.bin.{process.pid}.part"
        ]  # the second has removed the first one's
    server.go_on.set()
    assert download(remote, tmp_path).read_bytes() == BODY
    assert list(everything(tmp_path)) == ["data.bin"]


KILLED_UNPACKING = """
import shutil, sys, time
from pytorch_course.archives import extract_zip
from pytorch_course.files import atomic_folder
copied = []
def copyfileobj(source, target, length):
    copied.append(target.write(source.read()))
    if len(copied) == 3: target.flush(), print("three files", flush=True), time.sleep(60)
shutil.copyfileobj = copyfileobj
with atomic_folder(sys.argv[2], "pets v1") as folder: extract_zip(sys.argv[1], folder)
"""


@pytest.mark.skipif(not POSIX, reason="SIGKILL")
def test_row_22_killed_while_unpacking(tmp_path):
    archive = make_zip(tmp_path / "pets.zip", [(f"train/cat/{i}.txt", b"cat") for i in range(6)])
    target = tmp_path / "sets" / "pets"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_UNPACKING, archive, target], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "three files\n"
    process.kill()
    process.communicate()
    assert not target.exists() and len(list(target.parent.iterdir())) == 1
    with atomic_folder(target, "pets v1") as folder:
        extract_zip(archive, folder)
    assert sorted(everything(target)) == [".complete", "train", "train/cat", *(f"train/cat/{i}.txt" for i in range(6))]
    assert list(target.parent.iterdir()) == [target]


KILLED_GET_DATA = """
import sys
from pytorch_course import get_data
from pytorch_course.downloads import RemoteFile
get_data._DATASETS["pets"] = get_data.partial(get_data._write_zip, RemoteFile(sys.argv[1], sys.argv[2]))
get_data.get_data("pets", sys.argv[3])
"""


@pytest.mark.skipif(not POSIX, reason="SIGKILL")
def test_row_22_get_data_killed_midway(server, tmp_path, monkeypatch):
    server.body = make_zip(
        tmp_path / "pets.zip", [(f"{split}/cat/1.png", png()) for split in ("train", "test")]
    ).read_bytes()
    remote = RemoteFile(server.url("slow"), "sha256:" + hashlib.sha256(server.body).hexdigest())
    root = tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_GET_DATA, remote.url, remote.hash, root], stderr=subprocess.PIPE
    )
    wait_for(lambda: list(root.glob(".downloads/pets/.data.bin.*.part/*")), process)
    process.kill()
    process.communicate()
    assert (
        not (root / "pets").exists() and len(list(root.rglob("*.part"))) == 2
    )  # the download, and the folder to be filled
    server.go_on.set()
    monkeypatch.setitem(get_data_module._DATASETS, "pets", partial(get_data_module._write_zip, remote))
    assert get_data("pets", root) == root / "pets"
    assert list(root.iterdir()) == [root / "pets"]
    assert sorted(path.name for path in (root / "pets").rglob("*")) == [
        ".complete",
        "1.png",
        "1.png",
        "cat",
        "cat",
        "test",
        "train",
    ]


def test_row_22_sweeping_spares_the_living(tmp_path):
    "Leftovers of running processes, of other people's names and look-alikes stay; so does what links lead to."
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    stays = [
        f".a.{os.getppid()}.part",
        ".a.0.part",
        f".a.{2**40}.part",
        f".a.{'9' * 50}.part",
        f"a.{ended.pid}.part",
        f".{ended.pid}.part",
        ".a.part",
    ]
    for name in stays:
        (tmp_path / name).touch()
    (tmp_path / f".a.{ended.pid}.part").touch()
    (tmp_path / f".b[1].{ended.pid}.part" / "inside").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    if POSIX:
        (tmp_path / f".c.{ended.pid}.part").symlink_to(tmp_path / "precious")
    before = everything(tmp_path)
    remove_stale_files(tmp_path, "x*")
    assert everything(tmp_path) == before
    with atomic_write(tmp_path / "b[1]") as temporary:
        temporary.touch()  # brackets in a name are no pattern
    assert not list(tmp_path.glob(".b*"))
    remove_stale_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*stays, "b[1]", "precious"])
    assert list((tmp_path / "precious").iterdir())


@pytest.mark.parametrize("kind", ["sha256", "md5", "git"])
def test_row_23_wrong_hash(server, tmp_path, kind):
    (tmp_path / "sent").write_bytes(BODY[::-1])
    sent = file_hash(tmp_path / "sent", kind)
    expected = file_hash(Path(__file__), kind)
    message = fails(
        server, "other", tmp_path / "got", f"{kind} is {sent}, expected {expected}", hash=f"{kind}:{expected}"
    )
    assert "a web page" not in message


def test_row_23_a_wrong_file_that_is_there_is_replaced(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(BODY[:-1])
    assert download(RemoteFile(server.url("good"), RIGHT), tmp_path).read_bytes() == BODY


def test_row_24_stalled_server(server, tmp_path, no_pause):
    start = time.monotonic()
    for part in ("stall", "silent"):
        fails(server, part, tmp_path, "no answer in time", attempts=2)
    assert len(server.asked) == 4 and time.monotonic() - start < 8


def test_row_24_disk_full(server, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        download(RemoteFile(server.url("good"), RIGHT), tmp_path)
    assert everything(tmp_path) == {}


def test_row_25_no_plain_http(server, tmp_path, no_pause, monkeypatch):
    "Neither by itself, nor in place of https, nor through an address that only looks like this machine's."
    secure = server.url("good").replace("http://", "https://")
    with pytest.raises(DownloadError, match="could not prove who it is"):
        download(RemoteFile(secure, RIGHT), tmp_path, attempts=2)
    for host in (
        "example.org",
        "127.0.0.1:80@example.org",
        "127.0.0.1.example.org",
        "localhost.example.org:80",
        "127.0.0.2",
    ):
        with pytest.raises(DownloadError, match="is not https"):
            download(RemoteFile(f"http://{host}/data.bin", RIGHT), tmp_path)
    monkeypatch.setenv("PYTORCH_COURSE_MIRROR", "http://example.org/mirror")
    with pytest.raises(DownloadError, match="is not https"):
        download(RemoteFile(secure, RIGHT), tmp_path)
    assert everything(tmp_path) == {} and server.asked == [] and len(no_pause) == 1


@pytest.fixture
def secure_server(server, tmp_path, monkeypatch):
    "A server with a certificate that nobody has signed; and the file of it."
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate], capture_output=True
    )
    if made.returncode:
        pytest.skip("this openssl cannot make a certificate")
    secure = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    secure.elsewhere = f"127.0.0.1:{server.server_port}"
    secure.url = lambda part: f"https://127.0.0.1:{secure.server_port}/{part}/data.bin"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    yield secure
    secure.close()


def test_row_25_redirected_from_https_to_http(secure_server, server, tmp_path):
    assert (
        download(RemoteFile(secure_server.url("good"), RIGHT), tmp_path / "good").read_bytes() == BODY
    )  # the set-up works
    fails(secure_server, "to_http", tmp_path / "bad", "the address, or the one it redirects to, is not https")
    assert server.asked == []  # not even one on this machine


def test_row_25_certificate_nobody_signed(secure_server, server, tmp_path, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    fails(secure_server, "good", tmp_path / "bad", "could not prove who it is")
    assert secure_server.asked == server.asked == []


# --- 26 to 31: archives ---


def make_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two of the same name
        for name, content in members:
            info = zipfile.ZipInfo("placeholder") if isinstance(name, str) else name
            if isinstance(name, str):
                info.filename = info.orig_filename = name  # as it is, whatever ZipInfo thinks of it
            archive.writestr(info, content, method)
    return path


def make_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zip_special(kind):
    info = zipfile.ZipInfo("special")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


def tar_special(kind, target=""):
    info = tarfile.TarInfo("special")
    info.type, info.linkname = kind, target
    return info


MAKE = {"zip": (make_zip, extract_zip), "tar.gz": (make_tar, extract_tar)}
FINE = ("first/fine.txt", b"fine")
LINK = {"zip": lambda: zip_special(stat.S_IFLNK), "tar.gz": lambda: tar_special(tarfile.SYMTYPE, "/etc")}


def refused(folder, kind, members, contains, change=None):
    "An archive of these members is refused, by its name, and neither the target nor anything beside it changes."
    make, extract = MAKE[kind]
    archive = make(folder / f"archive.{kind}", members)
    if change:
        archive.write_bytes(change(archive.read_bytes()))
    (folder / "empty").mkdir(exist_ok=True)
    before = everything(folder)
    for target in (folder / "empty", folder / "new"):
        with pytest.raises(ValueError, match=contains) as caught:
            extract(archive, target)
        message = str(caught.value)
        assert (
            message.startswith(f"cannot unpack {archive}: ")
            and "\n" not in message
            and len(message) < 500 + len(str(archive))
        )
        assert everything(folder) == before
    return archive


ESCAPES = {
    "parent": "../evil.txt",
    "deep parent": "a/b/../../../evil.txt",
    "parent inside": "a/../b.txt",  # harmless, and yet no honest program writes it
    "absolute": "/tmp/evil.txt",
    "two slashes": "//server/share/evil.txt",
    "backslash": "..\\evil.txt",
    "backslash absolute": "\\evil.txt",
    "drive": "C:\\evil.txt",
    "drive relative": "C:evil.txt",
    "stream": "a.txt:hidden",
    "dots and spaces": "a/.. /evil.txt",
    "three dots": ".../evil.txt",
    "long": "x" * 2000,
}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("name", ESCAPES.values(), ids=ESCAPES)
def test_row_26_names_that_lead_outside(tmp_path, kind, name):
    refused(tmp_path, kind, [FINE, (name, b"outside!")], "points outside the archive|a name of 2,000 characters")


def test_row_26_null_byte_in_a_name(tmp_path):
    refused(
        tmp_path,
        "zip",
        [FINE, ("fine.txtX../evil", b"x")],
        "points outside",
        lambda data: data.replace(b"fine.txtX..", b"fine.txt\0.."),
    )


@pytest.mark.parametrize("kind", MAKE)
def test_row_27_symbolic_links(tmp_path, kind):
    refused(
        tmp_path, kind, [FINE, (LINK[kind](), b"/etc" if kind == "zip" else b"")], "'special' is a link or a device"
    )


@pytest.mark.parametrize("kind", ["LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE", "CONTTYPE", "GNUTYPE_SPARSE"])
def test_row_27_hard_links_devices_and_pipes_in_tar(tmp_path, kind):
    if kind == "CONTTYPE":  # an old name for a plain file
        extract_tar(
            make_tar(tmp_path / "a.tar.gz", [(tar_special(getattr(tarfile, kind)), b"plain")]), tmp_path / "new"
        )
        assert everything(tmp_path / "new") == {"special": b"plain"}
    else:
        refused(
            tmp_path,
            "tar.gz",
            [FINE, (tar_special(getattr(tarfile, kind), "/etc/passwd"), b"")],
            "link or a device|damaged",
        )


@pytest.mark.parametrize("kind", ["S_IFCHR", "S_IFBLK", "S_IFIFO", "S_IFSOCK"])
def test_row_27_devices_and_pipes_in_zip(tmp_path, kind):
    refused(tmp_path, "zip", [FINE, (zip_special(getattr(stat, kind)), b"")], "'special' is a link or a device")


DUPLICATES = {
    "same": ("a/1.txt", "a/1.txt"),
    "same after cleaning": ("a/1.txt", "./a//1.txt"),
    "case": ("a/Cat.jpg", "a/cat.jpg"),
    "case of a folder": ("Cat/1.jpg", "cat/2.jpg"),
    "accents": ("caf\u00e9.txt", "cafe\u0301.txt"),
    "accents of a folder": ("caf\u00e9/1.txt", "cafe\u0301/2.txt"),
    "accents and case": ("CAF\u00c9.txt", "cafe\u0301.txt"),
    "dot at the end": ("a/1.txt", "a/1.txt."),
    "file and folder": ("a", "a/1.txt"),
    "folder and file": ("a/1.txt", "a"),
    "backslash": ("a/1.txt", "a\\1.txt"),
}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("names", DUPLICATES.values(), ids=DUPLICATES)
def test_row_28_two_of_the_same_name(tmp_path, kind, names):
    refused(tmp_path, kind, [FINE, *((name, name.encode()) for name in names)], "the same name")


@pytest.mark.parametrize("kind", MAKE)
def test_row_28_folders_may_be_listed_twice(tmp_path, kind):
    make, extract = MAKE[kind]
    folder = "a/" if kind == "zip" else tar_special(tarfile.DIRTYPE)
    if kind != "zip":
        folder.name = "a"
    extract(
        make(tmp_path / f"x.{kind}", [(folder, b""), ("a/1.txt", b"1"), (folder, b""), ("./b/c/2.txt", b"2")]),
        tmp_path / "new",
    )
    assert everything(tmp_path / "new") == {"a": None, "a/1.txt": b"1", "b": None, "b/c": None, "b/c/2.txt": b"2"}


def test_row_29_encrypted(tmp_path):
    def encrypt(data):
        return data.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    refused(tmp_path, "zip", [FINE, ("secret.txt", b"secret")], "is encrypted", encrypt)


def test_row_29_packed_in_a_rare_way(tmp_path):
    archive = make_zip(tmp_path / "lzma.zip", [("a.txt", b"lzma can ask for any amount of memory")], zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="lzma.zip: 'a.txt' is packed in a rare way .method 14."):
        extract_zip(archive, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    extract_zip(make_zip(tmp_path / "bz2.zip", [("a.txt", b"fine")], zipfile.ZIP_BZIP2), tmp_path / "new")


@needs_links
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("leads_to", ["outside", "outside/file.txt", "nowhere", "."])
def test_row_29_link_that_stands_in_the_destination(tmp_path, kind, leads_to):
    "It is neither followed nor replaced, whether it stands for the file itself or for a folder above it."
    make, extract = MAKE[kind]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file.txt").write_text("precious")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "set").symlink_to(tmp_path / leads_to)
    for members in (
        [("set/file.txt", b"evil")],
        [("set", b"evil")],
        [("new.txt", b"fine"), ("set/a/file.txt", b"evil")],
    ):
        archive = make(tmp_path / f"archive.{kind}", members)
        before = everything(tmp_path)
        with pytest.raises(ValueError, match="target is not an empty folder; unpack into a new one"):
            extract(archive, tmp_path / "target")
        assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", MAKE)
def test_an_empty_folder_is_filled_where_it_is(tmp_path, kind, monkeypatch):
    "It may be the current folder, the target of a link, or the place where a disk is mounted."
    make, extract = MAKE[kind]
    archive = make(tmp_path / f"archive.{kind}", [FINE, ("top.txt", b"top")])
    for name in ("absolute", "dot", "linked"):
        folder = tmp_path / name
        folder.mkdir()
        before = folder.stat().st_ino
        monkeypatch.chdir(folder)
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "linked")
        extract(archive, {"absolute": Path.cwd(), "dot": ".", "linked": link}[name])
        assert link.is_symlink() and folder.stat().st_ino == before and Path.cwd() == folder
        assert everything(folder) == {"first": None, "first/fine.txt": b"fine", "top.txt": b"top"}
        link.unlink()


@pytest.mark.parametrize("kind", MAKE)
def test_a_file_or_a_broken_link_is_no_destination(tmp_path, kind):
    make, extract = MAKE[kind]
    archive = make(tmp_path / f"archive.{kind}", [FINE])
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = everything(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(ValueError, match=f"{name} is not an empty folder; unpack into a new one"):
            extract(archive, tmp_path / name)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", MAKE)
def test_row_30_bombs(tmp_path, kind, monkeypatch):
    refused(tmp_path, kind, [FINE, ("zeros", bytes(20_000_000))], "unpacks to 20,00.,... bytes or more from")
    refused(tmp_path, kind, [FINE, *((f"{i}.txt", bytes(300_000)) for i in range(20))], "bytes or more from")
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MAX_MEMBERS", 3)
        refused(tmp_path, kind, [FINE, *((str(i), b"") for i in range(3))], "more than 3 files")
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MAX_UNPACKED_BYTES", 1000)
        refused(tmp_path, kind, [FINE, ("a", bytes(1000))], "more than 1,000 bytes")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 0, 9))
        refused(tmp_path, kind, [FINE, ("a", bytes(1000))], "more than the 9 bytes that are left")


def test_row_30_bomb_that_lies_about_its_size(tmp_path):
    "The sizes in the table of contents are small; the data are not."
    def lie(data):
        return data.replace(struct.pack("<I", 20_000_000), struct.pack("<I", 1000))
    refused(tmp_path, "zip", [FINE, ("zeros", bytes(20_000_000))], "'zeros' is damaged", lie)


def test_row_30_sizes_that_are_too_large_or_negative(tmp_path):
    "Fewer bytes than the table of contents says, with the right checksum; and a tar header with a size below zero."

    def lie(data):
        return data.replace(struct.pack("<II", 777, 777), struct.pack("<II", 777, 778))
    archive = make_zip(tmp_path / "a.zip", [("a.bin", NOISE[:777])], zipfile.ZIP_STORED)
    archive.write_bytes(lie(archive.read_bytes()))
    with pytest.raises(ValueError, match="'a.bin' is damaged .777 bytes instead of 778"):
        extract_zip(archive, tmp_path / "new")
    def negative(data):
        plain = bytearray(gzip.decompress(data))
        plain[124:136] = b"\xff" * 12  # -1
        plain[148:156] = b"%06o\0 " % (sum(plain[:148]) + sum(plain[156:512]) + 8 * 32)
        return gzip.compress(bytes(plain))
    refused(tmp_path, "tar.gz", [FINE], "'first/fine.txt' claims a negative size", negative)


def test_row_30_bomb_of_headers(tmp_path):
    "Long comments before each empty file: no file is large, and the memory would be full of headers."
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for i in range(300):
            info = tarfile.TarInfo(f"{i}.txt")
            info.pax_headers = {"comment": "x" * 50_000}
            archive.addfile(info)
    with pytest.raises(ValueError, match="bytes or more from"):
        extract_tar(tmp_path / "x.tar.gz", tmp_path / "new")
    for size in (1 << 20, 1 << 40, -512):
        greedy = tar_special(tarfile.XHDTYPE)
        greedy.size = size
        (tmp_path / "x.tar.gz").write_bytes(gzip.compress(greedy.tobuf(tarfile.GNU_FORMAT)))
        with pytest.raises(ValueError, match="cannot unpack"):
            extract_tar(tmp_path / "x.tar.gz", tmp_path / "new")
    header = tar_special(tarfile.XHDTYPE)
    (tmp_path / "x.tar.gz").write_bytes(
        gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) * 2000)
    )  # headers of headers of headers
    with pytest.raises(ValueError, match="cannot unpack"):
        extract_tar(tmp_path / "x.tar.gz", tmp_path / "new")
    assert list(everything(tmp_path)) == ["x.tar.gz"]


@pytest.mark.parametrize("kind", MAKE)
def test_row_30_archives_in_archives_stay_packed(tmp_path, kind):
    make, extract = MAKE[kind]
    inner = make(tmp_path / f"inner.{kind}", [("bomb", bytes(1_000_000))]).read_bytes()
    extract(make(tmp_path / f"outer.{kind}", [(f"inner.{kind}", inner)]), tmp_path / "new")
    assert everything(tmp_path / "new") == {f"inner.{kind}": inner}


@pytest.mark.parametrize("kind", MAKE)
def test_row_31_a_corrupt_member(tmp_path, kind):
    def flip(data):
        return data[:30_000] + bytes([data[30_000] ^ 4]) + data[30_001:]
    refused(tmp_path, kind, [FINE, ("noise.bin", NOISE), ("last.txt", b"last")], "damaged", flip)
    refused(tmp_path, kind, [FINE, ("noise.bin", NOISE)], "damaged", lambda data: data[:20_000])
    refused(tmp_path, kind, [FINE], "damaged", lambda data: b"<html>moved</html>")
    refused(tmp_path, kind, [FINE], "damaged", lambda data: b"")
    refused(tmp_path, kind, [FINE], "cannot unpack", lambda data: data[: len(data) // 2])


def test_row_31_a_tar_header_nobody_understands(tmp_path):
    "Python's reader takes it for the end of the archive."
    def spoil(data):
        plain = bytearray(gzip.decompress(data))
        plain[plain.index(b"last.txt")] ^= 1
        return gzip.compress(bytes(plain))
    refused(tmp_path, "tar.gz", [FINE, ("last.txt", b"")], "something follows the last file", spoil)
    refused(
        tmp_path, "tar.gz", [FINE, ("last.txt", b"1"), ("later.txt", b"2")], "something follows the last file", spoil
    )


@pytest.mark.parametrize("kind", MAKE)
def test_row_31_the_disk_is_full(tmp_path, kind, monkeypatch):
    make, extract = MAKE[kind]
    archive = make(tmp_path / f"x.{kind}", [FINE, ("a/b.bin", NOISE)])
    def full(source, target, length):
        target.write(source.read(10))
        if "b.bin" in target.name: raise OSError(28, "No space left on device")
        target.write(source.read())
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match=f"cannot unpack .*x.{kind}: .*No space left on device"):
        extract(archive, tmp_path / "new")
    assert list(everything(tmp_path)) == [archive.name]
    with pytest.raises(FileNotFoundError, match="no archive at"):
        extract(tmp_path / "missing", tmp_path / "new")


@pytest.mark.parametrize("kind", MAKE)
def test_row_31_interrupted_before_the_last_step(tmp_path, kind, monkeypatch):
    make, extract = MAKE[kind]
    archive = make(tmp_path / f"x.{kind}", [("a.txt", b"a"), ("b.txt", b"b")])
    def interrupted(path, new):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", interrupted)
        extract(archive, tmp_path / "target")
    assert list(everything(tmp_path)) == [archive.name]
    extract(archive, tmp_path / "target")
    assert everything(tmp_path / "target") == {"a.txt": b"a", "b.txt": b"b"}


ROGUES = {
    "climbs": ([FINE, ("../evil.txt", b"x")], "points outside"),
    "link": ([(LINK["zip"](), b"/etc")], "is a link"),
    "twice": ([("train/cat/1.png", b"1"), ("train/cat/1.PNG", b"2")], "the same name"),
    "bomb": ([("zeros", bytes(20_000_000))], "bytes or more from"),
}


@pytest.mark.parametrize("rogue", ROGUES)
def test_row_26_to_31_get_data_with_a_local_zip(tmp_path, rogue):
    members, message = ROGUES[rogue]
    archive = make_zip(tmp_path / "pets.zip", members)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=f"cannot unpack {archive}: .*{message}"):
        get_data(archive, tmp_path / "data")
    assert everything(tmp_path) == before


# --- 32 to 38: folders of images ---


def png(size=(6, 4), color=(200, 30, 40), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def pets(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "pets" / name / f"{i}.png").write_bytes(png())
    return tmp_path / "pets"


def load(folder, **kwargs):
    "The data set, and the texts of all warnings."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = ImageFolder(folder, **kwargs)
    return dataset, [str(warning.message) for warning in caught]


def test_row_32_an_empty_class_is_an_error_that_names_it(pets):
    (pets / "wolf").mkdir()
    for clutter in (None, ".DS_Store", "notes.txt", ".hidden.png", "__MACOSX/1.png", ".ipynb_checkpoints/1.png"):
        if clutter:
            (pets / "wolf" / clutter).parent.mkdir(exist_ok=True)
            (pets / "wolf" / clutter).write_bytes(png())
        with pytest.raises(ValueError, match=f"no images in {pets / 'wolf'}: it (is empty|holds)"):
            ImageFolder(pets)


HIDDEN = [".ipynb_checkpoints", "__MACOSX", ".git", "cat/.ipynb_checkpoints", "cat/__MACOSX", "dog/deep/.thumbnails"]


@pytest.mark.parametrize("clutter", HIDDEN)
def test_row_33_hidden_folders_are_skipped_and_reported(pets, clutter):
    (pets / clutter / "below").mkdir(parents=True)
    for place in (pets / clutter, pets / clutter / "below"):
        (place / "copy.png").write_bytes(png())
    dataset, said = load(pets)
    assert dataset.classes == ["cat", "dog"] and len(dataset) == 8
    assert said == [f"{pets}: skipped hidden files, links and non-image files: {Path(clutter).name}/ (1)"]


def test_row_33_files_are_skipped_and_reported_once_with_their_number(pets):
    for i in range(500):
        (pets / "cat" / f"IMG_{i}.HEIC").touch()
    for name in ("list.csv", ".secret.png", "README"):
        (pets / "dog" / name).touch()
    dataset, said = load(pets)
    assert len(dataset) == 8
    heic = "*.heic (500, needs pillow-heif)"
    assert said == [
        f"{pets}: skipped hidden files, links and non-image files: {heic}, * (1), *.csv (1), .secret.png (1)"
    ]
    for i in range(20):
        (pets / "cat" / f"x.kind{i:02}").touch()
    assert load(pets)[1][0].endswith(f"{heic}, * (1), *.csv (1), *.kind00 (1), *.kind01 (1), *.kind02 (1), ...")


def test_row_33_litter_is_not_worth_a_warning(pets):
    for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini"):
        for place in (pets, pets / "cat"):
            (place / name).write_bytes(b"litter")
    dataset, said = load(pets)
    assert len(dataset) == 8 and said == []


def test_row_33_one_warning_for_a_folder_however_often_it_is_read(pets):
    (pets / ".git").mkdir()
    code = "import sys; from pytorch_course.data import ImageFolder, create_dataloaders; p = sys.argv[1]"
    code += "\nImageFolder(p)\nImageFolder(p)\ncreate_dataloaders(p, p, None, 2)"
    done = subprocess.run([sys.executable, "-c", code, pets], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count(f"{pets}: skipped") == 1


@pytest.mark.skipif(not POSIX or os.getuid() == 0, reason="needs a folder that cannot be read")
def test_row_33_a_folder_that_cannot_be_read(pets):
    (pets / "cat" / "deep").mkdir(mode=0)
    with pytest.raises(PermissionError, match="deep"):
        ImageFolder(pets)


def test_row_33_os_walk_does_not_swallow_errors(pets, monkeypatch):
    def scandir(path, scandir=os.scandir):
        if Path(path).name == "dog": raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="dog"):
        ImageFolder(pets)


def images_that_fail():
    whole = png((64, 64))
    jpeg, gif = io.BytesIO(), io.BytesIO()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(jpeg, format="JPEG")
    noise.save(gif, format="GIF")
    bomb = {size: io.BytesIO() for size in (13_400, 20_000)}  # just above the cap, which is Pillow's; far above
    for size, file in bomb.items():
        Image.new("1", (size, size)).save(file, format="PNG")
    float_tiff, eps = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(float_tiff, format="TIFF")
    noise.save(eps, format="EPS")
    return {
        "34 zero bytes": (b"", "it is empty"),
        "35 text": (b"just a line of text", "not an image in a format that Pillow knows"),
        "35 web page": (b"<html>please log in</html>", "not an image"),
        "35 LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "not an image"),
        "35 program": (eps.getvalue(), "EPS files are programs"),
        "36 cut png": (whole[: len(whole) // 2], ""),
        "36 cut jpeg": (jpeg.getvalue()[:2000], "truncated"),
        "36 cut gif": (gif.getvalue()[:800], ""),
        "36 only a header": (whole[:33], ""),
        "36 flipped bit": (whole[:60] + bytes([whole[60] ^ 8]) + whole[61:], ""),
        "36 bomb 13400": (bomb[13_400].getvalue(), "(179560000 pixels) exceeds limit"),
        "36 bomb 20000": (bomb[20_000].getvalue(), "(400000000 pixels) exceeds limit"),
        "37 float": (float_tiff.getvalue(), "'F' without a fixed range"),
    }


FAILING = images_that_fail()
TO_TENSOR = ImageTransform(image_size=8)


def first_error(dataset, num_workers):
    try:
        list(DataLoader(dataset, batch_size=3, num_workers=num_workers))
    except ImageError as error:
        # PyTorch raises a worker's error from a frame that keeps the error: a circle that delays its end by 10 s.
        error.__traceback__ = None
        return str(error)
    raise AssertionError("a broken file went unnoticed")


@pytest.mark.parametrize("case", FAILING)
def test_row_34_to_37_one_line_with_the_name_of_the_file(pets, case):
    content, reason = FAILING[case]
    broken = pets / "dog" / "0 broken.png"
    broken.write_bytes(content)
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")  # nothing else is printed
        message = first_error(ImageFolder(pets, TO_TENSOR), num_workers=0)
    assert message.startswith(f"cannot read {broken}: ") and reason in message and "\n" not in message
    if case in ("34 zero bytes", "35 text", "36 cut jpeg", "36 bomb 13400", "37 float"):
        assert first_error(ImageFolder(pets, TO_TENSOR), num_workers=2) == message


def test_row_34_a_file_that_has_vanished(pets):
    dataset = ImageFolder(pets, TO_TENSOR)
    (pets / "dog" / "2.png").unlink()
    messages = [first_error(dataset, num_workers) for num_workers in (0, 2)]
    assert messages == [f"cannot read {pets / 'dog' / '2.png'}: there is no such file"] * 2


def test_row_35_a_decoder_that_is_verbose(tmp_path, monkeypatch):
    def verbose(file):
        raise OSError("bad\n  very\n  bad")
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.setattr(Image, "open", verbose)
    with pytest.raises(ImageError, match="a.png: bad very bad$"):
        open_image(tmp_path / "a.png")


def test_row_36_the_cap_is_a_number_of_pixels(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png((10, 10)))
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    open_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    with pytest.raises(ImageError, match="a.png: 10 x 10 pixels, more than 99"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("turned", [False, True])
def test_row_37_sixteen_bits_are_rescaled(tmp_path, ending, order, turned):
    levels = np.linspace(0, 65_535, 96).round().astype(np.uint16).reshape(8, 12)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    Image.fromarray((np.rot90(levels) if turned else levels).astype(order)).save(tmp_path / f"a.{ending}", exif=exif)
    read = np.asarray(open_image(tmp_path / f"a.{ending}"))
    assert read.shape == (8, 12, 3) and read.min() == 0 and read.max() == 255
    np.testing.assert_allclose(read[..., 0], levels / 257, atol=1)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_row_37_floats_are_refused(tmp_path, kind):
    Image.fromarray(np.linspace(0, 70_000, 96).astype(kind).reshape(8, 12)).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match="a.tiff: pixels are stored as '[IF]' without a fixed range"):
        open_image(tmp_path / "a.tiff")


@needs_links
@pytest.mark.parametrize("place", ["loop", "cat/loop", "cat/deep/loop", "dog/loop"])
@pytest.mark.parametrize("leads_to", [".", "cat", ".."])
def test_row_38_symlink_loop(pets, place, leads_to):
    (pets / place).parent.mkdir(exist_ok=True)
    (pets / place).symlink_to(pets / leads_to)
    dataset, said = load(pets)
    assert dataset.classes == ["cat", "dog"] and len(dataset) == 8
    assert said == [f"{pets}: skipped hidden files, links and non-image files: loop/ (1)"]


@needs_links
def test_row_38_links_that_lead_elsewhere(pets, tmp_path):
    "A class may be kept elsewhere, and so may an image; a link to itself leads nowhere."
    (pets / "cat").rename(tmp_path / "cat kept elsewhere")
    (pets / "cat").symlink_to(tmp_path / "cat kept elsewhere")
    (tmp_path / "one.png").write_bytes(png())
    (pets / "dog" / "linked.png").symlink_to(tmp_path / "one.png")
    (pets / "itself").symlink_to(pets / "itself")
    dataset, said = load(pets, transform=TO_TENSOR)
    assert (dataset.classes, len(dataset), said) == (["cat", "dog"], 9, [])
    assert len(list(DataLoader(dataset, batch_size=9))) == 1


# --- 39: workers ---


class Hangs(ImageTransform):
    "As on a network disk that has gone: for a long time, one image does not arrive."

    def __call__(self, image):
        if image.width == 7:
            time.sleep(4)
        return super().__call__(image)


def test_row_39_default_timeout(pets):
    loaders = create_dataloaders(pets, pets, TO_TENSOR, batch_size=2, num_workers=2)[:2]
    assert [loader.timeout for loader in loaders] == [120, 120]
    assert [loader.timeout for loader in create_dataloaders(pets, pets, TO_TENSOR, batch_size=2)[:2]] == [
        0,
        0,
    ]  # nobody to wait for


def test_row_39_a_hung_worker_is_noticed(pets):
    (pets / "cat" / "2.png").write_bytes(png((7, 7)))
    _, test_dataloader, _ = create_dataloaders(pets, pets, Hangs(image_size=8), batch_size=2, num_workers=1, timeout=1)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="timed out after 1"):
        list(test_dataloader)
    assert time.monotonic() - start < 20
