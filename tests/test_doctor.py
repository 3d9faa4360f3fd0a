"""What the doctor says on a healthy machine, and on machines that are broken in the ways in which machines break.

Judgments are tested with facts, written down for machines that nobody here owns. Broken packages are put in front of
the real ones on the path, so that the processes that the doctor starts find them as well.
"""
import json
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from pytorch_course.data import write_digits
from pytorch_course.doctor import Finding, diagnose, format_report, print_report
from pytorch_course.doctor import _ask_process as ask_process, _judge_facts as judge_facts
from pytorch_course.doctor import _look_at_packages as look_at_packages
from pytorch_course.going_modular import main

ALWAYS = {"python", "pytorch_course", "torch", "torchvision", "numpy", "pillow", "torch for torchvision"}
ALWAYS |= {"shadowed modules", "import torch", "device cpu", "best device", "import torchvision", "cores"}
ALWAYS |= {"memory", "current folder", "data folder", "temporary folder"}

HEALTHY = {
    "python": [3, 12, 1, "Linux (/usr/bin/python3)"],
    "packages": {
        "installed": {"torch": "2.15.0", "torchvision": "0.30.0", "numpy": "2.1.0", "pillow": "11.3"},
        "needs": {
            "": ["torch<3,>=2.10", "torchvision<1,>=0.25", "numpy<3,>=1.26", "pillow<14,>=11"],
            " for torchvision": ["torch==2.15.*"],
        },
    },
    "shadows": [],
    "gpu": None,
    "cores": {"usable": 4, "all": 8},
    "torch": {"works": "built", "devices": {"cpu": "computes correctly"}, "threads": 4},
    "torchvision": {"works": "with its compiled part"},
    "memory": {"free": 16 << 30},
    "shared memory": {"path": "/dev/shm", "free": 4 << 30},
    "current folder": {"path": "/srv", "free": 100 << 30},
    "data folder": {"path": "/srv/data", "free": 100 << 30},
    "temporary folder": {"path": "/tmp", "free": 100 << 30},
}


def found(name, findings):
    (finding,) = (finding for finding in findings if finding.name == name)
    return finding


def says(name, status, findings, *words):
    "There is one finding of this name, and it has this status and these words."
    finding = found(name, findings)
    assert finding.status == status, finding
    for word in words:
        assert word in f"{finding.value} {finding.fails} {finding.hint} {finding.advice}", (word, finding)


def package(folder, name, code="", version="1.0", requires=()):
    "A package with its metadata, to be put in front of the real one."
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    information = folder / f"{name}-{version}.dist-info"
    information.mkdir()
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")


def test_healthy_machine_has_every_line(tmp_path, capsys):
    findings = diagnose(tmp_path)
    assert {finding.name for finding in findings} >= ALWAYS
    broken = [finding for finding in findings if finding.fails and finding.name != "shared memory"]  # often small
    assert not broken and "this check failed" not in format_report(findings), format_report(findings)
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"
    print_report(findings)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("ok ", "hint ", "FAILS ")) for line in lines) == len(findings)
    assert lines[-1].startswith(("nothing would fail here", "would fail here: shared memory"))


def test_status_and_json(capsys):
    assert {finding.status for finding in judge_facts(HEALTHY)} == {"ok"}
    findings = [*judge_facts(HEALTHY), Finding("a", "1", hint="slow", advice="wait")]
    assert print_report(findings, as_json=True) == 0
    assert [Finding(**facts) for facts in json.loads(capsys.readouterr().out)] == findings
    assert print_report([*findings, Finding("b", "2", "falls", advice="hold")]) == 1


def test_importing_the_doctor_imports_nothing_heavy():
    heavy = ("torch", "torchvision", "numpy", "PIL", "requests", "packaging")
    code = f"import sys, pytorch_course.doctor; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_python_bound_is_that_of_the_settings():
    settings = ConfigParser()
    settings.read(Path(__file__).resolve().parent.parent / "settings.ini")
    least = [int(number) for number in settings["DEFAULT"]["min_python"].split(".")]
    assert found("python", judge_facts(HEALTHY | {"python": [*least, 0, "Linux"]})).status == "ok"
    says("python", "FAILS", judge_facts(HEALTHY | {"python": [least[0], least[1] - 1, 9, "Linux"]}), "3.11 or newer")


def test_sick_machine(tmp_path, monkeypatch):
    "Several things at once, since every look takes seconds: a broken pair, old and missing packages, files in the way."
    error = 'raise RuntimeError("operator torchvision::nms does not exist")'
    requires = ["no-such-package>=1.5", "numpy>=99", "pillow<2", "torchvision>=0.25", 'jupyterlab>=999; extra == "dev"']
    package(tmp_path, "torchvision", error, "0.20.0", ["numpy", "torch (==2.5.0)"])
    package(tmp_path, "pytorch_course", version="0.1.0", requires=requires)
    shutil.rmtree(tmp_path / "pytorch_course")  # only its metadata
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("torch.py", "my_model.py"):
        (folder / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    findings = diagnose(folder, "/sys/data")
    assert {finding.name for finding in findings} >= ALWAYS - {"torch"}, "all other checks went on"
    says("torchvision", "FAILS", findings, "0.20.0", "python -m pip install")
    says("torch for torchvision", "FAILS", findings, "torch==2.5.* is needed for torchvision")
    says("import torchvision", "FAILS", findings, "operator torchvision::nms does not exist", "--force-reinstall")
    says("import torch", "ok", findings)
    says("no-such-package", "FAILS", findings, "missing", 'python -m pip install --upgrade "no-such-package>=1.5"')
    says("numpy", "FAILS", findings, 'python -m pip install --upgrade "numpy>=99"')
    says("pillow", "hint", findings, "never tried")
    says("shadowed modules", "FAILS", findings, "torch.py would", "rename it")
    if sys.platform == "linux":
        says("data folder", "FAILS", findings, "nothing can be written there", "--root")
    assert "jupyterlab" not in format_report(findings)


@pytest.mark.parametrize(
    "code, words",
    [
        ("import os; os.abort()", "the process"),
        ("raise SystemExit(0)", "the process ended with status 0"),
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
    ],
)
def test_torch_that_cannot_be_imported(tmp_path, monkeypatch, code, words):
    package(tmp_path, "torch", code, "2.15.0")
    monkeypatch.syspath_prepend(tmp_path)
    findings = diagnose(tmp_path / "elsewhere")
    assert {finding.name for finding in findings} >= ALWAYS - {"device cpu"}
    says("import torch", "FAILS", findings, words, "--force-reinstall torch torchvision")
    assert "this check failed" not in format_report(findings)


@pytest.mark.parametrize(
    "version, status",
    [("2.10", "ok"), ("2.10.0a0+cu126", "ok"), ("2.9.1", "FAILS"), ("3.0", "hint"), (None, "FAILS")],
)
def test_versions_against_the_bounds(version, status):
    installed = HEALTHY["packages"]["installed"] | {"torch": version}
    needs = {"": ['torch!=2.11.*,<3,>=2.10; python_version >= "3"']}
    findings = judge_facts(HEALTHY | {"packages": {"installed": installed, "needs": needs}})
    says("torch", status, findings, "missing" if version is None else version)


def test_process_that_hangs_or_dies():
    assert ask_process("import time; time.sleep(60)", timeout=0.2) == {"error": "no answer within 0.2 seconds"}
    assert "the process" in ask_process("import os; os.abort()")["error"]
    assert ask_process("print('chatter'); print('{\"a\": 1}')") == {"a": 1}


@pytest.mark.parametrize(
    "name, tight, words",
    [
        ("memory", 256, "docker run --memory"),
        ("shared memory", 64, "bus error"),
        ("current folder", 64, "a run could not be saved"),
        ("data folder", 64, "--root"),
        ("temporary folder", 64, "TMPDIR"),
    ],
)
def test_little_space(name, tight, words):
    for free, status in ((tight - 1, "FAILS"), (tight + 1, "hint"), (8 * tight, "ok")):
        says(name, status, judge_facts(HEALTHY | {name: {"free": free << 20}}), words if status == "FAILS" else "")


def test_system_without_shared_memory():
    names = [finding.name for finding in judge_facts(HEALTHY | {"shared memory": None})]
    assert "shared memory" not in names and len(names) == len(judge_facts(HEALTHY)) - 1


@pytest.mark.skipif(os.name != "posix", reason="the current folder cannot be removed on Windows")
def test_current_folder_that_was_removed(tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r}); os.rmdir({str(tmp_path)!r})\n"
    code += "from pytorch_course import doctor\nraise SystemExit(doctor.print_report(doctor.diagnose()))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "FAILS  current folder" in done.stdout


GPU = {"gpu": "NVIDIA H100"}


@pytest.mark.parametrize(
    "torch, facts, status, words",
    [
        ({}, {}, "ok", "cpu"),
        ({}, GPU, "hint", "cannot use the NVIDIA H100"),
        ({"devices": {"cuda:0": "computes correctly", "cpu": "computes correctly"}}, GPU, "ok", "cuda:0"),
    ],
)
def test_gpu_that_torch_does_not_use(torch, facts, status, words):
    findings = judge_facts(HEALTHY | facts | {"torch": HEALTHY["torch"] | torch})
    says("best device", status, findings, words)


def test_device_that_computes_wrongly_and_threads():
    torch = HEALTHY["torch"] | {"devices": {"cuda:0": "no kernel image"}, "threads": 64}
    findings = judge_facts(HEALTHY | {"torch": torch})
    says("device cuda:0", "FAILS", findings, "no kernel image")
    says("cores", "hint", findings, "64 threads", "export OMP_NUM_THREADS=4")


@pytest.mark.parametrize(
    "size, facts, status",
    [
        (4_300_000_000, {}, "hint"),
        (4_300_000_000, GPU, "ok"),
        (4_300_000_000, {"torch": HEALTHY["torch"] | {"devices": {"cuda:0": "computes correctly"}}}, "ok"),
        (0, {}, None),
    ],
)
def test_gigabytes_that_this_machine_cannot_use(size, facts, status):
    findings = judge_facts(HEALTHY | {"packages": HEALTHY["packages"] | {"cuda": size}} | facts)
    if status is None:
        assert "CUDA libraries" not in format_report(findings)
    else:
        words = ("no", "whl/cpu") if status == "hint" else ()
        says("CUDA libraries", status, findings, "4.3 GB", *words)


def test_gigabytes_are_counted(tmp_path, monkeypatch):
    package(tmp_path, "nvidia_example", version="13.0")
    record = "nvidia_example/libexample.so,sha256=abc,7000000000\nnvidia_example/__init__.py,,\n"
    (tmp_path / "nvidia_example-13.0.dist-info" / "RECORD").write_text(record)
    before = look_at_packages()["cuda"]
    monkeypatch.syspath_prepend(tmp_path)
    assert look_at_packages()["cuda"] - before == 7_000_000_000


def test_damaged_images_of_a_data_set(tmp_path, monkeypatch, capsys):
    "All at once, by name and reason, at any depth; hidden files are none of the data."
    monkeypatch.chdir(tmp_path)
    folder = write_digits(tmp_path / "digits")
    bad = [folder / "test" / "3" / "zero.png", folder / "train" / "7" / "deep" / "page.jpg"]
    for path in (*bad, folder / "train" / ".thumbnails" / "x.png", folder / "__MACOSX" / "y.png"):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    bad[1].write_text("<html>404</html>")
    assert main(["doctor", "--data", "digits"]) == 1
    printed = capsys.readouterr().out
    lines = [line.split()[1] for line in printed.splitlines() if line.startswith("FAILS")]
    assert lines == [str(path.relative_to(tmp_path)) for path in bad], printed
    assert "1,799 in digits, of which 2 cannot be read" in printed and "--skip_damaged" in printed
    assert main(["doctor", "--data", "digits", "--json"]) == 1
    assert [row["name"] for row in json.loads(capsys.readouterr().out) if row["fails"]] == lines
    for path in bad:
        path.unlink()
    assert main(["doctor", "--data", "digits"]) == 0
    (tmp_path / "texts").mkdir()
    assert main(["doctor", "--data", "texts"]) == 2
    assert "no images in texts" in capsys.readouterr().err
    assert not (tmp_path / "data").exists() and not (tmp_path / "runs").exists(), "nothing was trained"


def test_many_damaged_images_are_all_listed():
    findings = [Finding(f"{i}.png", "empty", "training would stop at it", advice="remove it") for i in range(500)]
    report = format_report(findings)
    assert all(f"FAILS  {i}.png" in report for i in range(500))
    assert report.endswith("8.png and 491 more")


@pytest.mark.parametrize("name", HEALTHY)
def test_every_fact_may_be_missing(name):
    "A question that nobody could answer is a finding, and all other checks go on."
    findings = judge_facts(HEALTHY | {name: {"error": "OSError: surprise"}})
    assert len(findings) > 10, format_report(findings)


def test_console_that_prints_ascii_only():
    code = "from pytorch_course.doctor import *; print_report([Finding('folder', 'donn\\u00e9es \\u72ac')])"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "donn\\xe9es \\u72ac" in done.stdout, done.stderr
