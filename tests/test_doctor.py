"""What the doctor says on a healthy machine, and on machines that are broken in the ways in which machines break.

Judgments are tested with facts, written down for machines that nobody here owns. Broken packages are put in front of
the real ones on the path, so that the processes that the doctor starts find them as well.
"""
import json
import os
import shutil
import subprocess
import sys

import pytest

from pytorch_course import doctor
from pytorch_course.data import write_digits
from pytorch_course.doctor import Finding, diagnose, format_report, print_report
from pytorch_course.doctor import _ask_process as ask_process, _judge_packages as judge_packages
from pytorch_course.going_modular import main
from pytorch_course.system import cpu_count

ALWAYS = {"python", "pytorch_course", "torch", "torchvision", "numpy", "pillow", "import torch", "import torchvision"}
ALWAYS |= {"device cpu", "cores", "memory", "current folder", "data folder"}
TORCH = {"works": "built", "devices": {"cpu": "computes correctly"}, "threads": 1}


def judge_torch(torch=TORCH, torchvision=TORCH, gpu=None, cuda=0):
    return list(doctor._judge_torch(torch, torchvision, gpu, cuda))


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
    findings = judge_torch()
    assert {finding.status for finding in findings} == {"ok"}
    findings.append(Finding("a", "1", hint="slow", advice="wait"))
    assert print_report(findings, as_json=True) == 0
    assert [Finding(**facts) for facts in json.loads(capsys.readouterr().out)] == findings
    assert print_report([*findings, Finding("b", "2", "falls", advice="hold")]) == 1


def test_importing_the_doctor_imports_nothing_heavy():
    heavy = ("torch", "torchvision", "numpy", "PIL", "requests", "packaging")
    code = f"import sys, pytorch_course.doctor; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_sick_machine(tmp_path, monkeypatch):
    "Several things at once, since every look takes seconds: a broken pair, old and missing packages, a bad folder."
    error = 'raise RuntimeError("operator torchvision::nms does not exist")'
    requires = ["no-such-package>=1.5", "numpy>=99", "torchvision>=0.25", 'jupyterlab>=999; extra == "dev"']
    package(tmp_path, "torchvision", error, "0.20.0")
    package(tmp_path, "pytorch_course", version="0.1.0", requires=requires)
    shutil.rmtree(tmp_path / "pytorch_course")  # only its metadata
    monkeypatch.syspath_prepend(tmp_path)
    findings = diagnose(tmp_path, "/sys/data")
    assert {finding.name for finding in findings} >= ALWAYS - {"torch", "pillow"}, "all other checks went on"
    says("torchvision", "FAILS", findings, "0.20.0", "torchvision>=0.25 is needed")
    says("import torchvision", "FAILS", findings, "operator torchvision::nms does not exist", "--force-reinstall")
    says("import torch", "ok", findings)
    says("no-such-package", "FAILS", findings, "missing", 'python -m pip install --upgrade "no-such-package>=1.5"')
    says("numpy", "FAILS", findings, 'python -m pip install --upgrade "numpy>=99"')
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
    findings = judge_packages(['torch!=2.11.*,<3,>=2.10; python_version >= "3"'], {"torch": version}.get)
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
    ],
)
def test_little_space(name, tight, words):
    for free, status in ((tight - 1, "FAILS"), (tight + 1, "hint"), (8 * tight, "ok")):
        says(name, status, [doctor._judge_space(name, lambda: free << 20)], words if status == "FAILS" else "")


@pytest.mark.skipif(os.name != "posix", reason="the current folder cannot be removed on Windows")
def test_current_folder_that_was_removed(tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r}); os.rmdir({str(tmp_path)!r})\n"
    code += "from pytorch_course import doctor\nraise SystemExit(doctor.print_report(doctor.diagnose()))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "FAILS  current folder" in done.stdout


GPU = "NVIDIA H100"
WITH_GPU = TORCH | {"devices": {"cuda:0": "computes correctly", "cpu": "computes correctly"}}


def test_gpu_that_torch_does_not_use():
    says("GPU", "hint", judge_torch(gpu=GPU), "cannot use the NVIDIA H100")
    for findings in (judge_torch(), judge_torch(WITH_GPU, gpu=GPU), judge_torch({"error": "broken"}, gpu=GPU)):
        assert "GPU" not in {finding.name for finding in findings}


def test_device_that_computes_wrongly_and_threads():
    findings = judge_torch(TORCH | {"devices": {"cuda:0": "no kernel image"}, "threads": 10_000})
    says("device cuda:0", "FAILS", findings, "no kernel image")
    says("cores", "hint", findings, "10000 threads", f"export OMP_NUM_THREADS={cpu_count()}")


def test_gigabytes_that_this_machine_cannot_use():
    size = 4_300_000_000
    says("GPU", "hint", judge_torch(cuda=size), "4.3 GB", "whl/cpu")
    for findings in (judge_torch(gpu=GPU, cuda=size), judge_torch(WITH_GPU, cuda=size), judge_torch()):
        assert "CUDA libraries" not in format_report(findings)


def test_gigabytes_are_counted(tmp_path, monkeypatch):
    package(tmp_path, "nvidia_example", version="13.0")
    record = "nvidia_example/libexample.so,sha256=abc,7000000000\nnvidia_example/__init__.py,,\n"
    (tmp_path / "nvidia_example-13.0.dist-info" / "RECORD").write_text(record)
    before = doctor._measure_cuda()
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._measure_cuda() - before == 7_000_000_000


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


@pytest.mark.parametrize("name", ["available_memory", "_judge_packages", "_look_for_gpu"])
def test_every_question_may_fail(name, monkeypatch):
    "A question that nobody could answer is a finding, and all other checks go on."
    def surprise(*_):
        raise RuntimeError("surprise")

    monkeypatch.setattr(doctor, name, surprise)
    monkeypatch.setattr(doctor, "_ask_process", lambda code: TORCH)
    findings = diagnose()
    assert len(findings) > 5 and "this check failed (RuntimeError: surprise)" in format_report(findings)


def test_console_that_prints_ascii_only():
    code = "from pytorch_course.doctor import *; print_report([Finding('folder', 'donn\\u00e9es \\u72ac')])"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "donn\\xe9es \\u72ac" in done.stdout, done.stderr
