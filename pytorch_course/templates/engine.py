"""The heart: one epoch of training, one of testing, and the loop over the epochs.

From lesson 04, Training (nbs/04_training.ipynb of pytorch_course), shorter, with the same losses and accuracies.
Callbacks are in nbs/3_training/40_callbacks.ipynb, seeds of epochs in nbs/3_training/34_reproducibility.ipynb.
"""
import math
import time

import torch
from tqdm import tqdm

from utils import seed_everything


def average(batches: list[tuple]) -> tuple[float, float]:
    "Means over all samples, from `(loss, correct answers, samples)` of each batch; the last one may be smaller."
    if not batches: raise ValueError("the dataloader gave no batch; is the data set empty?")
    losses, correct, counts = zip(*batches)
    weights = torch.tensor(counts, dtype=torch.float64)
    loss = weights @ torch.stack(losses).cpu().double() / weights.sum()
    return loss.item(), torch.stack(correct).sum().item() / sum(counts)


def train_step(model, dataloader, loss_fn, optimizer, device, scheduler=None) -> tuple[float, float]:
    "Train for one epoch; loss and accuracy are taken while the weights are changing."
    model.train()
    batches = []
    for X, y in dataloader:
        X, y = X.to(device), y.to(device)
        logits = model(X)  # 1. forward
        loss = loss_fn(logits, y)  # 2. loss
        optimizer.zero_grad()  # 3. forget the last gradients
        loss.backward()  # 4. compute new ones
        optimizer.step()  # 5. move the weights
        if scheduler is not None:
            scheduler.step()
        # Tensors, not numbers: `.item()` would make a GPU wait in every step.
        batches.append((loss.detach(), (logits.argmax(dim=1) == y).sum(), len(y)))
    return average(batches)


def test_step(model, dataloader, loss_fn, device) -> tuple[float, float]:
    "Loss and accuracy of a model that is not changed."
    model.eval()
    batches = []
    with torch.inference_mode():
        for X, y in dataloader:
            X, y = X.to(device), y.to(device)
            logits = model(X)
            batches.append((loss_fn(logits, y), (logits.argmax(dim=1) == y).sum(), len(y)))
    return average(batches)


def train(
    model, train_dataloader, test_dataloader, optimizer, loss_fn, epochs, device,
    *,
    scheduler=None,  # makes a step after every batch
    seed=None,  # the random numbers of an epoch then depend only on seed and epoch, so that a run can be resumed
    results=None,  # of earlier epochs, to go on from there
    callbacks=(),  # functions `callback(results)`, called after every epoch
) -> dict[str, list[float]]:
    "Train and test for all epochs; returns their losses and accuracies. Raises `ValueError` if a loss is not finite."
    names = ("train_loss", "train_acc", "test_loss", "test_acc")
    results = {name: [] for name in names} if results is None else results
    model.to(device)
    for epoch in range(len(results["train_loss"]) + 1, epochs + 1):
        if seed is not None:
            seed_everything((seed + 1_000_003 * epoch) % 2**32)
        start = time.perf_counter()
        title = f"epoch {epoch}/{epochs}"
        batches = tqdm(train_dataloader, title, leave=False, disable=None)  # a bar, but only in a terminal
        numbers = train_step(model, batches, loss_fn, optimizer, device, scheduler)
        numbers += test_step(model, test_dataloader, loss_fn, device)
        if not math.isfinite(total := numbers[0] + numbers[2]):
            raise ValueError(f"the loss became {total} in {title}; lower the learning rate")
        for name, number in zip(names, numbers):
            results[name].append(number)
        shown = "  ".join(f"{name} {column[-1]:.4f}" for name, column in results.items())
        print(f"{title}  {shown}  {time.perf_counter() - start:.1f} s", flush=True)
        for callback in callbacks:
            callback(results)
    return results
