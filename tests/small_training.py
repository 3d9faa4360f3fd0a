"""A run with everything random in it, small enough to be repeated hundreds of times; for the tests and the campaign."""

from functools import partial

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

from pytorch_course.callbacks import BestWeights, EarlyStopping, GradientAccumulation, GradientClipping, LRScheduler
from pytorch_course.checkpoints import Checkpoints
from pytorch_course.checks import Checks
from pytorch_course.performance import KeepMemory
from pytorch_course.reproducibility import Reproducible
from pytorch_course.trainer import Trainer
from pytorch_course.worker_errors import ExplainWorkerErrors

SAMPLES, BATCH_SIZE = 44, 4  # 11 batches an epoch
EPOCHS = 3
STEPS = EPOCHS * 11


class Augmented(Dataset):
    "Two classes of noisy vectors; every reading draws from PyTorch's and from NumPy's generator."
    classes = ["low", "high"]

    def __len__(self):
        return SAMPLES

    def __getitem__(self, i):
        x = torch.full((8,), i % 2 - 0.5) + 0.5 * torch.randn(8)
        return x * float(np.random.uniform(0.8, 1.2)), i % 2


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def make_trainer(extra=(), seed=0):
    torch.manual_seed(seed)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    callbacks = [
        GradientAccumulation(2),
        GradientClipping(1.0),
        LRScheduler(partial(OneCycleLR, max_lr=0.02, total_steps=100), interval="step"),
        EarlyStopping(patience=50),
        BestWeights(),
        Checks(ignore=("random_validation", "overlap")),
        ExplainWorkerErrors(),
        KeepMemory(),
        Reproducible(42),
        *extra,
    ]
    return Trainer(model, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, progress=False)


def fit(folder, num_workers=0, extra=(), resume=False):
    "Train; everything that must be the same afterwards, as one flat list."
    loader = partial(DataLoader, Augmented(), BATCH_SIZE, num_workers=num_workers, persistent_workers=num_workers > 0)
    checkpoints = [] if folder is None else [Checkpoints(folder, resume)]
    trainer = make_trainer([*extra, *checkpoints])
    trainer.fit(EPOCHS, loader(shuffle=True), loader())
    return fingerprint(trainer)


def find(trainer, kind):
    "The callback of this class."
    return next(callback for callback in trainer.callbacks if type(callback) is kind)


def fingerprint(trainer):
    "Weights, optimizer, schedule, history: equal only if the whole run was."
    state = trainer.optimizer.state_dict()["state"]
    numbers = [
        *trainer.model.state_dict().values(),
        *(value for each in state.values() for value in each.values()),
    ]
    rates = find(trainer, LRScheduler).lrs
    return [tensor.flatten().tolist() for tensor in numbers] + [rates, trainer.history, trainer.steps]
