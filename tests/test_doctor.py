"""What `diagnose` says on a healthy machine, and on machines that are broken in the ways in which machines break.

Broken packages are put in front of the real ones on the path, so that the processes that the doctor starts find them as well.
"""
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import namedtuple
from configparser import ConfigParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pytorch_course import doctor
from pytorch_course.doctor import Finding, diagnose, exit_status, format_report, print_report

Usage = namedtuple("Usage", "total used free")
ALWAYS = {
    "python",
    "pytorch_course",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "the pair",
    "your own files",
    "import torch",
    "device cpu",
    "best device",
    "threads",
    "import torchvision",
    "cores",
    "workers",
    "memory",
    "current folder",
    "data folder",
    "temporary folder",
    "running in",
    "console",
    "clock",
}


def found(name, findings):
    "The one finding of that name."
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def fails(name, findings, *words):
    "That finding is a failure, and its line in the report holds the words."
    finding = found(name, findings)
    line = format_report([finding])
    assert finding.mark == "FAILS" and finding.advice, line
    for word in words:
        assert word in line, (word, line)
    assert exit_status(findings) == 1
    return finding


def package(folder, name, code="", version="1.0", requires=()):
    "A package with its metadata in a folder."
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "__init__.py").write_text(code)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {line}" for line in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


class Silent:
    "Stands for a probe, so that a test that is not about them need not wait."
    def __init__(self, *_, **__):
        self.stop = self.start = lambda: None
    def answer(self):
        return {"skipped": "not asked", "error": "not asked"}


@pytest.fixture
def quick(monkeypatch):
    "No other processes."
    monkeypatch.setattr(doctor, "_Probe", Silent)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    "The findings on this machine, and the folder that was looked at."
    folder = tmp_path_factory.mktemp("healthy")
    return diagnose(folder), folder


def test_healthy_machine_has_every_line(healthy, capsys):
    findings, folder = healthy
    assert {finding.name for finding in findings} >= ALWAYS
    broken = [
        finding for finding in findings if finding.mark == "FAILS" and finding.name != "shared memory"
    ]  # small in some containers
    assert not broken, format_report(findings)
    assert not any("broke down" in (finding.problem or "") for finding in findings), format_report(findings)
    assert (
        found("import torch", findings).value.startswith("works")
        and found("import torchvision", findings).value == "works"
    )
    assert list(folder.iterdir()) == [], "it leaves nothing behind"
    print_report(findings)
    lines = capsys.readouterr().out.splitlines()
    starts = [line for line in lines if line.startswith(("ok ", "hint ", "FAILS "))]
    assert len(starts) == len(findings) and lines[-1].startswith(
        ("nothing would fail here", "would fail here: shared memory")
    )


def test_status_and_json(healthy, capsys):
    findings, _ = healthy
    hint, failure = Finding("a", "1", "slow", "wait"), Finding("b", "2", "falls", "hold", fatal=True)
    assert (exit_status([]), exit_status([hint]), exit_status([hint, failure])) == (0, 0, 1)
    assert print_report([*findings, failure], as_json=True) == 1
    dictionaries = json.loads(capsys.readouterr().out)
    assert [Finding(**facts) for facts in dictionaries] == [*findings, failure]


def test_importing_the_doctor_imports_nothing_heavy():
    code = "import sys, pytorch_course.doctor; print([name for name in ('torch', 'torchvision', 'numpy', 'PIL', 'requests') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_python_bound_is_that_of_the_settings():
    settings = ConfigParser()
    settings.read(Path(__file__).resolve().parent.parent / "settings.ini")
    assert settings["DEFAULT"]["min_python"] == "3.11"


def test_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    fails("python", doctor._guarded(doctor._python), "3.11 or newer")


def test_mismatched_and_broken_torchvision(tmp_path, monkeypatch):
    error = 'raise RuntimeError("operator torchvision::nms does not exist")'
    package(tmp_path, "torchvision", error, "0.20.0", ["numpy", "torch (==2.5.0)"])
    monkeypatch.syspath_prepend(tmp_path)
    findings = diagnose(tmp_path / "elsewhere")
    assert {finding.name for finding in findings} >= ALWAYS, "all other checks went on"
    fails("torchvision", findings, "too old", "python -m pip install")
    fails(
        "the pair",
        findings,
        "torch ==2.5.0",
        "not built for each other",
        "python -m pip install --upgrade torch torchvision",
    )
    fails(
        "import torchvision",
        findings,
        "operator torchvision::nms does not exist",
        "--force-reinstall torch torchvision",
    )
    assert found("import torch", findings).mark == "ok"


@pytest.mark.parametrize("code, words", [
    ("import os; os.abort()", "the process"),
    ("raise SystemExit(0)", "SystemExit"),
    ("raise ImportError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
])
def test_torch_that_cannot_be_imported(tmp_path, monkeypatch, code, words):
    package(tmp_path, "torch", code, "2.15.0")
    monkeypatch.syspath_prepend(tmp_path)
    findings = diagnose(tmp_path / "elsewhere")
    assert {finding.name for finding in findings} >= ALWAYS - {"device cpu", "best device", "threads"}
    fails("import torch", findings, words, "--force-reinstall torch torchvision")
    assert "broke down" not in format_report(findings)


@pytest.mark.parametrize("error, advice", [
    ("the process was killed by SIGKILL", "more memory"),
    ("OSError: [WinError 126] The specified module could not be found", "vc_redist"),
    ("no answer within 60 seconds", "try again"),
    ("ImportError: DLL load failed", "--force-reinstall"),
])
def test_advice_fits_the_error(error, advice):
    class Failing(Silent):
        def answer(self):
            return {"error": error}

    fails("import torch", doctor._guarded(doctor._import_torch, Failing(), 2), error, advice)
    fails("import torchvision", doctor._guarded(doctor._import_torchvision, Failing()), error, advice)


def test_missing_and_outdated_packages(tmp_path, monkeypatch):
    requires = ["no-such-package>=1.5", "numpy>=99", "pillow<2", 'jupyterlab>=999; extra == "dev"']
    package(tmp_path, "pytorch_course", version=doctor.__version__, requires=requires)
    shutil.rmtree(tmp_path / "pytorch_course")  # only its metadata
    monkeypatch.syspath_prepend(tmp_path)
    findings = doctor._guarded(doctor._packages)
    fails("no-such-package", findings, "missing", 'python -m pip install "no-such-package>=1.5"')
    fails("numpy", findings, "too old", 'python -m pip install "numpy>=99"')
    assert found("pillow", findings).mark == "hint" and len(findings) == 3


def test_metadata_that_nobody_can_read(monkeypatch):
    def damaged(name):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    monkeypatch.setattr(doctor.metadata, "version", damaged)
    (finding,) = doctor._guarded(doctor._packages)
    assert finding.mark == "hint" and "this check itself broke down (UnicodeDecodeError" in finding.problem


def test_hung_worker(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nfrom torch.utils.data._utils import worker\nworker._worker_loop = lambda *_: time.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    probe = doctor._Probe("_probe_workers", timeout=0.5)
    findings = doctor._guarded(doctor._workers, probe, 2)
    fails("workers", findings, "timed out after 0.5 seconds", "--num_workers 0")
    assert probe.process.wait(5) == 0, "and its processes are gone"


def test_hung_import(monkeypatch):
    probe = doctor._Probe("")
    probe.code = "import time; time.sleep(60)"
    answer = probe.answer(timeout=0.2)
    assert answer == {"error": "no answer within 0.2 seconds"} and probe.process.wait(5) != 0
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert "no process could be started" in doctor._Probe("_probe_torch").answer()["error"]


def test_file_that_hides_a_package(tmp_path, quick):
    (tmp_path / "torch.py").touch()
    fails("your own files", diagnose(tmp_path), "torch.py would be imported", "rename it")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory folder on this system")
def test_tiny_shared_memory(tmp_path, monkeypatch, quick):
    real = shutil.disk_usage
    for free, mark in ((16 << 20, "FAILS"), (64 << 20, "hint"), (2 << 30, "ok")):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda place: Usage(free, 0, free) if str(place) == "/dev/shm" else real(place)
        )
        findings = diagnose(tmp_path)
        assert found("shared memory", findings).mark == mark
        if mark == "FAILS":
            fails("shared memory", findings, "bus error", "--shm-size=2g", "--num_workers 0")


def test_no_shared_memory_folder(monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    assert doctor._guarded(doctor._shared_memory) == []


def test_full_disk(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(100 << 30, 100 << 30, 1 << 20))
    findings = diagnose(tmp_path, tmp_path / "data")
    fails("current folder", findings, "a run could not be saved", "make room")
    fails("data folder", findings, str(tmp_path / "data"), "--root")
    fails("temporary folder", findings, "TMPDIR")


def test_disk_that_is_full_of_files(tmp_path, monkeypatch):
    if not hasattr(os, "statvfs"):
        pytest.skip("this system does not count files")
    monkeypatch.setattr(os, "statvfs", lambda place: namedtuple("Entries", "f_files f_favail")(1000, 0))
    fails("data folder", doctor._guarded(doctor._folder, "data folder", tmp_path, ""), "names of more files")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT if hasattr(errno, "EDQUOT") else errno.EPERM])
def test_folder_that_cannot_be_written_to(tmp_path, monkeypatch, quick, code):
    def refuse(*_, dir, **__):
        raise OSError(code, os.strerror(code), str(dir))
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    findings = diagnose(tmp_path)
    fails("current folder", findings, "nothing can be written", os.strerror(code), "work in another folder")


@pytest.mark.skipif(sys.platform != "linux", reason="/sys is Linux")
def test_a_folder_that_really_cannot_be_written_to(quick):
    fails("current folder", diagnose("/sys"), "nothing can be written there")


@pytest.mark.skipif(os.name != "posix", reason="the current folder cannot be removed on Windows")
def test_current_folder_that_was_removed(tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r}); os.rmdir({str(tmp_path)!r})\n"
    code += (
        "from pytorch_course import doctor\ndoctor._Probe.start = lambda self: setattr(self, 'failed', 'not asked')\n"
    )
    code += "raise SystemExit(doctor.print_report(doctor.diagnose()))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "FAILS  current folder" in done.stdout


def test_little_memory_makes_the_probes_take_turns(tmp_path, monkeypatch):
    started = []

    class Counting(Silent):
        def __init__(self, name):
            self.start, self.stop = (lambda: started.append(name)), (lambda: None)

    monkeypatch.setattr(doctor, "_Probe", Counting)
    monkeypatch.setattr(doctor, "_available_memory", lambda: 128 << 20)
    fails("memory", diagnose(tmp_path), "128 MiB", "would be killed", "--batch_size")
    assert started == []
    monkeypatch.setattr(doctor, "_available_memory", lambda: 64 << 30)
    diagnose(tmp_path)
    assert len(started) == 3


def test_limit_on_open_files(monkeypatch):
    resource = pytest.importorskip("resource")
    for limit, mark in ((32, "FAILS"), (256, "hint"), (4096, "ok"), (resource.RLIM_INFINITY, "ok")):
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
        (finding,) = doctor._guarded(doctor._open_files)
        assert finding.mark == mark and (mark == "ok" or finding.advice == "ulimit -n 4096")


def test_another_system(tmp_path, monkeypatch, quick):
    "What Windows and macOS do not have is missing; nothing breaks down."
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(100 << 30, 0, 100 << 30))  # here it needs os.statvfs
    for name in ("sched_getaffinity", "statvfs", "sysconf"):
        monkeypatch.delattr(os, name, raising=False)
    real = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: not str(path).startswith(("/proc", "/sys")) and real(path))
    monkeypatch.setitem(sys.modules, "resource", None)
    findings = diagnose(tmp_path)
    assert "broke down" not in format_report(findings)
    assert found("memory", findings) == Finding("memory", "this system does not say")
    assert "open files" not in [finding.name for finding in findings]


def test_every_check_may_break_down(tmp_path, monkeypatch, quick):
    "Each function that a check calls raises something unexpected, in turn; the others still answer."
    for module, name in (
        (shutil, "disk_usage"),
        (doctor.platform, "python_version"),
        (doctor.time, "strftime"),
        (doctor, "getproxies"),
        (doctor.metadata, "requires"),
        (doctor, "_available_memory"),
        (doctor, "_usable_cores"),
    ):
        def surprise(*_, **__):
            raise ZeroDivisionError("surprise")
        with monkeypatch.context() as patched:
            patched.setattr(module, name, surprise)
            findings = diagnose(tmp_path)
        assert len(findings) > 12, (name, format_report(findings))


@pytest.mark.parametrize("said, gpu", [("NVIDIA-SMI has failed", None), ("GPU 0: NVIDIA H200 (UUID: GPU-1)", "NVIDIA H200")])
def test_name_of_a_gpu_that_torch_does_not_see(monkeypatch, said, gpu):
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: namedtuple("Done", "stdout")(said + "\n"))
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    assert doctor._nvidia() == gpu
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    problem, advice = doctor._gpu_unused({"picked": "cpu", "cuda": "13.2", "rocm": None, "warnings": []})
    assert (
        (problem, advice) == (None, None)
        if gpu is None
        else (gpu in problem and advice == "unset CUDA_VISIBLE_DEVICES")
    )


class Answering(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if "broken" in self.path else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_mirror(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = HTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    try:
        assert doctor._mirror(address).mark == "ok", "it need not list its files"
        fails("mirror", [doctor._mirror(address + "broken")], "503")
    finally:
        server.shutdown()
        server.server_close()
    fails("mirror", [doctor._mirror(address)], "nothing could be downloaded", "unset PYTORCH_COURSE_MIRROR")
    fails("mirror", [doctor._mirror("https://[half")], "nothing could be downloaded")
    for wrong in (
        "http://mirror.example/course",
        "mirror.example",
        "file:///course",
        "http://127.0.0.1:secret@mirror.example/",
    ):
        assert "secret" not in str(doctor._mirror(wrong))
        fails("mirror", [doctor._mirror(wrong)], "only https", "https://")


def test_console_that_prints_ascii_only():
    code = "from pytorch_course.doctor import *; print_report([Finding('folder', 'donn\\u00e9es \\u72ac')])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "donn\\xe9es \\u72ac" in done.stdout, done.stderr
