"""What surprised a practitioner on the second day: silent choices, lost settings, messages about the wrong thing."""
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pytorch_course
from pytorch_course.callbacks import BestWeights, EarlyStopping, LRScheduler, OneCycle
from pytorch_course.checkpoints import CheckpointManager, Checkpoints, ResumeWarning
from pytorch_course.checks import Checks, TrainingError
from pytorch_course.data_checks import CHECKS
from pytorch_course.hooks import Callback
from pytorch_course.plots import plot_loss_curves
from pytorch_course.recipes import fit
from pytorch_course.reproducibility import Reproducible
from pytorch_course.trainer import Trainer

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
QUIET = {"progress": False}


def loader(size=4, **options):
    return DataLoader(TensorDataset(X, Y), size, **options)


def linear():
    torch.manual_seed(1)
    return nn.Linear(4, 2)


def make(kind=Trainer, loss_fn=None, callbacks=(), model=None, lr=0.1):
    model = model or linear()
    return kind(model, loss_fn or nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr),
                callbacks=callbacks, progress=False)


# 1. best of what?

@pytest.mark.parametrize("kind", [EarlyStopping, BestWeights])
def test_the_mode_of_an_unknown_metric_is_asked_for(kind):
    with pytest.raises(ValueError, match='valid_kl.*"min" or "max"'):
        kind("valid_kl")
    assert kind("valid_kl", mode="min").mode == "min"
    for name in ("ppl", "nll", "rmse", "perplexity", "loss", "top1_error", "mean_absolute_error", "myloss"):
        assert kind(f"valid_{name}").mode == "min", name
    for name in ("acc", "balanced_accuracy", "macro_F1", "auc", "mean_iou", "precision", "recall", "r2", "top5"):
        assert kind(f"valid_{name}").mode == "max", name


# 2. generators of one's own

class Noisy(Trainer):
    def step(self, batch):
        X, y = batch
        noise = torch.randn(X.shape, generator=self.zg) + self.rng.random()
        outputs = self.model(X + noise)
        return self.loss_fn(outputs, y), outputs


class Shift(Callback):
    def __init__(self):
        self.rng = np.random.default_rng(3)

    def before_batch(self, trainer):
        trainer.batch = trainer.batch[0] + self.rng.random(), trainer.batch[1]


class Accident(Callback):
    def __init__(self, step=None):
        self.step = step

    def after_batch(self, trainer):
        if trainer.steps == self.step: raise OSError("a power failure")


class Jitter(Dataset):
    "Random samples from a generator that the dataset keeps for itself."
    def __init__(self):
        self.generator, self.rng = torch.Generator().manual_seed(5), np.random.default_rng(5)

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index] + torch.rand(4, generator=self.generator) + self.rng.random(), Y[index]


def noisy_run(folder, resume=False, accident=None, workers=0):
    own = [Reproducible(42), Checkpoints(CheckpointManager(folder, every_steps=2), resume), Shift(), Accident(accident)]
    trainer = make(Noisy, callbacks=own)
    trainer.zg, trainer.rng = torch.Generator().manual_seed(7), np.random.default_rng(7)
    trainer.fit(3, DataLoader(Jitter(), 4, shuffle=True, num_workers=workers), loader())
    return trainer.history, trainer.model.weight.tolist()


@pytest.mark.parametrize("step", [5, 9, 12])
def test_generators_of_trainer_callback_and_dataset_are_resumed(tmp_path, step):
    whole = noisy_run(tmp_path / "whole")
    with pytest.raises(OSError, match="power"):
        noisy_run(tmp_path / "parts", accident=step)
    assert noisy_run(tmp_path / "parts", resume=True, workers=2 if step == 9 else 0) == whole


def test_a_stop_during_validation_takes_no_draw_of_a_generator(tmp_path):
    class Stop(Callback):
        def around_step(self, trainer, step):
            def stopping(batch):
                if trainer.phase == "valid" and trainer.epoch == 1 and stops:
                    checkpoints.shutdown.signal = 15
                return step(batch)
            return stopping

    def run(folder, resume=False):
        nonlocal checkpoints
        checkpoints = Checkpoints(folder, resume)
        trainer = make(Noisy, callbacks=[Reproducible(42), checkpoints, Stop()])
        trainer.zg, trainer.rng = torch.Generator().manual_seed(7), np.random.default_rng(7)
        trainer.fit(3, loader(shuffle=True), loader())
        return trainer.history

    checkpoints, stops = None, False
    whole = run(tmp_path / "whole")
    stops = True
    with pytest.raises(SystemExit):
        run(tmp_path / "parts")
    stops = False
    assert run(tmp_path / "parts", resume=True) == whole


# 3. empty loaders

class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y))


def test_empty_validation_data_are_found_before_the_first_epoch():
    trainer = make()
    with pytest.raises(ValueError, match="valid_dataloader gave no batch"):
        trainer.fit(1, loader(), DataLoader(TensorDataset(X[:0], Y[:0]), 4))
    assert trainer.steps == 0


def test_an_exhausted_generator_is_named():
    with pytest.raises(ValueError, match="train_dataloader gave no batch in epoch 2: a generator can be read"):
        make().fit(2, (batch for batch in loader()))
    with pytest.raises(ValueError, match="valid_dataloader gave no batch in epoch 2"):
        make().fit(2, loader(), (batch for batch in loader()))
    with pytest.raises(ValueError, match="valid_dataloader gave no batch; is the dataset empty"):
        make().fit(2, loader(), iter([]))


# 4. settings that are ignored

def test_another_learning_rate_at_a_resume_is_said(tmp_path):
    fit(linear(), loader(), epochs=1, lr=0.01, checkpoint_dir=tmp_path, **QUIET)
    with pytest.warns(ResumeWarning, match=r"learning rate \[0.01\], now \[0.5\]"):
        fit(linear(), loader(), epochs=2, lr=0.5, checkpoint_dir=tmp_path, resume=True, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(linear(), loader(), epochs=3, lr=0.01, checkpoint_dir=tmp_path, resume=True, **QUIET)


def test_a_schedule_gives_no_warning_at_a_resume(tmp_path):
    options = dict(epochs=2, schedule="cosine", lr=0.1, checkpoint_dir=CheckpointManager(tmp_path, every_steps=2))
    with pytest.raises(OSError):
        fit(linear(), loader(), callbacks=[Accident(8)], **options, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(linear(), loader(), callbacks=[Accident()], resume=True, **options, **QUIET)


def test_contradictions_are_refused():
    model = linear()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="lr or optimizer"):
        fit(model, loader(), lr=1.0, optimizer=sgd)
    for scheduler in (OneCycle(0.1), LRScheduler(partial(StepLR, step_size=1))):
        with pytest.raises(ValueError, match="both set the learning rate"):
            fit(model, loader(), callbacks=[scheduler], schedule="cosine")


# 5. help and messages of fit

def test_fit_names_what_exists():
    assert "pytorch_course.data_checks.CHECKS" in fit.__doc__ and CHECKS
    with pytest.raises(ValueError, match="fp32, bf16, fp16, not 'float16'"):
        fit(linear(), loader(), precision="float16")
    with pytest.raises(TypeError, match="lr must be a number, not '1e-3'"):
        fit(linear(), loader(), lr="1e-3")


# 6. the package

def test_star_import_gives_the_names_of_the_package():
    space = {}
    exec("from pytorch_course import *", space)
    assert set(space) - {"__builtins__"} == set(pytorch_course._HOME) == set(pytorch_course.__all__)
    assert not {"ModuleType", "TYPE_CHECKING", "sys", "re", "Path"} & set(dir(pytorch_course))


def test_a_name_of_a_module_is_found():
    with pytest.raises(ImportError, match="from pytorch_course.callbacks import EarlyStopping"):
        from pytorch_course import EarlyStopping  # noqa: F401
    with pytest.raises(AttributeError, match="from pytorch_course.data_checks import CHECKS"):
        pytorch_course.CHECKS
    with pytest.raises(ImportError, match="Earlystop"):
        from pytorch_course import Earlystop  # noqa: F401
    assert not hasattr(pytorch_course, "EarlyStopping")
    from pytorch_course import callbacks  # modules as before
    assert callbacks.OneCycle is OneCycle


def test_type_checkers_refuse_unknown_names(tmp_path):
    api = pytest.importorskip("mypy.api")
    script = tmp_path / "script.py"
    script.write_text("from pytorch_course import fit, training, fitt\nfrom torch import nn\n"
                      'fit(nn.Linear(1, 1), [], schedule="cosin")\n')
    printed, *_ = api.run([str(script), "--ignore-missing-imports", "--follow-imports=silent", "--cache-dir",
                           str(tmp_path)])
    assert 'no attribute "fitt"' in printed and 'Argument "schedule"' in printed
    assert "2 errors" in printed, printed


# 7. plots

def test_loss_curves_of_a_history():
    trainer = make()
    table = trainer.fit(2, loader(), loader())
    drawn = [[line.get_ydata().tolist() for ax in plot_loss_curves(each).axes for line in ax.lines]
             for each in (trainer.history, table, table.to_dict("list"))]
    assert drawn[0] == drawn[1] == drawn[2] and len(drawn[0]) == 4
    with pytest.raises(ValueError, match="no epochs"):
        plot_loss_curves([])


# the second group

def test_a_further_fit_of_the_same_trainer_goes_on(tmp_path):
    for resume in (False, True):
        options = dict(checkpoint_dir=tmp_path / str(resume), resume=resume, seed=1)
        trainer = fit(linear(), loader(), epochs=2, **options, **QUIET)
        trainer.fit(1, loader())
        assert (trainer.epoch, len(trainer.history)) == (3, 3)
        with pytest.raises(ValueError, match="holds checkpoints of an earlier run"):
            fit(linear(), loader(), epochs=1, checkpoint_dir=tmp_path / str(resume), **QUIET)


def test_a_schedule_needs_a_length():
    with pytest.raises(ValueError, match="OneCycle needs a dataloader with a length"):
        fit(linear(), DataLoader(Stream(), 4), schedule="onecycle", **QUIET)


def test_a_loss_that_is_no_tensor():
    with pytest.raises(TypeError, match="loss_fn.* must return the loss as a tensor, not 0.5"):
        make(loss_fn=lambda outputs, y: 0.5).fit(1, loader())


def test_a_frozen_model():
    with pytest.raises(ValueError, match="no parameter is trained"):
        fit(linear().requires_grad_(False), loader(), **QUIET)


def test_data_in_place_of_a_loader():
    pandas = pytest.importorskip("pandas")
    for data in ((X, Y), X.numpy(), pandas.DataFrame({"a": [1]}), {"X": X}):
        with pytest.raises(TypeError, match=r"must be.*wrap tensors in .*DataLoader\(TensorDataset"):
            make().fit(1, data)
    make().fit(1, ((X, Y), (X, Y)))  # a tuple of batches
    assert len(make().predict(X.split(8))) == 24
    make().fit(1, [[X, Y]])


def test_masks_with_255():
    outputs, masks = nn.Conv2d(3, 4, 1), torch.randint(0, 4, (8, 5, 5))
    masks[:, 0] = 255
    data = DataLoader(TensorDataset(torch.rand(8, 3, 5, 5), masks), 4)
    with pytest.raises(TrainingError, match=r"CrossEntropyLoss\(ignore_index=255\)"):
        make(model=outputs, callbacks=[Checks()]).fit(1, data)


@pytest.mark.parametrize("options", [{}, {"anneal_strategy": "linear"}, {"pct_start": 0.0, "div_factor": 1}])
def test_the_last_rate_of_a_cycle_stays(options):
    trainer = make(callbacks=[cycle := OneCycle(0.1, cycle_momentum=False, **options)])
    trainer.fit(2, loader())
    assert trainer.optimizer.param_groups[0]["lr"] == cycle.lrs[-1] > 0 and len(cycle.lrs) == 12


def test_checkpoints_and_reproducible_name_each_other(tmp_path):
    with pytest.raises(ValueError, match="from pytorch_course.reproducibility import Reproducible"):
        make(callbacks=[Checkpoints(tmp_path)]).fit(1, loader())
    assert "pytorch_course.reproducibility" in Checkpoints.__doc__
    assert "pytorch_course.checkpoints" in Reproducible.__doc__


def test_outputs_of_different_lengths_are_refused_at_once():
    class Ragged(Trainer):
        def predict_step(self, batch):
            seen.append(batch)
            return torch.zeros(len(batch[0]), len(seen))

    seen = []
    with pytest.raises(ValueError, match="pad them"):
        make(Ragged).predict(loader())
    assert len(seen) == 2


def test_importing_a_name_costs_nothing_more():
    code = "import sys, pytorch_course\ntry:\n    from pytorch_course import OneCycle\nexcept ImportError:\n    pass\n"
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
