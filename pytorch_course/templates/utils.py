"""Devices, seeds, and what is written to disk: run folders, histories, checkpoints, model files.

From lesson 00, Tensors (devices, seeds), lesson 05, Save and load (model files), and, of pytorch_course's nbs,
1_basics/12_files.ipynb (safe writing), 3_training/38_checkpoints.ipynb and 4_tools/50_runs.ipynb.
"""
import csv
import itertools
import os
import random
from pathlib import Path

import numpy as np
import torch

from model_builder import MODELS

FORMAT = "pytorch_course model 2"  # `pytorch-course predict` reads these files, too


def whole_number(text: str) -> int:
    "Convert a flag: 1 or more."
    if int(text) < 1: raise ValueError
    return int(text)


def pick_device(name: str = "auto") -> torch.device:
    "The device of that name; `auto` is the best one there is. Raises `ValueError` when it does not work."
    best = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = best if name == "auto" else torch.device(name)
        torch.zeros(1, device=device).cpu()
        return device
    except (RuntimeError, AssertionError):
        raise ValueError(f"device {name!r} is not available; the best one here is {best}") from None


def seed_everything(seed: int):
    "Seed the random generators of Python, NumPy and PyTorch, on every device."
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def write_file(path: Path, write):
    "Let `write(file)` fill a file that gets its name when it is complete: a killed program leaves the old one."
    temporary = path.with_name(f"{path.name}.part")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def new_run(folder: Path, name: str) -> Path:
    "A new folder `tinyvgg`, or `tinyvgg-2` ...: no run ever replaces an older one."
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    run = next(folder / new for new in names if not (folder / new).exists())
    run.mkdir(parents=True)
    return run


def write_history(path: Path, results: dict[str, list[float]]):
    "Loss and accuracy of every epoch as a table."
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["epoch", *results], *zip(itertools.count(1), *results.values())])


def save_checkpoint(path: Path, parts: dict, **values):
    "Everything that a run needs to go on: the states of `parts` (model, optimizer, scheduler), and plain values."
    states = {name: part.state_dict() for name, part in parts.items()}
    write_file(path, lambda file: torch.save({**states, **values}, file))


def load_checkpoint(path: Path, parts: dict) -> dict:
    "Put the states back into `parts`; returns the plain values as well. Raises `ValueError` if they do not fit."
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(content[name])
    except Exception as error:  # damaged files fail in many ways
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged, or model_builder.py was changed; start a new run. {reason}") from None
    return content


def save_model(model, target_dir: str | Path, model_name: str, info: dict | None = None) -> Path:
    "Save the weights, with `info`, a description, in a file that `load_model` reads."
    path = Path(target_dir) / model_name
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    content = weights if info is None else {"format": FORMAT, "info": info, "state_dict": weights}
    write_file(path, lambda file: torch.save(content, file))
    return path


def load_model(path: str | Path, device="cpu"):
    "The model of a file or run folder in evaluation mode, and its description. Raises `ValueError` if it does not fit."
    path = Path(path, "model.pt") if Path(path).is_dir() else Path(path)
    if not path.is_file(): raise FileNotFoundError(f"no model file at {path}; train.py makes one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        info, weights, name = content["info"], content["state_dict"], content["info"]["architecture"]
    except Exception:  # damaged files fail in many ways
        raise ValueError(f"{path} is not a model file of train.py, or it is damaged") from None
    try:
        model = MODELS[name](**info["model_kwargs"])
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit model_builder.py; was {name!r} changed or removed? {reason}") from None
    return model.to(device).eval(), info
