"""Helpers for tests that run the commands as processes."""
import os
import signal
import subprocess
import sys

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell that starts pytest in the background ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Finished:
    def __init__(self, done):
        self.status = done.returncode
        self.out, self.err = done.stdout, done.stderr


@pytest.fixture
def command(tmp_path):
    "Run `python -m pytorch_course ...` in an empty folder."
    def run(*words, cwd=tmp_path, **env):
        line = [sys.executable, "-m", "pytorch_course", *map(str, words)]
        done = subprocess.run(line, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)
        return Finished(done)

    return run


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    "A folder in which the default training has run."
    folder = tmp_path_factory.mktemp("digits")
    done = subprocess.run(
        [sys.executable, "-m", "pytorch_course", "train"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    return folder, Finished(done)
