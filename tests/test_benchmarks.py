"""The benchmark works: a tiny run in processes of its own, and the page that comes of it."""
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    "What a tiny run has measured, and its page."
    folder, missing = (
        tmp_path_factory.mktemp("benchmarks"),
        [name for name in ("lightning", "skorch", "ignite", "accelerate") if not find_spec(name)],
    )
    words = [
        "--quick",
        "--parts",
        "W3",
        "overhead",
        "--contenders",
        "limit",
        "teaching",
        "ours",
        "ours_contiguous",
        *missing,
    ]
    words += ["--threads", "1", "--num_workers", "1", "--out", folder / "page.md", "--json", folder / "numbers.json"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", *map(str, words)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "numbers.json").read_text()), (folder / "page.md").read_text(encoding="utf-8"), missing


def test_contiguous_training_has_the_losses_of_the_plain_loop(numbers):
    results = {result["name"]: result["epochs"] for result in numbers[0]["workloads"]["W3"]["results"]}
    losses = {name: [(epoch["train_loss"], epoch["test_loss"]) for epoch in epochs] for name, epochs in results.items()}
    assert len(losses["limit"]) == 3, "one first and two steady epochs"
    assert losses["ours_contiguous"] == losses["limit"] == losses["teaching"], "to the last bit"
    for ours, limit in zip(losses["ours"], losses["limit"]):
        assert ours == pytest.approx(limit, abs=1e-4)


def test_page_has_the_tables_and_no_paths(numbers):
    page = numbers[1]
    for heading in ("# Benchmark results", "## Goals", "### W3: ", "### overhead: "):
        assert f"\n{heading}" in f"\n{page}", heading
    for name in ("limit", "teaching", "ours", "ours_contiguous"):
        assert page.count(f"\n| {name} | ") == 2, f"{name} belongs into both tables"
    assert "W3: float32, contiguous, / limit; losses identical" in page and "not measured" in page
    assert "/tmp" not in page and str(Path.home()) not in page


def test_missing_peers_are_skipped_and_said_so(numbers):
    _, page, missing = numbers
    if not missing:
        pytest.skip("all peers are installed")
    for name in missing:
        assert page.count(f"- `{name}` skipped: {name} is not installed") == 2


def test_goals_are_judged_by_the_median(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from report import Goal, goals
    assert Goal(2, "faster", 0.60, [0.5, 0.6, 0.9]).row()[2:] == ["<= 0.6", "0.60 (0.50 to 0.90)", "met"]
    assert Goal(4, "times", 3.0, [2.4], "x", at_least=True).row()[2:] == [">= 3x", "2.40x", "**missed** by 25%"]
    assert Goal(1, "same", 1.05, [1.0], note="not identical").row()[-1] == "**missed**"
    nothing = {"facts": {}, "commands": [], "workloads": {}, "small": {}, "growth": {}, "accuracy": {}}
    assert {goal.number for goal in goals(nothing)} == set(range(1, 12))
    assert all(goal.row()[-1] == "not measured" for goal in goals(nothing))


def test_small_measurements(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from small import measure_cache, measure_flip_crop
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    cache = measure_cache(tmp_path, 16)
    assert (cache["pictures"], cache["bytes"], cache["file_made"], cache["said"]) == (3, 3 * 3 * 16 * 16, True, True)
    times = measure_flip_crop(2, 1)
    assert len(times["ours"]) == len(times["torchvision"]) == 2 and min(times["ours"]) > 0
