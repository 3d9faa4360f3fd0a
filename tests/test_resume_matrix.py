"""Rows 11 and 12 of the fault table once more, for everything that people hang on a run.

A cut in the middle must not show in the end.
"""

import random
import signal
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, WeightedRandomSampler

from pytorch_course.callbacks import BestWeights, LRScheduler
from pytorch_course.checkpoints import CheckpointManager, Checkpoints
from pytorch_course.checks import Checks
from pytorch_course.performance import ChannelsLast, KeepMemory, MixedPrecision
from pytorch_course.reproducibility import Reproducible
from pytorch_course.trainer import Callback, Trainer

draw = torch.Generator().manual_seed(0)
X, Y = torch.randn(48, 8, generator=draw), torch.randint(3, (48,), generator=draw)
DATA = TensorDataset(X, Y)


class Cut(Callback):
    "Ctrl-C in a step."
    def __init__(self, at):
        self.at = at

    def after_batch(self, trainer):
        if trainer.steps == self.at:
            signal.raise_signal(signal.SIGINT)


class MixedIn:
    "A random `collate_fn`, as for MixUp; a class, so that it can be sent to workers."
    def __call__(self, samples):
        x, y = map(torch.stack, zip(*samples))
        return x + 0.1 * torch.rand(()) * x.flip(0), y


class Drawing(TensorDataset):
    def __getitem__(self, i):
        return self.tensors[0][i] + 0.1 * torch.randn(8) * random.random(), self.tensors[1][i]


class Stream(IterableDataset):
    def __iter__(self):
        return ((x + 0.1 * torch.randn(8), y) for x, y in zip(X, Y))


class OwnGenerator(Sampler):
    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __iter__(self):
        return iter(self.generator.permutation(48).tolist())

    def __len__(self):
        return 48


class Hooks(Callback):
    "Draws in every hook, and lets the draws change the weights."
    def change(self, trainer):
        with torch.no_grad():
            trainer.model[0].bias += 0.01 * torch.rand(())

    before_epoch = change
    after_epoch = change
    after_batch = change

    def before_batch(self, trainer):
        trainer.batch = (trainer.batch[0] * float(np.random.uniform(0.9, 1.1)), trainer.batch[1])


class Unfreeze(Callback):
    def before_fit(self, trainer):
        trainer.model[0].requires_grad_(False)

    def before_epoch(self, trainer):
        if trainer.epoch == 1:
            trainer.model[0].requires_grad_(True)


class Remembers(Callback):
    state_attributes = ("total",)

    def before_fit(self, trainer):
        self.total = 0.0

    def before_batch(self, trainer):
        self.total += trainer.batch[0].mean().item()
        trainer.batch = (trainer.batch[0] * (1 + 0.1 * self.total), trainer.batch[1])


class Share:
    "A metric object in the style of torchmetrics."
    def reset(self):
        self.right = self.seen = 0

    def update(self, logits, y):
        self.right, self.seen = self.right + int((logits.argmax(1) == y).sum()), self.seen + len(y)

    def compute(self):
        return self.right / self.seen


class CenterLoss(nn.Module):
    "A loss with a weight of its own."
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, logits, y):
        return nn.functional.cross_entropy(logits * self.scale, y)


class Masked(nn.Sequential):
    "With a buffer that is infinite on purpose."
    def __init__(self):
        super().__init__(nn.Linear(8, 3))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))


class DrawsInEvaluation(nn.Sequential):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


def net(kind=nn.Sequential):
    return kind(nn.Linear(8, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3))


def convolutions():
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)),
        nn.Conv2d(2, 16, 2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 8, 2),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 3),
    )


shuffled = partial(DataLoader, DATA, 8, shuffle=True)
WAYS = {
    "plain": {},
    "no validation": {"valid": lambda: None},
    "weighted sampler": {
        "loader": lambda: DataLoader(DATA, 8, sampler=WeightedRandomSampler(torch.arange(1.0, 49), 48))
    },
    "sampler with its own generator": {"loader": lambda: DataLoader(DATA, 8, sampler=OwnGenerator())},
    "random collate_fn": {"loader": lambda: shuffled(collate_fn=MixedIn())},
    "tensors with noise": {"loader": lambda: DataLoader(Drawing(X, Y), 8, shuffle=True)},
    "stream": {"loader": lambda: DataLoader(Stream(), 8)},
    "single samples": {
        "loader": lambda: DataLoader(TensorDataset(X.view(6, 8, 8), Y.view(6, 8)), batch_size=None, shuffle=True)
    },
    "list of batches": {"loader": lambda: list(zip(X.split(8), Y.split(8)))},
    "bfloat16": {"callbacks": lambda: [MixedPrecision("bf16")]},
    "float16 with its scaler": {"callbacks": lambda: [MixedPrecision("fp16")]},
    "channels last": {"model": convolutions, "callbacks": lambda: [ChannelsLast()]},
    "channels last, bfloat16, fused": {
        "model": convolutions,
        "callbacks": lambda: [ChannelsLast(), MixedPrecision("bf16")],
        "optimizer": partial(torch.optim.Adam, lr=0.01, fused=True),
    },
    "contiguous": {"model": convolutions},
    "plateau and best weights": {
        "callbacks": lambda: [LRScheduler(partial(ReduceLROnPlateau, patience=0)), BestWeights()]
    },
    "hooks that draw": {"callbacks": lambda: [Hooks()]},
    "unfreezing": {"callbacks": lambda: [Unfreeze()], "cuts": (9, 14)},
    "callback with a memory": {"callbacks": lambda: [Remembers()]},
    "metric object": {"metrics": lambda: {"share": Share()}},
    "loss with a weight": {"loss": CenterLoss},
    "infinite buffer": {"model": Masked},
    "model that draws in evaluation": {"model": lambda: net(DrawsInEvaluation)},
}


def trained(
    folder,
    cut=None,
    resume=False,
    loader=shuffled,
    valid=lambda: DataLoader(DATA, 16),
    callbacks=list,
    metrics=lambda: None,
    loss=nn.CrossEntropyLoss,
    model=net,
    optimizer=partial(torch.optim.Adam, lr=0.01),
    **_,
):
    torch.manual_seed(1)
    model, loss_fn = model(), loss()
    optimizer = optimizer([*model.parameters(), *loss_fn.parameters()])
    everything = [
        Checks(ignore=("unshuffled", "overlap", "random_validation")),
        KeepMemory(),
        Reproducible(7),
        *callbacks(),
    ]
    if cut is not None:
        everything.append(Cut(cut))
    if folder is not None:
        everything.append(Checkpoints(folder, resume))
    trainer = Trainer(model, loss_fn, optimizer, metrics(), callbacks=everything, progress=False)
    try:
        trainer.fit(3, loader(), valid())
    except KeyboardInterrupt:
        assert cut is not None
    else:
        assert cut is None
    return repr(trainer.history), [
        value.tolist() for value in (*model.state_dict().values(), *loss_fn.state_dict().values())
    ]


@pytest.mark.parametrize("way", WAYS)
def test_row_11_a_cut_does_not_show(tmp_path, way):
    whole = trained(tmp_path / "whole", **WAYS[way])
    for cut in WAYS[way].get("cuts", (4, 6, 8)):  # six batches an epoch
        trained(tmp_path / str(cut), cut=cut, **WAYS[way])
        torch.manual_seed(99)
        random.seed(5)
        np.random.seed(4)
        assert trained(tmp_path / str(cut), resume=True, **WAYS[way]) == whole


def test_row_12_validation_does_not_depend_on_workers(tmp_path):
    model = WAYS["model that draws in evaluation"]["model"]
    valid = {n: partial(DataLoader, DATA, 16, num_workers=n) for n in (0, 2)}
    results = [trained(tmp_path / str(n), model=model, valid=valid[n]) for n in (0, 2)]
    assert results[0] == results[1]


@pytest.mark.parametrize("metrics", [lambda: None, lambda: {"share": Share()}], ids=["function", "object"])
def test_row_14_stopped_while_validating(tmp_path, metrics):
    class Stops(Dataset):
        trainer = None

        def __len__(self):
            return 48

        def __getitem__(self, i):
            if i == 20 and self.trainer:
                signal.raise_signal(signal.SIGINT)
            return DATA[i]

    def run(folder, stop, resume):
        torch.manual_seed(1)
        model, data = net(), Stops()
        callbacks = [Reproducible(7), Checkpoints(folder, resume)]
        optimizer = torch.optim.Adam(model.parameters())
        trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, metrics(), callbacks=callbacks, progress=False)
        data.trainer = trainer if stop else None
        try:
            trainer.fit(2, shuffled(), DataLoader(data, 16))
        except KeyboardInterrupt:
            assert stop
        return repr(trainer.history)

    whole = run(tmp_path / "whole", False, False)
    run(tmp_path / "run", True, False)
    assert run(tmp_path / "run", False, True) == whole


def test_row_17_what_cannot_be_saved_is_found_first(tmp_path):
    class Strange(Share):
        def reset(self):
            super().reset()
            self.device = torch.device("cpu")

    with pytest.raises(ValueError, match=r"metric share\['device'\] is of type device"):
        trained(tmp_path / "run", metrics=lambda: {"share": Strange()})
    assert not list((tmp_path / "run").iterdir())


def test_row_09_other_callbacks_are_named(tmp_path):
    trained(tmp_path / "run", cut=8)
    with pytest.raises(ValueError, match="only there Cut|only here Remembers 1"):
        trained(tmp_path / "run", resume=True, callbacks=lambda: [Remembers()])


def test_row_11_other_data_in_the_middle_of_an_epoch(tmp_path):
    trained(tmp_path / "run", cut=8)
    for other in (
        lambda: DataLoader(TensorDataset(X[:40], Y[:40]), 8, shuffle=True),
        lambda: DataLoader(DATA, 7, shuffle=True),
    ):
        with pytest.raises(
            ValueError, match="the data have changed since .*; in the middle of an epoch that cannot be resumed"
        ):
            trained(tmp_path / "run", resume=True, loader=other)


def test_nothing_to_do_is_said(tmp_path, capsys):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run(resume):
        callbacks = [Reproducible(1), Checkpoints(tmp_path, resume)]
        Trainer(model, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks).fit(1, shuffled())

    run(resume=False)
    run(resume=True)
    assert "nothing to do: the run has ended" in capsys.readouterr().out


def test_going_back_behind_a_damaged_checkpoint(tmp_path):
    "The damaged one of a later step must neither survive nor push out the new one."
    whole = trained(tmp_path / "whole")
    trained(CheckpointManager(tmp_path / "run", every_steps=3))
    (tmp_path / "run" / "step-00000018.pt").write_bytes(b"x")
    with pytest.warns(UserWarning, match="going back to step-00000015.pt"):
        trained(CheckpointManager(tmp_path / "run", max_to_keep=1, every_steps=100), cut=16, resume=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-00000016.pt"]
    assert trained(tmp_path / "run", resume=True) == whole


def test_measuring_in_the_middle_of_an_epoch_changes_nothing():
    class Measure(Callback):
        def after_batch(self, trainer):
            trainer.evaluate(DataLoader(DATA, 48))
            assert trainer.model.training

    assert trained(None, callbacks=lambda: [Measure()]) == trained(None)
