"""Compare training engines: each in its own process, epochs in turn, ratios within a round, medians with their range.

    python benchmarks/run.py --quick                                  # does everything work?
    python benchmarks/run.py --cifar cifar10_images.zip --photos ants_bees.zip --out RESULTS.md --json numbers.json
    python benchmarks/run.py --parts W2 --contenders limit teaching ours ours_compile --rounds 40

Parts: W1 to W4 train small networks on folders of images, `overhead` is an engine alone, `small` measures the cache's
memory, flip and crop, and the start of the commands, `growth` is W3 with more and more images, `accuracy` is the time
to 80% on CIFAR-10 (only with --cifar). The page is written again after every part; what an earlier run has left in the
--json file stays on it until the part is run again. Missing peers are skipped, and the page says so:
`pip install "pytorch_course[bench]"` installs them.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import pty
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

from contenders import CONTENDERS
from report import page, plot_growth
from small import ENVIRONMENT, HERE, measure_cache, measure_flip_crop, measure_start
from time_to_accuracy import measure_accuracy
from workloads import IMAGES, SUFFIXES, WORKLOADS, Job, prepare_images

PARTS = [*WORKLOADS, "small", "growth", "accuracy"]
PEERS = [name for name, contender in CONTENDERS.items() if contender.peer]
VARIANTS = {  # besides limit, teaching and ours, which take part everywhere
    "W1": ["ours_bf16", "ours_nocache"],  # without convolutions, `ours` is contiguous
    "W2": ["ours_contiguous", "ours_bf16", "ours_nocache"],
    "W3": ["ours_contiguous", "ours_bf16", "ours_nocache"],
    "W4": ["ours_contiguous", "ours_bf16", "ours_nocache", "ours_draft"],
    "overhead": [],
}
PACKAGES = [
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "pytorch_course",
    "lightning",
    "skorch",
    "pytorch-ignite",
    "accelerate",
]


# ---------------------------------------------------------------- processes and turns

class Player:
    "A contender's process, seen from here."
    def __init__(self, name: str, job: Job, folder: Path):
        self.name, self.skipped = name, None
        self.epochs: list[dict] = []
        self.firsts: list[float] = []
        terminal, stderr = pty.openpty()  # a terminal, so that progress bars are drawn as they are for a user
        self.tail: deque[str] = deque(maxlen=200)  # last pieces of what it prints
        self.process = subprocess.Popen(
            [sys.executable, str(HERE/"contenders.py"), name, json.dumps(asdict(job))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=folder, env=ENVIRONMENT,
        )
        os.close(stderr)
        threading.Thread(target=self._read, args=[terminal], daemon=True).start()

    def _read(self, terminal: int):
        "Keep what it prints; a full terminal would stop it."
        try:
            while text := os.read(terminal, 4096):
                self.tail.append(text.decode(errors="replace"))
        except OSError:
            pass  # it has ended
        os.close(terminal)

    def receive(self) -> dict:
        "Its next line. An end without one counts as a skip, with the last line of its error."
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            lines = "".join(self.tail).strip().splitlines() or ["no message"]
            reply = {"skip": f"failed: {lines[-1].strip()}"}
            print("\n".join(lines[-15:]), file=sys.stderr)
        else:
            reply = json.loads(line)
        self.skipped = reply.get("skip", self.skipped)
        return reply

    def play(self):
        "Let it run one epoch and note the numbers."
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        reply = self.receive()
        if self.skipped: return
        self.epochs.append(reply)
        self.firsts = self.firsts or [reply["seconds"]]

    def close(self):
        "No more turns: it ends by itself."
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def result(self) -> dict:
        return {name: getattr(self, name) for name in ("name", "epochs", "firsts", "skipped")}


def compete(jobs: dict[str, Job], rounds: int, folder: Path) -> list[Player]:
    "One first epoch each, then `rounds` more, in turn; who begins changes from round to round."
    players = [Player(name, job, folder) for name, job in jobs.items()]
    for player in players:
        player.receive()  # ready, or skipped
    for round_ in range(rounds + 1):
        playing = [player for player in players if not player.skipped]
        for i in range(len(playing)):
            playing[(i + round_) % len(playing)].play()
        seconds = "  ".join(f"{player.name} {player.epochs[-1]['seconds']:.2f}" for player in playing if player.epochs)
        print(f"  round {round_}: {seconds}", flush=True)
    for player in players:
        player.close()
    return players


def more_firsts(player: Player, job: Job, times: int, folder: Path):
    "A first epoch happens once in a process: begin a few more."
    for _ in range(times):
        again = Player(player.name, job, folder)
        if "skip" not in again.receive():
            again.play()
        again.close()
        player.firsts += again.firsts


# ---------------------------------------------------------------- parts

def make_job(args, workload: str, folder: Path, numbers: tuple[int, int]) -> Job:
    "What everybody receives in this workload, with no options yet; makes the images."
    kind, images = WORKLOADS[workload].images, None
    if kind:
        wanted = replace(IMAGES[kind], train=numbers[0], test=numbers[1])
        images = str(prepare_images(folder, kind, getattr(args, kind), wanted, args.seed))
    threads = WORKLOADS[workload].threads or args.threads
    return Job(workload, images, {}, threads, args.num_workers, args.steps, args.device, args.seed)


def run_jobs(args, job: Job, names: list[str], rounds: int, folder: Path, firsts: int = 1) -> dict:
    "Let some contenders do the same job; the numbers as the page wants them."
    jobs = {name: replace(job, options=CONTENDERS[name].options) for name in names}
    images = sum(path.suffix.lower() in SUFFIXES for path in Path(job.folder).rglob("*")) if job.folder else job.steps
    print(f"{job.workload}: {job.work.title} ({images:,} {'images' if job.folder else 'steps'})", flush=True)
    players = compete(jobs, rounds, folder)
    for player in players:
        if player.name == "ours":
            more_firsts(player, jobs["ours"], firsts - 1, folder)
    results = [player.result() for player in players]
    return {"images": images, "rounds": rounds, "threads": job.threads, "results": results}


def run_workload(args, name: str, folder: Path) -> dict:
    "One of W1 to W4, or `overhead`. A quick run has few contenders, and peers, which import for seconds, only there."
    kind = WORKLOADS[name].images
    peers = [] if args.quick and kind else PEERS
    variants = VARIANTS[name][:1] if args.quick else VARIANTS[name]
    names = args.contenders or ["limit", "teaching", "ours", *variants, *args.add, *peers]
    numbers = None
    if kind:
        defaults = (80, 40) if args.quick else (IMAGES[kind].train, IMAGES[kind].test)
        numbers = getattr(args, f"{kind}_images") or defaults
    firsts = 3 if kind and not args.quick else 1
    return run_jobs(args, make_job(args, name, folder, numbers), names, args.rounds, folder, firsts)


def run_small(args, folder: Path) -> dict:
    "Goals 8 to 10."
    number, repeats = (100, 1) if args.quick else (20_000, 6)
    wanted = replace(IMAGES["cifar"], train=number, test=10)
    images = prepare_images(folder, "cifar", args.cifar, wanted, args.seed)
    print("small: memory of the cache, flip and crop, start of the commands", flush=True)
    return {
        "cache": measure_cache(images / "train", 64),
        "flip_crop": measure_flip_crop(repeats, args.threads),
        "start": measure_start(repeats),
    }


def run_growth(args, folder: Path) -> dict:
    "W3 with more and more images, a fifth as many again to test on."
    found, work = {}, WORKLOADS["W3"]
    for size in args.growth or ([5000, 10_000, 25_000, 50_000] if args.cifar else [2000, 4000, 8000]):
        part = run_jobs(args, make_job(args, "W3", folder, (size, size // 5)), ["ours", "teaching"], 2, folder)
        found[size] = part | {"cache": part["images"] * work.channels * work.image_size**2}
    return found


def run_accuracy(args, folder: Path) -> dict:
    "All of CIFAR-10, or a part of it."
    train, test = args.cifar_images or (50_000, 10_000)
    wanted = replace(IMAGES["cifar"], train=train, test=test)
    images = prepare_images(folder, "cifar", args.cifar, wanted, args.seed)
    measured = measure_accuracy(images, args.target, args.threads, args.num_workers, args.max_epochs)
    return measured | {"images": (train, test)}


# ---------------------------------------------------------------- facts

def machine() -> str:
    "Processor, number of cores, memory and system in a line."
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        processor = names[0] if names else processor
    memory = ""
    if hasattr(os, "sysconf"):
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return f"{processor}, {os.cpu_count()} cores{memory}, {platform.system()} {platform.release()}"


def versions() -> str:
    "Python and the packages that are installed."
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    return ", ".join(found)


def command() -> str:
    "As it was typed, with files by their names only."
    words = shlex.join(Path(word).name if os.sep in word else word for word in sys.argv[1:])
    return f"python benchmarks/run.py {words}"


# ---------------------------------------------------------------- the command

def parse_arguments() -> argparse.Namespace:
    "The command line; `--quick` changes defaults only."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        metavar="PART",
        help="of: %(choices)s; default: all, with --quick W3 overhead small",
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        metavar="NAME",
        help="of: %(choices)s; default: all but ours_compile, where they make sense",
    )
    parser.add_argument(
        "--add",
        nargs="+",
        default=[],
        choices=CONTENDERS,
        metavar="NAME",
        help="contenders besides the default ones, for example ours_compile",
    )
    parser.add_argument("--rounds", type=int, help="steady epochs of each contender; default: 5")
    parser.add_argument("--mnist", type=Path, help="folder or zip file of gray digits for W1 (default: made)")
    parser.add_argument(
        "--cifar",
        type=Path,
        help="folder or zip file of CIFAR images for W2, W3, small, growth, accuracy (default: made)",
    )
    parser.add_argument("--photos", type=Path, help="folder or zip file of large photos for W4 (default: made)")
    for name, images in IMAGES.items():
        numbers = f"images to train and to test on; default: {images.train} {images.test}"
        parser.add_argument(f"--{name}_images", nargs=2, type=int, metavar=("TRAIN", "TEST"), help=numbers)
    parser.add_argument("--steps", type=int, help="steps of an epoch of `overhead`; default: 4000")
    parser.add_argument(
        "--growth",
        nargs="+",
        type=int,
        metavar="N",
        help="training images; default: 5000 10000 25000 50000 with --cifar, else 2000 4000 8000",
    )
    parser.add_argument("--target", type=float, default=0.8, help="test accuracy to reach; default: %(default)s")
    parser.add_argument(
        "--max_epochs", type=int, default=40, help="of the standard recipe on its way there; default: %(default)s"
    )
    parser.add_argument(
        "--data", type=Path, help="where images are made or copied, and kept (default: a temporary folder)"
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of each contender; default: number of cores"
    )
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count(), help="of the standard recipe; default: number of cores"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="Markdown file for the page, growth.svg goes beside it (default: it is printed only)"
    )
    parser.add_argument("--json", type=Path, help="file for all numbers; those of earlier runs are kept in it")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny data, two rounds, a few parts, peers only in `overhead`: a test that everything works",
    )
    args = parser.parse_args()
    if args.parts and "accuracy" in args.parts and not args.cifar:
        parser.error("the part accuracy needs --cifar")
    possible = [part for part in PARTS if part != "accuracy" or args.cifar]
    args.parts = args.parts or (["W3", "overhead", "small"] if args.quick else possible)
    args.rounds = args.rounds or (2 if args.quick else 5)
    args.steps = args.steps or (300 if args.quick else 4000)
    return args


def load_numbers(args) -> dict:
    "What earlier runs have left, and where this one takes place."
    numbers = {"commands": [], "workloads": {}, "small": {}, "growth": {}, "accuracy": {}}
    if args.json and args.json.exists():
        numbers = json.loads(args.json.read_text())
    workers = f"{args.num_workers} worker processes in the standard recipe; device {args.device}"
    numbers["facts"] = {"machine": f"{machine()}; {workers}", "versions": versions()}
    numbers["commands"].append((str(date.today()), command()))
    return numbers


def save(args, numbers: dict):
    "Write what there is so far."
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1))
    if not args.out: return
    args.out.write_text(page(numbers), encoding="utf-8")
    if numbers["growth"]:
        plot_growth(numbers["growth"], args.out.with_name("growth.svg"))


def main():
    "Run the parts one after the other; write the page."
    args, start = parse_arguments(), time.perf_counter()
    numbers = load_numbers(args)
    others = {"small": run_small, "growth": run_growth, "accuracy": run_accuracy}
    with tempfile.TemporaryDirectory(prefix="pytorch_course_bench_", ignore_cleanup_errors=True) as temporary:
        folder = (args.data or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for part in args.parts:
            if part in WORKLOADS:
                numbers["workloads"][part] = run_workload(args, part, folder)
            else:
                numbers[part] = others[part](args, folder)
            save(args, numbers)
    print(f"\n{page(numbers)}\n{time.perf_counter() - start:.0f} s")
    failed = []
    for name in set(args.parts) & set(numbers["workloads"]):
        for result in numbers["workloads"][name]["results"]:
            if (result["skipped"] or "").startswith("failed"):
                failed.append(f"{result['name']} in {name}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
