"""Time to accuracy: from a folder of JPEG files to a network with 80% test accuracy.

    python benchmarks/time_to_accuracy.py ours cifar10/train cifar10/test
    python benchmarks/time_to_accuracy.py standard cifar10/train cifar10/test

Two recipes for the same network; each prints a line of JSON per epoch: `[seconds, test accuracy]`. The clock starts
when all imports are done and before the first file is opened; testing after each epoch counts.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from small import ENVIRONMENT

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images


# ---------------------------------------------------------------- the recipes: `(seconds, accuracy)` after every epoch

def ours(train_dir: str, test_dir: str, num_workers: int, seed: int) -> Iterator[tuple[float, float]]:
    "`train_cifar10_quickly` as it is; ends by itself."
    from pytorch_course.trainer import Callback
    from quick_net import train_cifar10_quickly
    import pandas  # noqa: F401  `fit` imports it

    class Report(Callback):
        def after_epoch(self, trainer):
            done.append((time.perf_counter() - start, trainer.history[-1]["valid_acc"]))

    done, start = [], time.perf_counter()
    train_cifar10_quickly(train_dir, test_dir, seed=seed, callbacks=[Report()])
    yield from done


def standard(train_dir: str, test_dir: str, num_workers: int, seed: int) -> Iterator[tuple[float, float]]:
    "The standard recipe, written plainly; never ends."
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

    from quick_net import QuickNet

    torch.manual_seed(seed)
    model, start = QuickNet(), time.perf_counter()
    prepare = [ToTensor(), Normalize(MEAN, STD)]
    train_dataset = ImageFolder(train_dir, Compose([RandomCrop(32, padding=4), RandomHorizontalFlip(), *prepare]))
    train = DataLoader(train_dataset, batch_size=64, shuffle=True, num_workers=num_workers)
    test = DataLoader(ImageFolder(test_dir, Compose(prepare)), batch_size=64, num_workers=num_workers)
    loss_fn, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=1e-3)
    while True:
        model.train()
        for X, y in train:
            loss = loss_fn(model(X), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            correct = sum((model(X).argmax(dim=1) == y).sum().item() for X, y in test)
        yield time.perf_counter() - start, correct / len(test.dataset)


RECIPES = {"ours": ours, "standard": standard}


# ---------------------------------------------------------------- seen from outside

def run_recipe(name: str, folder: Path, **options) -> list[tuple[float, float]]:
    "`(seconds, accuracy)` of every epoch, in a process of its own, until the target is reached."
    words = [f"--{key}={value}" for key, value in options.items()]
    command = [sys.executable, __file__, name, str(folder / "train"), str(folder / "test"), *words]
    epochs = []
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if not line.startswith("["): continue  # what an engine prints
            epochs.append(json.loads(line))
            print(f"  {name}: {epochs[-1][0]:.0f} s, {epochs[-1][1]:.2%}", flush=True)
    if process.returncode: raise RuntimeError(f"the recipe {name} ended with {process.returncode}")
    return epochs


def measure_accuracy(
    folder: Path,  # holds `train` and `test`
    target: float,  # accuracy, 0..1
    threads: int,  # for `torch.set_num_threads`
    num_workers: int,  # of the standard recipe
    max_epochs: int,  # of the standard recipe
) -> dict:
    "Ours with three seeds and the standard recipe with one, in turn."
    print(f"accuracy: minutes to {target:.0%}", flush=True)
    turns = {"ours": ("ours", 0), "standard": ("standard", 0), "ours, seed 1": ("ours", 1), "ours, seed 2": ("ours", 2)}
    options = dict(target=target, threads=threads, num_workers=num_workers, max_epochs=max_epochs)
    runs = {name: run_recipe(recipe, folder, seed=seed, **options) for name, (recipe, seed) in turns.items()}
    return {"target": target, "threads": threads, "runs": runs}


def main():
    "Run one recipe."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("train_dir", help="folder of class folders to train on")
    parser.add_argument("test_dir", help="folder of class folders to test on")
    parser.add_argument("--target", type=float, default=0.8, help="stop at this test accuracy; default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count(), help="of the standard recipe; default: number of cores"
    )
    parser.add_argument("--max_epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import torch
    torch.set_num_threads(args.threads)
    epochs = RECIPES[args.recipe](args.train_dir, args.test_dir, args.num_workers, args.seed)
    for seconds, share in itertools.islice(epochs, args.max_epochs):
        print(json.dumps([seconds, share]), flush=True)
        if share >= args.target: return


if __name__ == "__main__":
    main()
