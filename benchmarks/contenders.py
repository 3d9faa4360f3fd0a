"""Who trains: one function per engine. Each runs in a process of its own, and waits for its turn after every epoch.

A contender is a function `(job, turn)`. It imports what it needs and says `turn.ready()`; from then on the clock of its
first epoch runs. At the end of every epoch (training and testing) it calls `turn.next(train_loss, test_loss)`, which
comes back when it may go on.
"""

import gc
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from workloads import Job, make_datasets, make_loaders, make_model, num_classes


class Turn:
    "The contender's end of the pipe: JSON lines, one per epoch."
    def __init__(self):
        self.replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever an engine prints goes to the terminal on stderr, not into the pipe

    def send(self, **values):
        print(json.dumps(values), file=self.replies, flush=True)

    def start(self):
        "Wait for the next turn, then start the clock. Ends the process when there is none; no engine can catch that."
        if not sys.stdin.readline():
            os._exit(0)
        gc.collect()  # whether each worker process has to would be a matter of luck, and costs it 0.2 s
        self.faults, self.began = _page_faults(), time.perf_counter()

    def ready(self):
        "All imports are done; the first epoch begins, with everything that prepares the data."
        self.send(ready=True)
        self.start()

    def end(self, train_loss: float, test_loss: float):
        "Stop the clock and report."
        seconds = time.perf_counter() - self.began
        self.send(
            seconds=seconds,
            train_loss=train_loss,
            test_loss=test_loss,
            faults=_page_faults() - self.faults,
            memory=_peak_memory(),
        )

    def next(self, train_loss: float, test_loss: float):
        "An epoch is done; comes back at the start of the next one."
        self.end(train_loss, test_loss)
        self.start()


def _page_faults() -> int:
    "Minor page faults of this process and of those workers that have ended."
    return sum(resource.getrusage(who).ru_minflt for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _peak_memory() -> float:
    "MiB of this process at most so far, without its workers; not `ru_maxrss` on Linux: it begins at the parent's size."
    try:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# ---------------------------------------------------------------- plain loops

def _mean(losses: list, sizes: list[int]) -> float:
    "Mean over samples; waits for the device."
    import torch
    sizes = torch.tensor(sizes, dtype=torch.float64)
    return (sizes @ torch.stack(losses).cpu().double() / sizes.sum()).item()


def _resident(job: Job) -> tuple:
    "Images `(N, C, H, W)` and labels `(N,)` of both splits, on the device; the order of epochs as a loader of indices."
    import torch
    from torch.utils.data import DataLoader

    datasets = make_datasets(job)
    data = []
    for dataset in datasets:
        X = torch.empty(len(dataset), job.work.channels, job.work.image_size, job.work.image_size)
        for i, (x, _) in enumerate(dataset):
            X[i] = x
        data.append((X.to(job.device), torch.tensor(dataset.targets, device=job.device)))
    indices = [range(len(dataset)) for dataset in datasets]
    order: DataLoader = make_loaders(job, indices, num_workers=0, collate_fn=torch.tensor)[0]
    return *data, order


def _resident_batches(job: Job):
    "Endlessly: batches to train on and to test on, as lists of views into memory that is used again and again."
    import torch

    if job.folder is None:
        train, test = make_loaders(job)
        while True:
            yield train, test
    (X, y), (X_test, y_test), order = _resident(job)
    X_shuffled, y_shuffled = torch.empty_like(X), torch.empty_like(y)
    size = job.work.batch_size
    test = list(zip(X_test.split(size), y_test.split(size)))
    while True:
        indices = torch.cat(list(order)).to(X.device)
        torch.index_select(X, 0, indices, out=X_shuffled)
        torch.index_select(y, 0, indices, out=y_shuffled)
        yield list(zip(X_shuffled.split(size), y_shuffled.split(size))), test


def limit(job: Job, turn: Turn):
    "Batches in memory, prepared before the clock starts, and the five steps: a loader and an engine that cost nothing."
    import torchvision.transforms  # noqa: F401  before the clock starts

    turn.ready()
    model, loss_fn, optimizer = make_model(job)
    batches = _resident_batches(job)
    train, test = next(batches)
    while True:
        turn.end(*_plain_epoch(model, loss_fn, optimizer, train, test))
        train, test = next(batches)  # between two turns; in the first epoch it counts
        turn.start()


def _plain_epoch(model, loss_fn, optimizer, train, test) -> tuple[float, float]:
    "Train and test once; `(train_loss, test_loss)`."
    import torch

    model.train()
    losses = []
    for X, y in train:
        loss = loss_fn(model(X), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    train_loss = _mean(losses, [len(y) for _, y in train])
    model.eval()
    with torch.inference_mode():
        losses = [loss_fn(model(X), y) for X, y in test]
    return train_loss, _mean(losses, [len(y) for _, y in test])


def teaching(job: Job, turn: Turn, prepare: Callable | None = None):
    "The best-known teaching code: `ImageFolder`, a `DataLoader` with a process per core, `.item()` in every step."
    import torch
    import torchvision.transforms  # noqa: F401  before the clock starts

    accelerator = prepare() if prepare else None
    turn.ready()
    model, loss_fn, optimizer = make_model(job)
    train, test = make_loaders(job)
    backward = torch.Tensor.backward
    if accelerator:
        model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
        backward = accelerator.backward
    while True:
        model.train()
        total, correct = 0.0, 0
        samples = 0
        for X, y in train:
            X, y = X.to(job.device), y.to(job.device)
            logits = model(X)
            loss = loss_fn(logits, y)
            total, samples = total + loss.item() * len(y), samples + len(y)
            correct += (logits.argmax(dim=1) == y).sum().item()
            optimizer.zero_grad()
            backward(loss)
            optimizer.step()
        turn.next(total / samples, _test_loss(model, loss_fn, test, job.device))


def _test_loss(model, loss_fn, test, device) -> float:
    "The standard recipe's test loop."
    import torch

    model.eval()
    total, correct = 0.0, 0
    samples = 0
    with torch.inference_mode():
        for X, y in test:
            X, y = X.to(device), y.to(device)
            logits = model(X)
            total, samples = total + loss_fn(logits, y).item() * len(y), samples + len(y)
            correct += (logits.argmax(dim=1) == y).sum().item()
    return total / samples


# ---------------------------------------------------------------- this package

def ours(job: Job, turn: Turn):
    "`create_cached_dataloaders` and `fit`; `job.options` has further arguments: `{'loaders': {...}, 'fit': {...}}`."
    from pytorch_course.image_cache import create_cached_dataloaders
    from pytorch_course.images import ImageTransform
    from pytorch_course.recipes import fit
    from pytorch_course.trainer import Callback
    import pandas  # noqa: F401  `fit` imports it
    import torchvision.transforms  # noqa: F401  as the others do; with it comes what the first step would import

    class EndOfEpoch(Callback):
        order = 2000  # after all others

        def after_epoch(self, trainer):
            turn.next(trainer.history[-1]["train_loss"], trainer.history[-1]["valid_loss"])

    loader_options, fit_options = job.options.get("loaders", {}), job.options.get("fit", {})
    turn.ready()
    transform = ImageTransform(job.work.image_size, job.work.channels, mean=(0.0,), std=(1.0,))  # 0..1, like `ToTensor`
    if job.folder is None:
        train, test = make_loaders(job)
    else:
        folders = Path(job.folder, "train"), Path(job.folder, "test")
        batch_size = job.work.batch_size
        train, test, _ = create_cached_dataloaders(*folders, transform, batch_size, seed=job.seed, **loader_options)
    model, loss_fn, optimizer = make_model(job)
    options = {"loss_fn": loss_fn, "optimizer": optimizer, "device": job.device} | fit_options
    fit(model, train, test, epochs=10**6, callbacks=[EndOfEpoch()], **options)


# ---------------------------------------------------------------- other engines, on the standard recipe's loaders

def lightning(job: Job, turn: Turn):
    "Lightning's `Trainer` with its progress bar; no logger and no checkpoints, which the others do not write either."
    import lightning as L
    import torchvision.transforms  # noqa: F401

    model, loss_fn, optimizer = make_model(job)

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def measure(self, batch, split):
            X, y = batch
            logits = self.model(X)
            loss = loss_fn(logits, y)
            accuracy = (logits.argmax(dim=1) == y).float().mean()
            metrics = {f"{split}_loss": loss, f"{split}_acc": accuracy}
            self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
            return loss

        def training_step(self, batch, batch_idx):
            return self.measure(batch, "train")

        def validation_step(self, batch, batch_idx):
            self.measure(batch, "valid")

        def configure_optimizers(self):
            return optimizer

    class EndOfEpoch(L.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch:
                turn.next(*(trainer.callback_metrics[f"{split}_loss"].item() for split in ("train", "valid")))

    accelerator = "gpu" if job.device == "cuda" else job.device
    without = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(accelerator=accelerator, devices=1, max_epochs=-1, callbacks=[EndOfEpoch()], **without)
    turn.ready()
    train, test = make_loaders(job)
    trainer.fit(Module(), train, test)


def skorch(job: Job, turn: Turn):
    "`NeuralNetClassifier` with its default callbacks and its table of epochs."
    import torch
    import torchvision.transforms  # noqa: F401
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback
    from skorch.helper import predefined_split

    class EndOfEpoch(Callback):
        def on_epoch_end(self, net, **kwargs):
            self.losses = net.history[-1, "train_loss"], net.history[-1, "valid_loss"]
        def on_epoch_begin(self, net, **kwargs):
            if net.history[:-1]:
                turn.next(*self.losses)  # so that the table is printed before the clock stops

    turn.ready()
    model, loss_fn, _ = make_model(job)
    train, test = make_loaders(job)
    datasets = [getattr(loader, "dataset", loader) for loader in (train, test)]
    # skorch wants to make the loaders itself; it gets those of everybody
    net = NeuralNetClassifier(
        model,
        criterion=type(loss_fn),
        optimizer=getattr(torch.optim, job.work.optimizer),
        lr=job.work.lr,
        max_epochs=10**6,
        device=job.device,
        iterator_train=lambda dataset, **kwargs: train,
        iterator_valid=lambda dataset, **kwargs: test,
        train_split=predefined_split(datasets[1]),
        callbacks=[EndOfEpoch()],
        classes=list(range(num_classes(job))),
    )
    net.fit(datasets[0], y=None)


def ignite(job: Job, turn: Turn):
    "`create_supervised_trainer` and `create_supervised_evaluator`, with loss and accuracy of both splits."
    import torchvision.transforms  # noqa: F401
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy, Loss

    turn.ready()
    model, loss_fn, optimizer = make_model(job)
    train, test = make_loaders(job)
    outputs = {"output_transform": lambda X, y, logits, loss: (logits.detach(), y)}
    trainer = create_supervised_trainer(model, optimizer, loss_fn, device=job.device, **outputs)
    evaluator = create_supervised_evaluator(model, {"loss": Loss(loss_fn), "acc": Accuracy()}, device=job.device)
    for name, metric in (("loss", Loss(loss_fn)), ("acc", Accuracy())):
        metric.attach(trainer, name)

    @trainer.on(Events.EPOCH_COMPLETED)
    def end_of_epoch(engine):
        evaluator.run(test)
        turn.next(engine.state.metrics["loss"], evaluator.state.metrics["loss"])

    trainer.run(train, max_epochs=10**6)


def accelerate(job: Job, turn: Turn):
    "The standard recipe's loop with the changes that accelerate asks for."
    from accelerate import Accelerator

    teaching(job, turn, prepare=lambda: Accelerator(cpu=job.device == "cpu"))


# ---------------------------------------------------------------- the list

@dataclass(frozen=True)
class Contender:
    "A name in the table."
    run: Callable[[Job, Turn], None]
    options: dict = field(default_factory=dict)
    requires: str | None = None  # a module that must be installed
    peer: bool = False  # another library's engine


CONTENDERS = {
    "limit": Contender(limit),
    "teaching": Contender(teaching),
    "ours": Contender(ours),
    "ours_contiguous": Contender(ours, {"fit": {"channels_last": False}}),
    "ours_bf16": Contender(ours, {"fit": {"precision": "bf16"}}),
    "ours_nocache": Contender(ours, {"loaders": {"cache": False}}),
    "ours_draft": Contender(ours, {"loaders": {"draft": True}}),
    "ours_compile": Contender(ours, {"fit": {"compile": True}}),
    "lightning": Contender(lightning, requires="lightning", peer=True),
    "skorch": Contender(skorch, requires="skorch", peer=True),
    "ignite": Contender(ignite, requires="ignite", peer=True),
    "accelerate": Contender(accelerate, requires="accelerate", peer=True),
}


def main():
    "A contender's process: its name and its job as arguments, a line on stdin for every turn."
    name, values = sys.argv[1:]
    contender, job = CONTENDERS[name], Job(**json.loads(values))
    turn = Turn()
    if contender.requires and not importlib.util.find_spec(contender.requires):
        return turn.send(skip=f"{contender.requires} is not installed")
    import torch
    torch.set_num_threads(job.threads)
    contender.run(job, turn)


if __name__ == "__main__":
    main()
