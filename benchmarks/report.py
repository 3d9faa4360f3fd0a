"""From numbers to a page: the tables of every workload, the goals beside what was measured, and a plot of the growth.

`numbers` is the dictionary that `run.py` keeps as JSON:
`{"workloads": {"W1": {"images": ..., "results": [...]}, ...}, "growth": {...}, "small": {...}, "accuracy": {...}}`.
A result is what a contender's process reported: `{"name": ..., "epochs": [...], "firsts": [...], "skipped": None}`.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from workloads import WORKLOADS

MIB = 2**20
NOTES = """\
How to read the tables:

- `limit` is the plain float32 loop (forward, loss, `zero_grad`, backward, step) over batches that lie in memory: a
  loader and an engine that cost nothing. It is plain eager PyTorch, contiguous, with glibc's own memory settings; what
  this package does about those settings and about channels last is how it can be faster than this "limit".
- `teaching` is the best-known teaching code: `ImageFolder`, `Resize` and `ToTensor` per sample, a `DataLoader` with a
  process per core, a loop with `.item()` in every step. The other engines train on the same loaders.
- `ours` is `create_cached_dataloaders` and `fit` with their defaults; `_contiguous`: `channels_last=False`; `_bf16`:
  `precision="bf16"`; `_compile`: `compile=True`; `_nocache`: `cache=False`; `_draft`: `draft=True`. All contenders have
  the same model, first weights, order of the images and loss, and the same optimizer with the same arguments.
- An epoch is training and testing. The first one includes everything that prepares the data, decoding above all;
  imports are done before. Steady epochs are all later ones.
- Ratios are taken within a round, in which the contenders take turns, each in its own process; shown is the median, and
  the smallest and largest in brackets. Differences below 10% mean nothing.
- Peak memory is that of the main process. Page faults are the median of the steady epochs, with the workers that have
  ended. "loss - limit's" is the largest difference of a training or test loss to the losses of `limit`, in all epochs;
  0 means bit-identical."""


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
    teaching, limit = find(part, "teaching"), find(part, "limit")
    rows = []
    for result in part["results"]:
        if result["skipped"]: continue
        median = statistics.median(steady(result))
        rows.append({
            "contender": result["name"],
            "first epoch s": spread(result["firsts"]),
            "first / teaching": spread(firsts(result, teaching)),
            "steady epoch s": f"{median:.3f}",
            "/ teaching": spread(ratios(result, teaching)),
            "/ limit": spread(ratios(result, limit)),
            "us an image": f"{median / part['images'] * 1e6:.0f}",
            "peak MiB": f"{result['epochs'][-1]['memory']:.0f}",
            "page faults": f"{statistics.median(steady(result, 'faults')):,.0f}",
            "loss - limit's": f"{loss_difference(result, limit):.1e}",
        })
    return table([list(rows[0]), *(list(row.values()) for row in rows)]) if rows else ""


def compile_line(part: dict) -> list[str]:
    "After how many epochs `compile=True` pays, if it took part."
    ours, compiled = find(part, "ours"), find(part, "ours_compile")
    if not ours or not compiled: return []
    costs = compiled["firsts"][0] - ours["firsts"][0]
    saves = statistics.median(a - b for a, b in zip(steady(ours), steady(compiled)))
    later = f"pays after {costs / saves:.0f} more" if saves > 0 else "saves nothing afterwards"
    return [f"`compile=True` costs {costs:.1f} s in the first epoch and {later}."]


def overhead_table(part: dict) -> str:
    "Microseconds of a step, and how many of them the engine adds; the one step of testing counts."
    rows = [["contender", "us a step", "more than the bare loop, us"]]
    for result in part["results"]:
        if result["skipped"]: continue
        microseconds = [seconds / part["images"] * 1e6 for seconds in steady(result)]
        rows.append([result["name"], spread(microseconds, 1), spread(added(part, result), 1)])
    return table(rows)


def growth_rows(growth: dict) -> list[tuple[int, str, float, float, float]]:
    "`(training images, contender, us a image, peak MiB, MiB beyond the cache)`"
    rows = []
    for name in ("ours", "teaching"):
        for size, part in growth.items():
            result = find(part, name)
            if not result: continue
            peak = result["epochs"][-1]["memory"]
            time = statistics.median(steady(result)) / part["images"] * 1e6
            rows.append((int(size), name, time, peak, peak - (part["cache"] / MIB if name == "ours" else 0)))
    return rows


def growth_section(growth: dict) -> str:
    "The table; the plot is beside the page."
    rows = [["training images", "contender", "us a image", "peak MiB", "beyond the cache, MiB"]]
    for size, name, time, peak, beyond in growth_rows(growth):
        rows.append([f"{size:,}", name, f"{time:.0f}", f"{peak:.0f}", f"{beyond:.0f}" if name == "ours" else ""])
    text = (
        "Steady epochs of W3 with more and more images, a fifth as many again to test on. The cache is a byte per "
        "pixel and channel. `teaching`: the main process alone, "
        "without its workers."
    )
    figure = "![Time per image and peak memory against the number of images](growth.svg)"
    return f"## Growth\n\n{text}\n\n{table(rows)}\n\n{figure}"


def plot_growth(growth: dict, path: Path):
    "Time per image and memory against the number of training images, as SVG."
    import matplotlib
    from matplotlib.figure import Figure

    figure, rows = Figure(figsize=(8, 3), layout="constrained"), growth_rows(growth)
    axes = figure.subplots(1, 2)
    lines = {
        "ours": (axes[0], "ours", 2),
        "teaching": (axes[0], "teaching", 2),
        "ours, peak": (axes[1], "ours", 3),
        "ours, beyond the cache": (axes[1], "ours", 4),
        "teaching, main process": (axes[1], "teaching", 3),
    }
    for label, (ax, name, column) in lines.items():
        points = [(row[0], row[column]) for row in rows if row[1] == name]
        if points:
            ax.plot(*zip(*points), "o-" if name == "ours" else "s--", markersize=4, label=label)
    titles = {"A steady epoch of W3": "time per image (us)", "Memory while training": "peak memory (MiB)"}
    for ax, (title, what) in zip(axes, titles.items()):
        ax.set(title=title, xlabel="training images", ylabel=what, xscale="log", ylim=(0, None))
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
        reached = ["not reached", f"{len(epochs)}"]
        if number is not None:
            reached = [f"{epochs[number][0] / 60:.2f}", str(number + 1)]
        best = max((share for _, share in epochs), default=0)
        rows.append([name, *reached, f"{best:.2%}", f"{epochs[-1][0] / 60:.2f}" if epochs else ""])
        curve = ", ".join(f"{seconds / 60:.2f}: {share:.1%}" for seconds, share in epochs)
        lines.append(f"- {name}, minutes: accuracy after each epoch: {curve}")
    train, test = accuracy["images"]
    text = (
        f"{train:,} images to train on, {test:,} to test on, from JPEG files, {accuracy['threads']} threads. The clock "
        "starts before the first file is opened, imports are done; testing after every epoch counts."
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
    note: str = ""  # after the numbers; starts with "not" when it breaks the goal

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
    plain = ours if name == "W1" else find(part, "ours_contiguous")  # W1 has no convolutions
    difference = loss_difference(plain, limit)
    same = ""
    if not math.isnan(difference):
        same = f"not identical: losses differ by {difference:.1e}" if difference else "losses identical"
    goals = [Goal(1, f"{name}: float32, contiguous, / limit; losses identical", 1.05, ratios(plain, limit), note=same)]
    for target in {"W2": [0.60], "W3": [0.70], "W4": [0.62]}.get(name, []):
        goals.append(Goal(2, f"{name}: defaults (channels last) / limit", target, ratios(ours, limit)))
    for target in {"W1": [0.57], "W2": [0.38], "W3": [0.45]}.get(name, []):
        goals.append(Goal(3, f"{name}: bf16 / limit", target, ratios(bf16, limit)))
    faster, in_bf16 = {"W1": (2.1, 3.7), "W2": (3.8, 6.0), "W3": (3.0, 4.5), "W4": (9.0, None)}[name]
    title = f"{name}: times faster than teaching"
    goals.append(Goal(4, f"{title}, defaults", faster, ratios(teaching, ours), "x", at_least=True))
    if in_bf16:
        goals.append(Goal(4, f"{title}, bf16", in_bf16, ratios(teaching, bf16), "x", at_least=True))
    goals.append(Goal(5, f"{name}: first epoch with decoding / teaching's steady epoch", 0.6, firsts(ours, teaching)))
    return goals


def _growth_goals(growth: dict) -> list[Goal]:
    "Goal 11: the largest over the smallest."
    rows = sorted(row for row in growth_rows(growth) if row[1] == "ours")
    times, beyond = [row[2] for row in rows], [row[4] for row in rows]
    between, slower = "", []
    more = []
    if len(rows) > 1:
        between = f" from {rows[0][0]:,} to {rows[-1][0]:,} images"
        slower, more = [max(times) / min(times)], [max(beyond) - min(beyond)]
    return [
        Goal(11, f"growth: slowest / fastest time per image{between}", 1.15, slower),
        Goal(11, f"growth: more memory beyond the cache{between}", 20, more, " MiB"),
    ]


def _cache_goal(cache: dict | None) -> Goal:
    "Goal 8."
    title = "memory of the cache beyond a byte per pixel and channel"
    if not cache: return Goal(8, title, 20, [], " MiB")
    title += f"; {cache['images']:,} images, {cache['bytes'] / MIB:.0f} MiB"
    beyond = [(cache["grown"] - cache["bytes"]) / MIB] if cache["grown"] else []
    note = "not a file beside the data when over budget, or not said"
    if cache["file_made"] and cache["said"]:
        note = "over budget: file made and said"
    return Goal(8, title, 20, beyond, " MiB", note=note)


def _start_goals(start: dict | None) -> list[Goal]:
    "Goal 10."
    title, ratio = "`pytorch-course --help`", "`predict` of one image / `import torch`"
    if not start: return [Goal(10, title, 0.3, [], " s"), Goal(10, ratio, 1.3, [])]
    title += f"; `python -c pass` {spread(start['python'])} s, `import torch` {spread(start['torch'])} s"
    ratios = [a / b for a, b in zip(start["predict"], start["torch"])]
    return [Goal(10, title, 0.3, start["help"], " s"), Goal(10, ratio, 1.3, ratios)]


def goals(numbers: dict) -> list[Goal]:
    "All goals, in the order of their numbers."
    parts, small = numbers["workloads"], numbers["small"]
    overhead, resident = parts.get("overhead"), find(parts.get("W2"), "ours")
    found = [goal for name in WORKLOADS if WORKLOADS[name].images for goal in _workload_goals(name, parts.get(name))]
    more = added(overhead, find(overhead, "ours")) if overhead else []
    found.append(Goal(6, "`fit` over the bare loop, progress bar on, a step", 15, more, " us"))
    found.append(Goal(7, "page faults in a steady epoch of W2", 5000, steady(resident, "faults") if resident else []))
    found.append(_cache_goal(small.get("cache")))
    title, flip_crop = "`RandomFlipCrop`, 64 images of 32x32, an image", small.get("flip_crop") or {"ours": []}
    note = f"torchvision per sample {spread(flip_crop['torchvision'], 1)} us" if flip_crop["ours"] else ""
    found.append(Goal(9, title, 2.5, flip_crop["ours"], " us", note=note))
    found += _start_goals(small.get("start"))
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
        if work.images:
            images = f"{part['images']:,} images an epoch, batches of {work.batch_size}"
            parts += [f"{images}, {work.optimizer}; {rounds}.", epoch_table(part), *compile_line(part)]
        else:
            parts += [f"{part['images']:,} steps an epoch; {rounds}.", overhead_table(part)]
        skipped = [result for result in part["results"] if result["skipped"]]
        if skipped:
            parts.append("\n".join(f"- `{result['name']}` skipped: {result['skipped']}" for result in skipped))
    if numbers["growth"]:
        parts.append(growth_section(numbers["growth"]))
    if numbers["accuracy"]:
        parts.append(accuracy_section(numbers["accuracy"]))
    return "\n\n".join(parts) + "\n"
