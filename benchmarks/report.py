"""From numbers to a page: the tables of every workload, the goals beside what was measured, and a plot of the growth.

`numbers` is the dictionary that `run.py` keeps as JSON: `{"workloads": {"W1": {"images": ..., "results": [...]}, ...}, "growth": {...}, "small": {...}, "accuracy": {...}}`.
A result is what a contender's process reported: `{"name": ..., "epochs": [...], "firsts": [...], "skipped": None}`.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

from workloads import WORKLOADS

MIB = 2**20
NOTES = """\
How to read the tables:

- `limit` is the plain float32 loop (forward, loss, `zero_grad`, backward, step) over batches that lie in memory: a loader and an engine that cost nothing. It is plain eager PyTorch,
  contiguous, with glibc's own memory settings; what this package does about those settings and about channels last is how it can be faster than this "limit".
- `teaching` is the best-known teaching code: `ImageFolder`, `Resize` and `ToTensor` per sample, a `DataLoader` with a process per core, a loop with `.item()` in every step. The other
  engines train on the same loaders.
- `ours` is `create_dataloaders` and `Trainer` with their defaults; `_contiguous`: `channels_last=False`; `_bf16`: `precision="bf16"`; `_compile`: `compile=True`; `_nocache`: `cache=False`
  `_draft`: `draft=True`. Everybody has the same model, first weights, order of the pictures, loss, and the same `torch.optim` optimizer with the same arguments.
- An epoch is training and testing. The first one includes everything that prepares the data, decoding above all; imports are done before. Steady epochs are all later ones.
- Ratios are taken within a round, in which the contenders take turns, each in its own process; shown is the median, and the smallest and largest in brackets. Differences below 10% mean nothing.
- Peak memory is that of the main process. Page faults are the median of the steady epochs, with the workers that have ended. "loss - limit's" is the largest difference of a training or
  test loss to the losses of `limit`, in all epochs; 0 means that they are the same to the last bit."""


# ---------------------------------------------------------------- numbers

def find(part: dict | None, name: str) -> dict | None:
    "The result of this contender, if it took part to the end."
    results = part["results"] if part else []
    return next((result for result in results if result["name"] == name and not result["skipped"]), None)


def steady(result: dict, what: str = "seconds") -> list[float]:
    "A number of every epoch but the first."
    return [epoch[what] for epoch in result["epochs"][1:]]


def ratios(result: dict | None, to: dict | None) -> list[float]:
    "Seconds of steady epochs divided by those of another contender in the same round."
    return [a / b for a, b in zip(steady(result), steady(to))] if result and to else []


def firsts(result: dict | None, to: dict | None) -> list[float]:
    "First epochs, with decoding, divided by the median steady epoch of another contender."
    if not result or not to: return []
    return [seconds / statistics.median(steady(to)) for seconds in result["firsts"]]


def added(part: dict, result: dict | None) -> list[float]:
    "Microseconds that an engine adds to every step of the bare loop."
    limit = find(part, "limit")
    return [(a - b) / part["images"] * 1e6 for a, b in zip(steady(result), steady(limit))] if result and limit else []


def loss_difference(result: dict | None, to: dict | None) -> float:
    "Largest difference of a training or test loss in any epoch."
    if not result or not to: return float("nan")
    return max(
        abs(a[name] - b[name]) for a, b in zip(result["epochs"], to["epochs"]) for name in ("train_loss", "test_loss")
    )


def spread(values: list[float], digits: int = 2, unit: str = "") -> str:
    "Median, and the range in brackets."
    if not values: return ""
    median = f"{statistics.median(values):,.{digits}f}{unit}"
    return f"{median} ({min(values):,.{digits}f} to {max(values):,.{digits}f})" if len(values) > 1 else median


# ---------------------------------------------------------------- tables

def table(rows: list[list[str]], numeric: bool = True) -> str:
    "Markdown; the first row is the head."
    rule = ["---"] + ["---:" if numeric else "---"] * (len(rows[0]) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def epoch_table(part: dict) -> str:
    "Times of whole epochs, relative to the standard recipe and to the limit, and what they cost in memory."
    head = "contender, first epoch s, first / teaching, steady epoch s, / teaching, / limit, us a picture, peak MiB, page faults, loss - limit's"
    rows, teaching, limit = [head.split(", ")], find(part, "teaching"), find(part, "limit")
    for result in part["results"]:
        if result["skipped"]: continue
        median = statistics.median(steady(result))
        rows.append(
            [
                result["name"],
                spread(result["firsts"]),
                spread(firsts(result, teaching)),
                f"{median:.3f}",
                spread(ratios(result, teaching)),
                spread(ratios(result, limit)),
                f"{median / part['images'] * 1e6:.0f}",
                f"{result['epochs'][-1]['memory']:.0f}",
                f"{statistics.median(steady(result, 'faults')):,.0f}",
                f"{loss_difference(result, limit):.1e}",
            ]
        )
    return table(rows)


def compile_line(part: dict) -> list[str]:
    "After how many epochs `compile=True` pays, if it took part."
    ours, compiled = find(part, "ours"), find(part, "ours_compile")
    if not ours or not compiled: return []
    costs = compiled["firsts"][0] - ours["firsts"][0]
    saves = statistics.median(a - b for a, b in zip(steady(ours), steady(compiled)))
    return [
        f"`compile=True` costs {costs:.1f} s in the first epoch and "
        + (f"pays after {costs / saves:.0f} more." if saves > 0 else "saves nothing afterwards.")
    ]


def overhead_table(part: dict) -> str:
    "Microseconds of a step, and how many of them the engine adds; the one step of testing counts."
    rows = [["contender", "us a step", "more than the bare loop, us"]]
    for result in part["results"]:
        if not result["skipped"]:
            rows.append(
                [
                    result["name"],
                    spread([seconds / part["images"] * 1e6 for seconds in steady(result)], 1),
                    spread(added(part, result), 1),
                ]
            )
    return table(rows)


def growth_rows(growth: dict) -> list[tuple[int, str, float, float, float]]:
    "`(training pictures, contender, us a picture, peak MiB, MiB beyond the cache)`"
    rows = []
    for name in ("ours", "teaching"):
        for size, part in growth.items():
            if result := find(part, name):
                peak = result["epochs"][-1]["memory"]
                rows.append(
                    (
                        int(size),
                        name,
                        statistics.median(steady(result)) / part["images"] * 1e6,
                        peak,
                        peak - (part["cache"] / MIB if name == "ours" else 0),
                    )
                )
    return rows


def growth_section(growth: dict) -> str:
    "The table; the plot is beside the page."
    rows = [["training pictures", "contender", "us a picture", "peak MiB", "beyond the cache, MiB"]]
    for size, name, time, peak, beyond in growth_rows(growth):
        rows.append([f"{size:,}", name, f"{time:.0f}", f"{peak:.0f}", f"{beyond:.0f}" if name == "ours" else ""])
    text = (
        "Steady epochs of W3 with more and more pictures, a fifth as many again to test on. The cache is a byte per pixel and channel; what grows beyond it are "
        "mostly the names of the files. `teaching`: the main process alone, without its workers."
    )
    return f"## Growth\n\n{text}\n\n{table(rows)}\n\n![Time per picture and peak memory against the number of pictures](growth.svg)"


def plot_growth(growth: dict, path: Path):
    "Time per picture and memory against the number of training pictures, as SVG."
    import matplotlib
    from matplotlib.figure import Figure

    figure, rows = Figure(figsize=(8, 3), layout="constrained"), growth_rows(growth)
    axes = figure.subplots(1, 2)
    lines = [(axes[0], "ours", 2, "ours"), (axes[0], "teaching", 2, "teaching")]
    lines += [
        (axes[1], "ours", 3, "ours"),
        (axes[1], "ours", 4, "ours, beyond the cache"),
        (axes[1], "teaching", 3, "teaching, main process"),
    ]
    for ax, name, column, label in lines:
        points = [(row[0], row[column]) for row in rows if row[1] == name]
        if points:
            ax.plot(*zip(*points), "o-" if name == "ours" else "s--", markersize=4, label=label)
    for ax, title, what in zip(
        axes, ("A steady epoch of W3", "Memory while training"), ("time per picture (us)", "peak memory (MiB)")
    ):
        ax.set(title=title, xlabel="training pictures", ylabel=what, xscale="log", ylim=(0, None))
        ax.set_xticks([int(size) for size in growth], [f"{int(size):,}" for size in growth])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "growth"}):
        figure.savefig(path, metadata={"Date": None})


def accuracy_section(accuracy: dict) -> str:
    "When each recipe reached the target, and its epochs one by one."
    target, runs = accuracy["target"], accuracy["runs"]
    rows = [["recipe", f"minutes to {target:.0%}", "epochs", "best test accuracy", "minutes in all"]]
    lines = []
    for name, epochs in runs.items():
        number = next((i for i, (_, share) in enumerate(epochs) if share >= target), None)
        reached = (
            [f"{epochs[number][0] / 60:.2f}", str(number + 1)]
            if number is not None
            else ["not reached", f"{len(epochs)}"]
        )
        rows.append(
            [
                name,
                *reached,
                f"{max((share for _, share in epochs), default=0):.2%}",
                f"{epochs[-1][0] / 60:.2f}" if epochs else "",
            ]
        )
        lines.append(
            f"- {name}, minutes: accuracy after each epoch: "
            + ", ".join(f"{seconds / 60:.2f}: {share:.1%}" for seconds, share in epochs)
        )
    text = (
        f"{accuracy['pictures'][0]:,} pictures to train on, {accuracy['pictures'][1]:,} to test on, from JPEG files, {accuracy['threads']} threads. The clock starts before the first file is "
        "opened, imports are done; testing after every epoch counts."
    )
    return "\n\n".join([f"## Time to {target:.0%} test accuracy", text, table(rows), "\n".join(lines)])


# ---------------------------------------------------------------- goals

@dataclass
class Goal:
    "A line of the table of goals."
    number: int  # in the list of goals
    what: str
    target: float
    values: list[float]  # what was measured; empty: nothing was
    unit: str = ""
    at_least: bool = False  # larger is better
    note: str = ""  # after the numbers; begins with "not" when it breaks the goal

    def row(self) -> list[str]:
        digits = 0 if abs(self.target) >= 100 else 1 if self.unit in (" us", " MiB") else 2
        sign, median = ">=" if self.at_least else "<=", statistics.median(self.values) if self.values else None
        if median is None:
            verdict = "not measured"
        else:
            missed = self.target / median - 1 if self.at_least else median / self.target - 1
            verdict = "met" if missed <= 0 else f"**missed** by {missed:.0%}"
            if missed <= 0 and self.note.startswith("not"):
                verdict = "**missed**"
        measured = ", ".join(filter(None, [spread(self.values, digits, self.unit), self.note]))
        return [str(self.number), self.what, f"{sign} {self.target:,g}{self.unit}", measured, verdict]


def _workload_goals(name: str, part: dict | None) -> list[Goal]:
    "Goals 1 to 5 for one workload."
    ours, bf16, teaching, limit = (find(part, contender) for contender in ("ours", "ours_bf16", "teaching", "limit"))
    plain = find(part, "ours_contiguous") or (
        ours if name == "W1" else None
    )  # a network without convolutions is contiguous by default
    difference = loss_difference(plain, limit)
    same = (
        ""
        if difference != difference
        else "losses identical"
        if difference == 0
        else f"not identical: losses differ by {difference:.1e}"
    )
    goals = [Goal(1, f"{name}: float32, contiguous, / limit; losses identical", 1.05, ratios(plain, limit), note=same)]
    for target in {"W2": [0.60], "W3": [0.70], "W4": [0.62]}.get(name, []):
        goals.append(Goal(2, f"{name}: defaults (channels last) / limit", target, ratios(ours, limit)))
    for target in {"W1": [0.57], "W2": [0.38], "W3": [0.45]}.get(name, []):
        goals.append(Goal(3, f"{name}: bf16 / limit", target, ratios(bf16, limit)))
    faster, in_bf16 = {"W1": (2.1, 3.7), "W2": (3.8, 6.0), "W3": (3.0, 4.5), "W4": (9.0, None)}[name]
    goals.append(
        Goal(4, f"{name}: times faster than teaching, defaults", faster, ratios(teaching, ours), "x", at_least=True)
    )
    if in_bf16:
        goals.append(
            Goal(4, f"{name}: times faster than teaching, bf16", in_bf16, ratios(teaching, bf16), "x", at_least=True)
        )
    goals.append(Goal(5, f"{name}: first epoch with decoding / teaching's steady epoch", 0.6, firsts(ours, teaching)))
    return goals


def _growth_goals(growth: dict) -> list[Goal]:
    "Goal 11: the largest over the smallest."
    rows = sorted(row for row in growth_rows(growth) if row[1] == "ours")
    times, beyond = [row[2] for row in rows], [row[4] for row in rows]
    several = len(rows) > 1
    between = f" from {rows[0][0]:,} to {rows[-1][0]:,} pictures" if several else ""
    return [
        Goal(
            11,
            f"growth: slowest / fastest time per picture{between}",
            1.15,
            [max(times) / min(times)] if several else [],
        ),
        Goal(
            11,
            f"growth: more memory beyond the cache{between}",
            20,
            [max(beyond) - min(beyond)] if several else [],
            " MiB",
        ),
    ]


def goals(numbers: dict) -> list[Goal]:
    "All goals, in the order of their numbers."
    parts, small = numbers["workloads"], numbers["small"]
    found = [goal for name in WORKLOADS if WORKLOADS[name].pictures for goal in _workload_goals(name, parts.get(name))]
    overhead, resident = parts.get("overhead"), find(parts.get("W2"), "ours")
    found.append(
        Goal(
            6,
            "engine over the bare loop, progress bar on, a step",
            20,
            added(overhead, find(overhead, "ours")) if overhead else [],
            " us",
        )
    )
    found.append(Goal(7, "page faults in a steady epoch of W2", 5000, steady(resident, "faults") if resident else []))
    cache, flip_crop, start = small.get("cache"), small.get("flip_crop"), small.get("start")
    title, said = "memory of the cache beyond a byte per pixel and channel", ""
    if cache:
        title += f"; {cache['pictures']:,} pictures, {cache['bytes'] / MIB:.0f} MiB"
        said = (
            "over budget: file made and said"
            if cache["file_made"] and cache["said"]
            else "not a file beside the data when over budget, or not said"
        )
    found.append(
        Goal(
            8,
            title,
            20,
            [cache["grown"] / MIB - cache["bytes"] / MIB] if cache and cache["grown"] else [],
            " MiB",
            note=said,
        )
    )
    found.append(
        Goal(
            9,
            "`RandomFlipCrop`, 64 pictures of 32x32, a picture",
            2.5,
            flip_crop["ours"] if flip_crop else [],
            " us",
            note=f"torchvision per sample {spread(flip_crop['torchvision'], 1)} us" if flip_crop else "",
        )
    )
    imports = (
        f"; `python -c pass` {spread(start['python'])} s, `import torch` {spread(start['torch'])} s" if start else ""
    )
    found.append(Goal(10, f"`pytorch-course --help`{imports}", 0.3, start["help"] if start else [], " s"))
    found.append(
        Goal(
            10,
            "`predict` of one picture / `import torch`",
            1.3,
            [a / b for a, b in zip(start["predict"], start["torch"])] if start else [],
        )
    )
    return sorted(found + _growth_goals(numbers["growth"]), key=lambda goal: goal.number)


def goals_section(numbers: dict) -> str:
    "The goals, what was measured, and whether that is enough; the median decides."
    rows = [["goal", "what", "target", "measured", "verdict"], *(goal.row() for goal in goals(numbers))]
    met = sum(row[-1] == "met" for row in rows)
    return f"## Goals\n\n{met} of {len(rows) - 1} met. The median decides.\n\n{table(rows, numeric=False)}"


# ---------------------------------------------------------------- the page

def page(numbers: dict) -> str:
    "The whole page in Markdown."
    facts = "\n".join(f"- {name}: {value}" for name, value in numbers["facts"].items())
    commands = "\n".join(f"- {day}: `{command}`" for day, command in numbers["commands"])
    parts = [
        "# Benchmark results",
        "Written by `benchmarks/run.py`; do not edit.",
        f"{facts}\n{commands}",
        goals_section(numbers),
    ]
    if numbers["workloads"]:
        parts += ["## Workloads", NOTES]
    for name, part in numbers["workloads"].items():
        work = WORKLOADS[name]
        parts.append(f"### {name}: {work.title}")
        rounds = f"{part['rounds']} rounds, {part['threads']} thread(s) for each contender"
        if work.pictures:
            parts += [
                f"{part['images']:,} pictures an epoch, batches of {work.batch_size}, {work.optimizer}; {rounds}.",
                epoch_table(part),
                *compile_line(part),
            ]
        else:
            parts += [f"{part['images']:,} steps an epoch; {rounds}.", overhead_table(part)]
        skipped = [
            f"- `{result['name']}` skipped: {result['skipped']}" for result in part["results"] if result["skipped"]
        ]
        if skipped:
            parts.append("\n".join(skipped))
    if numbers["growth"]:
        parts.append(growth_section(numbers["growth"]))
    if numbers["accuracy"]:
        parts.append(accuracy_section(numbers["accuracy"]))
    return "\n\n".join(parts) + "\n"
