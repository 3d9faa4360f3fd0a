"""Rows 2, 10 to 17 of the fault table: a training that was interrupted ends exactly as one that was not."""
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytorch_course.checkpoints import CheckpointError, CheckpointManager, ResumeWarning
from pytorch_course.checks import TrainingError
from pytorch_course.recipes import fit as fit_recipe
from pytorch_course.trainer import Callback
from small_training import EPOCHS, STEPS, fit, make_trainer

HERE = Path(__file__).resolve().parent


class Crash(Exception):
    pass


class CrashAt(Callback):
    "Ends the training after a step, or at the end of an epoch."
    def __init__(self, step=None, epoch=None):
        self.step, self.at = step, epoch

    def after_batch(self, trainer):
        if trainer.steps == self.step: raise Crash

    def after_epoch(self, trainer):
        if len(trainer.history) == self.at: raise Crash


def every_step(folder):
    return CheckpointManager(folder, every_steps=1)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole") / "run")


def test_row_11_the_reference_is_exact_itself(uninterrupted, tmp_path):
    assert fit(tmp_path / "again") == uninterrupted
    assert fit(None) == uninterrupted  # saving changes nothing
    assert fit(tmp_path / "workers", num_workers=2) == uninterrupted
    assert uninterrupted[-1] == STEPS and len(uninterrupted[-2]) == EPOCHS


CUTS = [{"step": 1}, {"step": 7}, {"step": 11}, {"epoch": 1}, {"step": 12}, {"step": 18}, {"epoch": 2}, {"step": STEPS}]


@pytest.mark.parametrize("where", CUTS)
def test_row_11_resume_in_the_middle(uninterrupted, tmp_path, where):
    with pytest.raises(Crash):
        fit(every_step(tmp_path / "run"), extra=[CrashAt(**where)])
    assert fit(tmp_path / "run", resume=True) == uninterrupted


@pytest.mark.parametrize("before, after", [(2, 2), (0, 2), (2, 0), (2, 1)])
@pytest.mark.parametrize("where", [{"step": 18}, {"epoch": 1}], ids=["middle", "boundary"])
def test_row_12_resume_with_workers(uninterrupted, tmp_path, before, after, where):
    with pytest.raises(Crash):
        fit(every_step(tmp_path / "run"), num_workers=before, extra=[CrashAt(**where)])
    assert fit(tmp_path / "run", num_workers=after, resume=True) == uninterrupted


def test_row_11_interrupted_again_and_again(uninterrupted, tmp_path):
    for step in range(2, STEPS, 5):
        with pytest.raises(Crash):
            fit(every_step(tmp_path / "run"), extra=[CrashAt(step)], resume=True)
    assert fit(tmp_path / "run", resume=True) == uninterrupted


def test_row_11_other_chance_at_the_start_makes_no_difference(uninterrupted, tmp_path):
    with pytest.raises(Crash):
        fit(every_step(tmp_path / "run"), extra=[CrashAt(18)])
    make_trainer(seed=99)  # draws other weights
    torch.manual_seed(5)
    assert fit(tmp_path / "run", resume=True) == uninterrupted


def test_row_11_in_one_call(tmp_path):
    data = TensorDataset(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2)

    def run(folder, epochs, **kwargs):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer = fit_recipe(
            model,
            DataLoader(data, 8, shuffle=True),
            DataLoader(data, 8),
            optimizer=optimizer,
            epochs=epochs,
            checkpoint_dir=folder,
            seed=1,
            ignore=("overlap",),
            progress=False,
            **kwargs,
        )
        return trainer.history, [p.tolist() for p in model.parameters()]

    whole = run(tmp_path / "whole", 4)
    assert run(tmp_path / "parts", 2) != whole
    assert run(tmp_path / "parts", 4, resume=True) == whole  # longer than first planned
    assert list(whole[0][0]) == ["epoch", "train_loss", "train_acc", "valid_loss", "valid_acc"]


def figures_of(*words):
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign", *words], cwd=HERE.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", done.stdout.splitlines()[-1])}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")
def test_row_01_die_at_every_write_fsync_and_replace():
    figures = figures_of("--crash-points")
    assert figures["kills"] > 100 and figures["resumed"] > 15
    assert figures["unreadable"] == figures["different"] == figures["lost"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")
def test_row_01_a_short_campaign_of_kills():
    figures = figures_of("--kills", "80", "--seconds", "240")
    assert figures["kills"] >= 5 and figures["trainings"] >= 5
    assert figures["unreadable"] == figures["different"] == 0


def test_row_02_disk_full_keeps_the_old(tmp_path, monkeypatch):
    real = os.fsync

    def full(descriptor):
        if "step-00000006" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        CheckpointError,
        match=r"step-00000006.pt: No space left on device; it needs .* last good checkpoint is .*step-00000004.pt",
    ):
        fit(CheckpointManager(tmp_path / "run", every_steps=1))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-00000002.pt", "step-00000004.pt"]


def test_row_03_to_06_falls_back_loudly(uninterrupted, tmp_path):
    with pytest.raises(Crash):
        fit(every_step(tmp_path / "run"), extra=[CrashAt(18)])
    newest, older = CheckpointManager(tmp_path / "run").paths()
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 16
    newest.write_bytes(content)
    with pytest.warns(ResumeWarning, match=rf"{newest.name}: .* going back to {older.name}"):
        assert fit(tmp_path / "run", resume=True) == uninterrupted


def test_row_09_other_classes(tmp_path):
    with pytest.raises(Crash):
        fit(every_step(tmp_path / "run"), extra=[CrashAt(5)])
    from small_training import Augmented
    before = Augmented.classes
    Augmented.classes = ["low", "tall"]
    try:
        with pytest.raises(
            ValueError,
            match=r"step-\d+.pt is from a run on the classes \['low', 'high'\]; the data have \['low', 'tall'\]",
        ):
            fit(tmp_path / "run", resume=True)
    finally:
        Augmented.classes = before


def test_row_10_nan_stops_and_keeps_the_last_finite(tmp_path):
    class Poison(Callback):
        def before_batch(self, trainer):
            if trainer.steps == 6:
                trainer.batch = (trainer.batch[0] * float("nan"), trainer.batch[1])

    with pytest.raises(TrainingError, match="the loss is nan at step 7"):
        fit(every_step(tmp_path / "run"), extra=[Poison()])
    path, values = CheckpointManager(tmp_path / "run").latest()
    assert values["steps"] == 6
    content = torch.load(path, weights_only=True)
    assert all(value.isfinite().all() for value in content["models"]["model"].values())


def test_row_13_another_number_of_threads_is_said(tmp_path):
    with pytest.raises(Crash):
        fit(every_step(tmp_path / "run"), extra=[CrashAt(5)])
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(ResumeWarning, match=f"threads {threads}, now {threads + 1}"):
            fit(tmp_path / "run", resume=True)
    finally:
        torch.set_num_threads(threads)


def test_row_11_without_change_nothing_is_said(tmp_path):
    with pytest.raises(Crash):
        fit(every_step(tmp_path / "run"), extra=[CrashAt(5)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(tmp_path / "run", resume=True)


SCRIPT = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores Ctrl-C otherwise
from small_training import *
from pytorch_course.trainer import Callback
class Slow(Callback):
    def after_batch(self, trainer):
        print("step", trainer.steps, flush=True)
        time.sleep(0.02)
folder, num_workers, resume = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3
print("result", hash(repr(fit(folder, num_workers, [Slow()], resume=resume))), flush=True)
"""


def start(folder, num_workers, *words):
    env = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", SCRIPT, folder, str(num_workers), *words]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=HERE, start_new_session=True
    )


@pytest.fixture(scope="module")
def result_of_a_process(tmp_path_factory):
    out, err = start(str(tmp_path_factory.mktemp("process") / "run"), 0).communicate(timeout=120)
    return out.splitlines()[-1], err


SIGNALS = {  # name: signal, exit status, sent to all processes, number of workers
    "ctrl-c": (signal.SIGINT, -signal.SIGINT, False, 0),
    "sigterm": (signal.SIGTERM, 143, False, 0),
    "ctrl-c-with-workers": (signal.SIGINT, -signal.SIGINT, True, 2),
    "sigterm-to-all": (signal.SIGTERM, 143, True, 2),
}


@pytest.mark.parametrize("number, status, to_all, num_workers", SIGNALS.values(), ids=SIGNALS)
def test_row_14_15_signals_finish_the_step_and_save(result_of_a_process, tmp_path, number, status, to_all, num_workers):
    """Python ends by the signal itself after an uncaught KeyboardInterrupt, which a shell shows as 130.

    To all: as a terminal or a cluster sends it.
    """
    process = start(str(tmp_path / "run"), num_workers)
    while process.stdout.readline().strip() != "step 14":
        assert process.poll() is None, process.stderr.read()
    send = partial(os.killpg, process.pid) if to_all else process.send_signal
    send(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    last = int(out.splitlines()[-1].split()[1]) if out else 14
    saved = next(
        step for step in range(last, STEPS + 1) if step % 11 % 2 == 0
    )  # two batches are a group, and an epoch has 11
    assert f"stopped after step {saved}, saved in" in err
    assert CheckpointManager(tmp_path / "run").paths()[0].name == f"step-{saved:08d}.pt"
    out, err = start(str(tmp_path / "run"), num_workers, "resume").communicate(timeout=120)
    assert out.splitlines()[-1] == result_of_a_process[0], err


def test_row_16_files_of_killed_processes_are_swept(uninterrupted, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(Crash):
        fit(every_step(tmp_path / "run"), extra=[CrashAt(5)])
    (tmp_path / "run" / f".step-00000009.pt.{gone.pid}.part").write_bytes(b"x" * 1000)
    assert fit(tmp_path / "run", resume=True) == uninterrupted
    assert not list((tmp_path / "run").glob(".*"))


def test_row_17_a_folder_that_cannot_be_written_is_found_first(tmp_path):
    (tmp_path / "file").touch()
    steps = []

    class Count(Callback):
        def after_batch(self, trainer):
            steps.append(1)

    for folder in (tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(CheckpointError, match="cannot write checkpoints to"):
            fit(folder, extra=[Count()])
    assert not steps


def test_checkpoints_cost_at_most_one_percent_by_default(tmp_path, monkeypatch):
    "With a clock of our own: a step takes 0.1 s, a checkpoint 0.5 s."
    now, spent = [0.0], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    real = CheckpointManager.check_weights

    def slow(self, *args):
        now[0] += 0.5
        spent[0] += 0.5
        return real(self, *args)

    monkeypatch.setattr(CheckpointManager, "check_weights", slow)

    class Clock(Callback):
        def after_batch(self, trainer):
            now[0] += 0.1

    data = TensorDataset(torch.randn(400, 2), torch.arange(400) % 2)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit_recipe(
        model,
        DataLoader(data, 4, shuffle=True),
        epochs=100,  # 10,000 steps, 1,000 s
        optimizer=optimizer,
        seed=1,
        checkpoint_dir=tmp_path / "run",
        callbacks=[Clock()],
        progress=False,
    )
    assert 5 <= spent[0] <= 0.01 * now[0] + 1.0  # and the first and the last, which are always made
