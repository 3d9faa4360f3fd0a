"""Wrong use of `Trainer` and of callbacks: one clear line, where the mistake is made."""
import inspect
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from pytorch_course.callbacks import BestWeights, EarlyStopping, GradientAccumulation, LRScheduler
from pytorch_course.checkpoints import Checkpoints
from pytorch_course.checks import Checks
from pytorch_course.performance import MixedPrecision
from pytorch_course.recipes import fit
from pytorch_course.reproducibility import Reproducible
from pytorch_course.trainer import Callback, Trainer
from pytorch_course.training import accuracy

PACKAGE = Path(inspect.getfile(Trainer)).parent
torch.manual_seed(0)
X, Y = torch.randn(40, 5), torch.randint(2, (40,))
DATA = TensorDataset(X, Y)
LOSS = nn.CrossEntropyLoss()


def loader():
    return DataLoader(DATA, batch_size=8, shuffle=True)


def make(model=None, loss_fn=LOSS, optimizer=None, kind=Trainer, **options):
    model = model or nn.Linear(5, 2)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return kind(model, loss_fn, optimizer, progress=False, **options)


class Hits:
    "A metric object, as those of torchmetrics."

    def reset(self):
        self.count = self.total = 0

    def update(self, outputs, targets):
        self.count += int((outputs.argmax(dim=1) == targets).sum())
        self.total += len(targets)

    def compute(self):
        return self.count / self.total


class DuckTyped:
    def after_batch(self, trainer):
        pass


def after_epoch(trainer):
    pass


def returning(result) -> type[Trainer]:
    "A trainer whose `step` returns something else."
    class Wrong(Trainer):
        def step(self, batch):
            return result(self.loss_fn(self.model(batch[0]), batch[1]), self.model(batch[0]))

    return Wrong


def step_returns(result):
    make(kind=returning(result)).fit(1, loader())


def fit_with(*callbacks, valid=None, **options):
    make(callbacks=callbacks, **options).fit(1, loader(), valid)


def define(name: str):
    "A callback class with a method of this name."
    type("Mine", (Callback,), {name: lambda self, trainer: None})


def schedule():
    "A scheduler object, made of an optimizer."
    model = nn.Linear(5, 2)
    return StepLR(torch.optim.SGD(model.parameters(), lr=0.1), step_size=1)


def batches_of(*tensors):
    return DataLoader(TensorDataset(*tensors), 8)


def triples():
    return DataLoader(TensorDataset(X, X, Y), 8)


@dataclass
class Case:
    name: str
    call: Callable
    error: type
    words: tuple[str, ...]  # what was received, what to do
    frames: int = 4  # of this package, between the user's line and the error


CASES = [
    # --- Trainer(...): a class instead of an object, arguments exchanged ---
    Case("class as model", lambda: Trainer(nn.Linear, LOSS), TypeError, ("model", "class Linear", r"Linear\(")),
    Case("function as model", lambda: Trainer(after_epoch, LOSS), TypeError, ("model", "function")),
    Case("class as loss", lambda: make(loss_fn=nn.CrossEntropyLoss), TypeError, ("loss", r"CrossEntropyLoss\(")),
    Case("string as loss", lambda: make(loss_fn="mse"), TypeError, ("loss", "mse")),
    Case("class as optimizer", lambda: make(optimizer=torch.optim.Adam), TypeError, ("optimizer", r"Adam\(")),
    Case("string as optimizer", lambda: make(optimizer="adam"), TypeError, ("optimizer", "adam")),
    Case("exchanged", lambda: Trainer(m := nn.Linear(5, 2), torch.optim.SGD(m.parameters()), LOSS), TypeError,
         (r"Trainer\(model, loss_fn, optimizer\)",)),
    Case("reduction sum", lambda: make(loss_fn=nn.MSELoss(reduction="sum")), ValueError, ("sum", "mean")),
    Case("reduction none", lambda: make(loss_fn=nn.MSELoss(reduction="none")), ValueError, ("none", "mean")),
    # --- metrics ---
    Case("list of metrics", lambda: make(metrics=[accuracy]), TypeError, ("metrics", "dict", "list")),
    Case("one metric", lambda: make(metrics=accuracy), TypeError, ("metrics", "dict", "function")),
    Case("one metric object", lambda: make(metrics=Hits()), TypeError, ("metrics", "dict", "Hits")),
    Case("class as metric", lambda: make(metrics={"hits": Hits}), TypeError, ("metrics", "hits", r"Hits\(")),
    Case("string as metric", lambda: make(metrics={"acc": "accuracy"}), TypeError, ("metrics", "acc")),
    Case("metric called loss", lambda: make(metrics={"loss": accuracy}), ValueError, ("metric", "loss")),
    Case("metric for each sample", lambda: make(metrics={"hit": lambda o, y: o.argmax(1) == y}).fit(1, loader()),
         ValueError, ("hit", "one number", r"\(.*\)"), frames=8),
    # --- callbacks ---
    Case("one callback", lambda: make(callbacks=Checks()), TypeError, ("callbacks", "list", "Checks")),
    Case("callback class", lambda: make(callbacks=[Checks]), TypeError, ("callback", r"Checks\(")),
    Case("only a callback class", lambda: make(callbacks=Checks), TypeError, ("callback", "Checks")),
    Case("function as callback", lambda: make(callbacks=[after_epoch]), TypeError, ("Callback", "function")),
    Case("foreign object as callback", lambda: make(callbacks=[DuckTyped()]), TypeError, ("Callback", "DuckTyped")),
    Case("None as callback", lambda: make(callbacks=[None]), TypeError, ("callback",)),
    Case("hook of Lightning", lambda: define("on_train_epoch_end"), TypeError, ("on_train_epoch_end", "after_epoch")),
    Case("hook of Keras", lambda: define("on_epoch_end"), TypeError, ("Mine.on_epoch_end", "after_epoch")),
    Case("misspelled hook", lambda: define("after_epochs"), TypeError, ("Mine.after_epochs", "after_epoch")),
    Case("misspelled wrapper", lambda: define("around_steps"), TypeError, ("Mine.around_steps", "around_step")),
    Case("unknown check", lambda: Checks(ignore=("unshufled",)), ValueError, ("unshufled", "unshuffled")),
    Case("scheduler object", lambda: LRScheduler(schedule()), TypeError, ("StepLR", "optimizer")),
    Case("scheduler interval", lambda: LRScheduler(partial(StepLR, step_size=1), interval="batch"), ValueError,
         ("interval", "batch", "step")),
    Case("accumulate none", lambda: GradientAccumulation(0), ValueError, ("0",)),
    Case("unknown monitor", lambda: fit_with(EarlyStopping("val_loss"), valid=loader()), ValueError,
         ("val_loss", "valid_loss"), frames=5),
    Case("no validation data", lambda: fit_with(EarlyStopping()), ValueError, ("valid_loss", "train_loss"), frames=5),
    Case("best weights of nothing", lambda: fit_with(BestWeights("valid_f1"), valid=loader()), ValueError,
         ("valid_f1", "valid_acc"), frames=5),
    Case("checkpoints alone", lambda: fit_with(Checkpoints("nowhere")), ValueError, ("Reproducible",)),
    Case("seed as text", lambda: Reproducible("42"), ValueError, ("seed", "'42'")),
    Case("unknown precision", lambda: MixedPrecision("fp8"), ValueError, ("fp8", "bf16")),
    # --- recipes.fit ---
    Case("recipe: bad check", lambda: fit(nn.Linear(5, 2), loader(), ignore="typo"), ValueError, ("typo", "overlap")),
    Case("recipe: resume", lambda: fit(nn.Linear(5, 2), loader(), resume=True), ValueError, ("checkpoint_dir",)),
    Case("recipe: dataset", lambda: fit(nn.Linear(5, 2), DATA), TypeError, (r"DataLoader\(",)),
    Case("recipe: class", lambda: fit(nn.Linear, loader()), TypeError, ("model", r"Linear\(")),
    # --- Trainer.fit, evaluate, predict ---
    Case("exchanged in fit", lambda: make().fit(loader(), 3), TypeError, (r"fit\(epochs, train_dataloader",)),
    Case("half an epoch", lambda: make().fit(1.5, loader()), TypeError, ("epochs", "1.5")),
    Case("epochs as text", lambda: make().fit("3", loader()), TypeError, ("epochs", "'3'")),
    Case("negative epochs", lambda: make().fit(-1, loader()), ValueError, ("epochs", "-1")),
    Case("dataset in fit", lambda: make().fit(1, DATA), TypeError, ("train_dataloader", r"DataLoader\(")),
    Case("dataset as valid", lambda: make().fit(1, loader(), DATA), TypeError, ("valid_dataloader", r"DataLoader\(")),
    Case("tensor in fit", lambda: make().fit(1, X), TypeError, ("train_dataloader", "Tensor")),
    Case("number in fit", lambda: make().fit(1, 3), TypeError, ("train_dataloader", "3")),
    Case("dataset in evaluate", lambda: make().evaluate(DATA), TypeError, (r"DataLoader\(",)),
    Case("dataset in predict", lambda: make().predict(DATA), TypeError, (r"DataLoader\(",)),
    Case("tensor in predict", lambda: make().predict(X), TypeError, ("DataLoader", "Tensor")),
    Case("no optimizer", lambda: Trainer(nn.Linear(5, 2), LOSS).fit(1, loader()), ValueError, ("optimizer",)),
    Case("no batch", lambda: make().fit(1, []), ValueError, ("no batch", "empty"), frames=5),
    Case("triples", lambda: make().fit(1, triples()), TypeError, ("pair", "3", "step"), frames=7),
    Case("only X", lambda: make().fit(1, batches_of(X)), TypeError, ("pair", "1", "step"), frames=7),
    Case("dictionary", lambda: make().fit(1, [{"x": X, "y": Y}]), TypeError, ("pair", "dict", "step"), frames=7),
    # --- what `step` returns ---
    Case("text", lambda: step_returns(lambda *_: "loss"), TypeError, ("step", "loss"), frames=7),
    Case("nothing", lambda: step_returns(lambda *_: None), TypeError, ("step", "None"), frames=7),
    Case("four", lambda: step_returns(lambda a, b: (a, b, {}, 1)), TypeError, ("step",), frames=7),
    Case("number", lambda: step_returns(lambda a, b: (a.item(), b)), TypeError, ("step",), frames=7),
    Case("no names", lambda: step_returns(lambda a, b: (a, b, a)), TypeError, ("step", "name"), frames=7),
    Case("losses", lambda: step_returns(lambda a, b: (b[:, 0], b)), TypeError, ("loss", r"\(8,\)"), frames=7),
    Case("number named loss", lambda: step_returns(lambda a, b: (a, b, {"loss": a})), ValueError, ("loss",), frames=8),
    Case("number named acc", lambda: step_returns(lambda a, b: (a, b, {"acc": a})), ValueError, ("acc",), frames=8),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_one_clear_line(case):
    with pytest.raises((TypeError, ValueError)) as caught:
        case.call()
    message = str(caught.value)
    frames = [frame for frame in traceback.extract_tb(caught.tb) if Path(frame.filename).parent == PACKAGE]
    assert type(caught.value) is case.error or issubclass(caught.type, case.error), message
    assert "\n" not in message and 20 < len(message) < 400, message
    assert all(re.search(word, message) for word in case.words), f"{message!r} says nothing of {case.words}"
    assert len(frames) <= case.frames, "".join(traceback.format_tb(caught.tb))
    assert caught.value.__context__ is None or caught.value.__suppress_context__, "one traceback, not two"


def test_an_unknown_monitor_is_refused_before_the_first_step():
    for callback in (EarlyStopping("val_loss"), BestWeights("val_loss"), EarlyStopping("valid_loss")):
        trainer = make(callbacks=[callback])
        with pytest.raises(ValueError, match=callback.monitor):
            trainer.fit(1, loader())
        assert trainer.steps == 0


def test_a_monitor_may_be_a_number_that_only_step_knows():
    trainer = make(kind=returning(lambda loss, outputs: (loss, outputs, {"norm": outputs.norm()})),
                   callbacks=[EarlyStopping("valid_norm", mode="min"), BestWeights("train_norm", mode="min")])
    history = trainer.fit(2, loader(), loader())
    assert {"train_norm", "valid_norm"} <= set(history.columns)


def test_schedulers_are_made_from_a_factory():
    factory = partial(OneCycleLR, max_lr=0.1, total_steps=5)
    trainer = make(callbacks=[LRScheduler(factory, interval="step")])
    trainer.fit(1, loader())
    assert trainer.steps == 5


def half(outputs, targets):
    return 0.5


def share(outputs, targets):
    return (outputs.argmax(dim=1) == targets).float().mean().item()


def test_metrics_may_return_floats_and_be_objects():
    trainer = make(metrics={"half": half, "share": share, "acc": accuracy, "hits": Hits()})
    row = trainer.fit(2, loader(), loader()).iloc[-1]
    assert row.train_half == row.valid_half == 0.5
    assert row.valid_share == pytest.approx(row.valid_acc) and row.valid_hits == pytest.approx(row.valid_acc)
    means = trainer.evaluate(loader())
    assert means["share"] == pytest.approx(means["hits"]) and set(means) == {"loss", "half", "share", "acc", "hits"}


def test_right_use_that_looks_unusual_is_allowed():
    model = nn.Linear(5, 2)
    trainer = Trainer(model, lambda outputs, y: nn.functional.cross_entropy(outputs, y), progress=False)
    assert set(trainer.evaluate(loader())) == {"loss"}  # no optimizer, no metrics for a loss of one's own
    make(metrics={}).fit(1, [(X, Y)], [(X, Y)])  # lists of batches
    make(callbacks=(callback for callback in [Checks(ignore="unshuffled")])).fit(1, loader())  # any iterable
    make().fit(0, loader())
    make(model=nn.Linear(5, 1), loss_fn=nn.BCEWithLogitsLoss()).fit(1, batches_of(X, Y[:, None].float()))
