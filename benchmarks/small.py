"""Three small measurements, each in a process of its own: memory of the cache, flip and crop, start of the commands."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATH = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])  # this checkout comes first
ENVIRONMENT = os.environ | {"PYTHONPATH": PATH}


def _in_a_fresh_process(name: str, *arguments) -> dict:
    "Run one of the functions below and return its numbers."
    command = [sys.executable, str(HERE/"small.py"), name, *map(str, arguments)]
    return json.loads(subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True).stdout)


# ---------------------------------------------------------------- goal 8

def _memory() -> int:
    "Bytes that this process has taken, without programs and other files; 0 where the system (not Linux) does not say."
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return sum(int(size) * 1024 for size in re.findall(r"^Rss(?:Anon|Shmem):\s*(\d+) kB", status, re.MULTILINE))


def _cache(folder: str, image_size: str) -> dict:
    import torch
    from pytorch_course.image_cache import ImageCache
    from pytorch_course.images import ImageTransform

    paths = sorted(path for path in Path(folder).rglob("*.*") if path.is_file())
    transform = ImageTransform(int(image_size))
    before = _memory()
    cache = ImageCache(paths, transform, folder, budget_bytes=2**40)
    cache.decode(torch.arange(len(cache)))
    numbers = {"images": len(cache), "bytes": cache.nbytes, "grown": _memory() - before if before else 0}
    with tempfile.TemporaryDirectory() as beside, contextlib.redirect_stderr(io.StringIO()) as messages:
        root, budget_bytes = Path(beside, "images"), cache.nbytes // len(paths)  # the file goes beside this root
        cache = ImageCache(paths[:200], transform, root, budget_bytes=budget_bytes)
        cache.decode(torch.arange(len(cache)))
        numbers["file_made"] = cache.path is not None and cache.path.stat().st_size >= cache.nbytes
        numbers["said"] = "kept in the file" in messages.getvalue()
    return numbers


def measure_cache(
    folder: Path,  # images, at any depth
    image_size: int,  # height and width when they are decoded
) -> dict:  # `images`, `bytes` of their pixels, `grown`: by the process; with too small a budget: `file_made`, `said`
    "Fill an `ImageCache` in memory, and one with too small a budget, which makes a file and says so."
    return _in_a_fresh_process("cache", folder, image_size)


# ---------------------------------------------------------------- goal 9

def _flip_crop(repeats: str, threads: str) -> dict:
    import torch
    from PIL import Image
    from pytorch_course.augmentation import RandomFlipCrop
    from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip

    torch.set_num_threads(int(threads))
    X, image = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8), Image.new("RGB", (32, 32))
    batch, sample = RandomFlipCrop(padding=4), Compose([RandomCrop(32, padding=4), RandomHorizontalFlip()])
    numbers = {"ours": [], "torchvision": []}
    for _ in range(int(repeats) + 1):
        start = time.perf_counter()
        for _ in range(50):
            batch(X)
        middle = time.perf_counter()
        for _ in range(len(X)):
            sample(image)
        numbers["ours"].append((middle - start) / 50 / len(X) * 1e6)
        numbers["torchvision"].append((time.perf_counter() - middle) / len(X) * 1e6)
    return {name: values[1:] for name, values in numbers.items()}


def measure_flip_crop(repeats: int, threads: int) -> dict:
    "Microseconds a image, in turn: `ours` on batches, `torchvision` on each image as Pillow has opened it."
    return _in_a_fresh_process("flip_crop", repeats, threads)


# ---------------------------------------------------------------- goal 10

def _save(folder: str) -> dict:
    "A model and a image to predict."
    from PIL import Image
    from pytorch_course.images import ImageTransform
    from pytorch_course.model import build_model
    from pytorch_course.save_load import ModelInfo, save_model

    arguments = {"input_shape": 3, "hidden_units": 10, "output_shape": 2, "image_size": 64}
    info = ModelInfo("tinyvgg", arguments, ["ants", "bees"], ImageTransform(64))
    Image.effect_noise((500, 375), 60).convert("RGB").save(Path(folder, "image.jpg"))
    return {"model": str(save_model(build_model("TinyVGG", **arguments), folder, "model.pt", info))}


def measure_start(rounds: int) -> dict:
    "Seconds of programs, in turn: `python`, `torch`'s import, our `help` and `predict`; the first round is dropped."
    with tempfile.TemporaryDirectory() as folder:
        model = _in_a_fresh_process("save", folder)["model"]
        programs = {
            "python": ["-c", "pass"], "help": ["-m", "pytorch_course", "--help"], "torch": ["-c", "import torch"],
            "predict": ["-m", "pytorch_course", "predict", model, f"{folder}/image.jpg"],
        }
        numbers = {name: [] for name in programs}
        for _ in range(rounds):
            for name, words in programs.items():
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, *words], cwd=folder, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL
                )
                numbers[name].append(time.perf_counter() - start)
    return {name: values[1:] or values for name, values in numbers.items()}


if __name__ == "__main__":
    print(json.dumps({"cache": _cache, "flip_crop": _flip_crop, "save": _save}[sys.argv[1]](*sys.argv[2:])))
