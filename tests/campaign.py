"""Kill runs and look at what is left: at random moments (`python -m tests.campaign --seconds 600`), or at each system
call in turn (`--crash-points`).

Prints how often it killed, how many checkpoints could not be read and how many resumed runs ended differently; both
must be 0, else the exit status is 1. Every run is a forked process, so that PyTorch is loaded only once; needs a POSIX
system. Figures are for crashes of processes, not of power.
"""
import argparse
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
from small_training import fit  # noqa: E402

from pytorch_course.checkpoints import CheckpointManager  # noqa: E402
from pytorch_course.checkpoint_files import load_checkpoint  # noqa: E402
from pytorch_course.files import atomic_write  # noqa: E402
from pytorch_course.trainer import Callback  # noqa: E402


class Ballast(Callback):
    "Makes the checkpoints larger, so that most of the time goes into writing them."
    state_attributes = ("ballast",)

    def before_fit(self, trainer):
        self.ballast = torch.zeros(200_000)

    def after_batch(self, trainer):
        self.ballast[trainer.steps] = trainer.steps


def in_child(work):
    "Start `work()` in a process group of its own; the number of the process."
    child = os.fork()
    if child: return child
    try:
        os.setsid()
        work()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def train(run, num_workers, every_steps, max_to_keep=2):
    "Train to the end, or go on; then write what came out, in one step, as a marker that may be trusted."
    # by steps alone, not by time: so that the calls are the same each time
    result = fit(
        CheckpointManager(run / "checkpoints", max_to_keep, every_steps, max_time_share=1e-9),
        num_workers,
        [Ballast()],
        resume=True,
    )
    with atomic_write(run / "result") as temporary:
        temporary.write_text(repr(result))


def ended(child):
    "Exit status of a process; negative for a signal."
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def unreadable(run):
    "Checkpoints that cannot be read, of all that are there."
    bad = []
    for path in CheckpointManager(run / "checkpoints").paths():
        try:
            assert load_checkpoint(path, models={}, training=False)["steps"] == int(path.stem.removeprefix("step-"))
        except Exception as error:
            bad.append(f"{path.name}: {error}")
    return bad


def reference(place, every_steps):
    run = place / "reference"
    run.mkdir()
    assert ended(in_child(lambda: train(run, 0, every_steps))) == 0
    return (run / "result").read_text()


def random_kills(place, seconds, kills, seed):
    "Trainings that are killed again and again until they are done, whatever the number of workers."
    draw, expected = random.Random(seed), reference(place, 1)
    figures = {"kills": 0, "trainings": 0, "unreadable": 0, "different": 0, "failed": 0}
    start = time.monotonic()
    for number in range(10**9):
        if time.monotonic() - start > seconds or figures["kills"] >= kills: break
        run = place / f"run-{number}"
        run.mkdir()
        while not (run / "result").exists():
            num_workers = draw.choice([0, 0, 0, 1, 2])
            child = in_child(lambda: train(run, num_workers, draw.choice([1, 3])))
            time.sleep(draw.uniform(0.0, 0.1 + 0.2 * num_workers))
            try:
                os.killpg(child, signal.SIGKILL)  # its workers, too
            except ProcessLookupError:
                pass  # it has not come as far as `setsid`, or is done
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
            status = ended(child)
            figures["kills"] += status == -signal.SIGKILL
            figures["failed"] += status > 0
            for reason in unreadable(run):
                figures["unreadable"] += 1
                print("unreadable:", reason)
        figures["trainings"] += 1
        left = [path.name for path in (run / "checkpoints").glob(".*")]
        if (run / "result").read_text() != expected or left:
            figures["different"] += 1
            print(f"run {number} ended differently, or left {left}")
        shutil.rmtree(run)
        if number % 20 == 19:
            print(f"{time.monotonic() - start:.0f} s  {figures}", flush=True)
    return figures


class Dying:
    "A file that writes half of what it should, and ends the process, when the countdown is over."
    def __init__(self, file, tick):
        self.file, self.tick = file, tick

    def write(self, content):
        if self.tick("write"):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            os._exit(9)
        return self.file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def die_at(number, log):
    "Patch what changes a file: the process ends before the call with this number (a write: in the middle of it)."
    count = [0]

    def tick(kind):
        count[0] += 1
        log.write(f"{kind}\n")
        log.flush()
        return count[0] == number

    def dying(function, kind):
        def call(*args, **kwargs):
            if tick(kind):
                os._exit(9)
            return function(*args, **kwargs)

        return call

    for kind in ("fsync", "replace", "unlink"):
        setattr(os, kind, dying(getattr(os, kind), kind))
    path_open = pathlib.Path.open

    def open_dying(self, mode="r", *args, **kwargs):
        file = path_open(self, mode, *args, **kwargs)
        return Dying(file, tick) if "w" in mode and self.name.endswith(".part") else file

    pathlib.Path.open = open_dying


def crash_points(place, every_steps=17, resume_after_writes=15):
    """Two checkpoints, the first with nothing before it, the second replacing it.

    Die at every write, fsync, replace and unlink of a whole run; after each, look at the folder; after all but most
    writes, resume and compare.
    """
    expected, figures = (
        reference(place, every_steps),
        {"kills": 0, "unreadable": 0, "resumed": 0, "different": 0, "lost": 0},
    )
    for number in range(1, 10**6):
        run = place / f"point-{number}"
        run.mkdir()

        def work():
            with (run / "log").open("w") as log:
                die_at(number, log)
                train(run, 0, every_steps, max_to_keep=1)

        status = ended(in_child(work))
        if status == 0: return figures  # it has come to the end: there is no call with this number
        assert status == 9, status
        calls = (run / "log").read_text().split()
        figures["kills"] += 1
        figures["unreadable"] += len(unreadable(run))
        figures["lost"] += calls.count("replace") > 1 and not CheckpointManager(run / "checkpoints").paths()
        if calls[-1] != "write" or number % resume_after_writes == 0:
            assert ended(in_child(lambda: train(run, 0, every_steps))) == 0
            figures["resumed"] += 1
            figures["different"] += (run / "result").read_text() != expected or bool(
                list((run / "checkpoints").glob(".*"))
            )
        shutil.rmtree(run)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--kills", type=int, default=10**9, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--crash-points", action="store_true", help="die at every system call in turn, once, instead of at random"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked safely
    tqdm.monitor_interval = 0  # that would be another thread
    fit(None)  # what PyTorch and pandas prepare when they are first used, once instead of in every child
    with tempfile.TemporaryDirectory() as place:
        figures = (
            crash_points(Path(place))
            if args.crash_points
            else random_kills(Path(place), args.seconds, args.kills, args.seed)
        )
    print(*(f"{name} {number}" for name, number in figures.items()), sep=", ")
    return int(any(figures[name] for name in ("unreadable", "different", "lost", "failed") if name in figures))


if __name__ == "__main__":
    sys.exit(main())
