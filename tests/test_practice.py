"""What a practitioner needs beyond images with labels, and what went wrong when somebody tried."""
import traceback

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pytorch_course.callbacks import GradientAccumulation
from pytorch_course.checkpoint_manager import CheckpointManager
from pytorch_course.checkpoints import Checkpoints
from pytorch_course.checks import Checks, TrainingError
from pytorch_course.performance import ChannelsLast
from pytorch_course.recipes import fit
from pytorch_course.reproducibility import Reproducible
from pytorch_course.trainer import Callback, Trainer
from pytorch_course.training import EpochMeter, accuracy, binary_accuracy, default_metrics
from pytorch_course.training import test_step as evaluate_by_function

AVAILABLE = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
DEVICES = [name for name, available in AVAILABLE.items() if available]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape, num=3, seed=1):
    return torch.randint(num, shape, generator=torch.Generator().manual_seed(seed))


def batches(*tensors, size=8, shuffle=False):
    return DataLoader(TensorDataset(*tensors), size, shuffle=shuffle)


def make(model, loss_fn, kind=Trainer, lr=0.05, **options):
    return kind(model, loss_fn, torch.optim.SGD(model.parameters(), lr=lr), progress=False, **options)


# ---------------------------------------------------------------------------------------------- B2: two optimizers
class GAN(Trainer):
    "The model is the generator; the discriminator has an optimizer of its own."

    def __init__(self, **options):
        torch.manual_seed(3)
        generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
        super().__init__(generator, nn.BCEWithLogitsLoss(), torch.optim.Adam(generator.parameters(), 0.01), **options)
        self.discriminator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.d_optimizer = torch.optim.Adam(self.discriminator.parameters(), 0.01)

    def step(self, batch):
        real = batch[0]
        fake, ones = self.model(torch.randn(len(real), 3)), torch.ones(len(real), 1)
        d_real, d_fake = self.discriminator(real), self.discriminator(fake.detach())
        d_loss = self.loss_fn(d_real, ones) + self.loss_fn(d_fake, 0 * ones)
        if self.phase == "train":
            self.d_optimizer.zero_grad()
            d_loss.backward()
            self.d_optimizer.step()
        return self.loss_fn(self.discriminator(fake), ones), None, {"d_loss": d_loss.detach()}


class Crash(Exception):
    pass


class CrashAfter(Callback):
    def __init__(self, steps):
        self.steps = steps

    def after_batch(self, trainer):
        if trainer.steps == self.steps:
            raise Crash


def fit_gan(folder, epochs, *callbacks, resume=False):
    "Everything that a run with two models and two optimizers ends with."
    manager = CheckpointManager(folder, every_steps=1)
    callbacks = [Reproducible(7), Checks(), Checkpoints(manager, resume=resume), *callbacks]
    trainer = GAN(progress=False, callbacks=callbacks)
    loader = batches(draw(40, 2), shuffle=True)
    trainer.fit(epochs - trainer.epoch, loader, batches(draw(16, 2, seed=5)))
    weights = [*trainer.model.state_dict().values(), *trainer.discriminator.state_dict().values()]
    states = [each.state_dict()["state"] for each in (trainer.optimizer, trainer.d_optimizer)]
    moments = [value for state in states for entry in state.values() for value in entry.values()]
    return [value.tolist() for value in (*weights, *moments)], trainer.history


@pytest.mark.parametrize("steps", [4, 10, 13])
def test_a_gan_resumes_bit_identically(tmp_path, steps, recwarn):
    whole = fit_gan(tmp_path / "whole", 4)
    with pytest.raises(Crash):
        fit_gan(tmp_path / "cut", 4, CrashAfter(steps))
    assert fit_gan(tmp_path / "cut", 4, resume=True) == whole
    assert not [each for each in recwarn if "in no optimizer" in str(each.message)]
    assert {"train_d_loss", "valid_d_loss", "train_loss", "valid_loss"} <= set(whole[1][-1])


# ----------------------------------------------------------------------------------- B5: losses that are no plain mean
def linear(outputs=3):
    torch.manual_seed(0)
    return nn.Linear(4, outputs)


@pytest.mark.parametrize("size", [64, 16, 5, 1])
def test_class_weights_give_the_same_loss_for_every_batch_size(size):
    X, y = draw(64, 4), classes(64, num=2)
    model = linear(2)
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0]))
    means = make(model, loss_fn).evaluate(batches(X, y, size=size))
    with torch.no_grad():
        outputs = model(X)
    assert means["loss"] == pytest.approx(loss_fn(outputs, y).item(), rel=1e-6)
    assert means["acc"] == pytest.approx((outputs.argmax(1) == y).float().mean().item())
    assert evaluate_by_function(model, batches(X, y, size=size), loss_fn, "cpu")[0] == pytest.approx(means["loss"])


@pytest.mark.parametrize("size", [64, 16, 5, 1])
@pytest.mark.parametrize("shape", [(), (6,)])
def test_ignored_labels_count_neither_in_the_loss_nor_in_the_accuracy(size, shape):
    y = classes(64, *shape)
    y[draw(64, *shape, seed=4) > 0.2] = 255
    X, loss_fn = draw(64, 3, *shape, seed=2), nn.CrossEntropyLoss(ignore_index=255)
    counted, model = y != 255, nn.Identity()
    means = Trainer(model, loss_fn, progress=False).evaluate(batches(X, y, size=size))
    assert means["loss"] == pytest.approx(loss_fn(X, y).item(), rel=1e-6)
    assert means["acc"] == pytest.approx((X.argmax(1) == y)[counted].float().mean().item())


@pytest.mark.parametrize("kind", [{"weight": torch.tensor([1.0, 5.0, 2.0])}, {"ignore_index": 2}], ids=list)
def test_accumulated_gradients_are_those_of_one_large_batch(kind):
    X, y = draw(24, 4), classes(24)
    weights = []
    for size, callbacks in ((24, []), (8, [GradientAccumulation(3)])):
        trainer = make(linear(), nn.CrossEntropyLoss(**kind), callbacks=callbacks)
        trainer.fit(1, batches(X, y, size=size))
        weights.append(trainer.model.weight.detach())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_loss_that_is_no_mean_is_refused_with_the_reason(reduction):
    with pytest.raises(ValueError, match=f"{reduction}.*mean"):
        make(linear(), nn.CrossEntropyLoss(reduction=reduction))


class Threshold(nn.Module):
    "Probabilities that are right for every sample."

    def forward(self, x):
        return torch.sigmoid(x[:, :1] - 1)


def test_probabilities_have_the_accuracy_of_probabilities():
    X = draw(200, 4)
    y = (X[:, :1] > 1).float()
    assert 10 < y.sum() < 190
    for loss_fn in (nn.BCELoss(), F.binary_cross_entropy):
        assert Trainer(Threshold(), loss_fn, progress=False).evaluate(batches(X, y))["acc"] == 1.0
        assert evaluate_by_function(Threshold(), batches(X, y), loss_fn, "cpu")[1] == 1.0
    logits = nn.Identity()
    assert Trainer(logits, nn.BCEWithLogitsLoss(), progress=False).evaluate(batches(X[:, :1] - 1, y))["acc"] == 1.0


def test_one_hot_labels_have_an_accuracy():
    X, y = draw(50, 3), classes(50)
    one_hot, expected = F.one_hot(y, 3).float(), (X.argmax(1) == y).float().mean().item()
    means = Trainer(nn.Identity(), nn.CrossEntropyLoss(), progress=False).evaluate(batches(X, one_hot))
    assert means["acc"] == pytest.approx(expected)
    trainer = make(linear(), nn.CrossEntropyLoss(), callbacks=[Checks()])
    history = trainer.fit(1, batches(draw(50, 4), one_hot, shuffle=True))
    assert history.train_acc.notna().all()


def test_a_meter_without_a_trainer_weighs_as_well():
    X, y = draw(10, 2), classes(10, num=2)
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0]))
    meter = EpochMeter(default_metrics(loss_fn), loss_fn)
    for part in (slice(0, 7), slice(7, 10)):
        meter.update(loss_fn(X[part], y[part]), X[part], y[part])
    assert meter.compute()["loss"] == pytest.approx(loss_fn(X, y).item())


# --------------------------------------------------------------------------- B6, B7: refused instead of a wrong result
def test_predicting_a_tensor_or_a_dataset_is_refused():
    trainer, X = make(linear(), nn.CrossEntropyLoss()), draw(64, 4)
    for wrong in (X, TensorDataset(X)):
        with pytest.raises(TypeError, match="DataLoader"):
            trainer.predict(wrong)
    torch.testing.assert_close(trainer.predict(batches(X)), trainer.model(X).detach())
    torch.testing.assert_close(trainer.predict(X.split(8)), trainer.model(X).detach())


def test_a_metric_called_loss_is_refused():
    with pytest.raises(ValueError, match="metric.*loss"):
        make(linear(), nn.CrossEntropyLoss(), metrics={"loss": lambda outputs, y: torch.tensor(0.5)})


# -------------------------------------------------------------------------------------- C3, D6: errors and tracebacks
class TwoInputs(nn.Linear):
    def forward(self, x, scale):
        return super().forward(x) * scale


class Scaled(Trainer):
    "A correct call of the model, and a bug in the line after it."

    def step(self, batch):
        X, y = batch
        return self.loss_fn(self.model(X, 2.0), y[:3])


class Broken(nn.Linear):
    def forward(self, x):
        raise KeyError("my own bug")


def frames_of(error) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.tb)]


def test_an_error_in_my_step_reaches_me_as_it_is():
    for callbacks in ([], [Checks()], [Reproducible(1), Checks()]):
        trainer = make(TwoInputs(4, 3), nn.CrossEntropyLoss(), Scaled, callbacks=callbacks)
        with pytest.raises(ValueError, match="Expected input batch_size .8. to match target batch_size .3.") as error:
            trainer.fit(1, batches(draw(16, 4), classes(16), shuffle=True))
        assert error.value.__context__ is None and not isinstance(error.value, TrainingError)
        assert len(frames_of(error)) <= 15 and "step" in frames_of(error)


@pytest.mark.parametrize("callbacks", [[], [Checks()]])
def test_an_error_in_my_model_reaches_me_as_it_is(callbacks):
    trainer = make(Broken(4, 3), nn.CrossEntropyLoss(), callbacks=callbacks)
    with pytest.raises(KeyError, match="my own bug") as error:
        trainer.fit(1, batches(draw(16, 4), classes(16), shuffle=True))
    assert error.value.__context__ is None and frames_of(error)[-1] == "forward" and len(frames_of(error)) <= 14


class Exact(Exception):
    pass


@pytest.mark.parametrize("phase", ["train", "valid", "evaluate", "predict"])
def test_an_exception_of_mine_in_any_phase(phase):
    raised = Exact("mine")

    class Failing(Trainer):
        def step(self, batch):
            if self.phase == phase:
                raise raised
            return super().step(batch)

        def predict_step(self, batch):
            raise raised

    loader = batches(draw(16, 4), classes(16), shuffle=phase != "predict")
    trainer = make(linear(), nn.CrossEntropyLoss(), Failing, callbacks=[Checks(ignore=("overlap", "unshuffled"))])
    actions = {"evaluate": trainer.evaluate, "predict": trainer.predict}
    with pytest.raises(Exact) as error:
        actions.get(phase, lambda loader: trainer.fit(1, loader, loader))(loader)
    assert error.value is raised and raised.__context__ is None and len(frames_of(error)) <= 12


def fit_with_checks(loader):
    make(linear(), nn.CrossEntropyLoss(), callbacks=[Checks()]).fit(1, loader)


def fit_by_recipe(loader):
    fit(linear(), loader, epochs=1, progress=False)


@pytest.mark.parametrize("fit_it", [fit_with_checks, fit_by_recipe])
def test_the_message_of_a_check_stands_alone(fit_it):
    with pytest.raises(TrainingError, match=r"class indices as int64: y = y.long\(\)") as error:
        fit_it(batches(draw(16, 4), classes(16).float(), shuffle=True))
    text = "".join(traceback.format_exception(error.value))
    assert "During handling" not in text and "direct cause" not in text
    assert len(frames_of(error)) <= 13 and len(text.splitlines()) <= 36


# ------------------------------------------------------------------------------------- C4: batches of any structure
class Rows(Dataset):
    "Samples as dictionaries."

    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return {"x": self.X[i], "label": self.y[i]}


class Dictionaries(Trainer):
    def step(self, batch):
        outputs = self.model(batch["x"])
        correct = (outputs.argmax(dim=1) == batch["label"]).float().mean()
        return self.loss_fn(outputs, batch["label"]), outputs, {"acc": correct}

    def predict_step(self, batch):
        return self.model(batch["x"])


class Triplets(Trainer):
    def step(self, batch):
        return self.loss_fn(*map(self.model, batch))


class Autoencoder(Trainer):
    def step(self, batch):
        X = batch[0] if isinstance(batch, list) else batch
        return self.loss_fn(self.model(X), X)


def test_dictionaries_triples_and_x_alone():
    X, y = draw(40, 4), classes(40)
    trainer = make(linear(), nn.CrossEntropyLoss(), Dictionaries, callbacks=[Checks()])
    loader = DataLoader(Rows(X, y), 8, shuffle=True)
    history = trainer.fit(2, loader, DataLoader(Rows(X + 0, y + 0), 8))
    assert {"train_acc", "valid_acc"} <= set(history.columns) and history.train_loss.is_monotonic_decreasing
    assert set(trainer.evaluate(loader)) == {"loss", "acc"}
    torch.testing.assert_close(trainer.predict(DataLoader(Rows(X, y), 7)), trainer.model(X).detach())

    triplets = make(linear(), nn.TripletMarginLoss(), Triplets, callbacks=[Checks()])
    assert triplets.fit(2, batches(X, X + 0.1, X.flip(0), shuffle=True)).train_loss.notna().all()

    for loader in (batches(X, shuffle=True), DataLoader(X, 8, shuffle=True)):
        encoder = make(nn.Linear(4, 4), nn.MSELoss(), Autoencoder, callbacks=[Checks(ignore="overlap")])
        history = encoder.fit(3, loader, loader)
        assert history.train_loss.is_monotonic_decreasing and set(encoder.evaluate(loader)) == {"loss"}


def test_other_batches_than_pairs_say_what_to_override():
    with pytest.raises(TypeError, match="pair.*3.*step"):
        make(linear(), nn.CrossEntropyLoss()).fit(1, batches(draw(8, 4), draw(8, 4), classes(8)))


# ----------------------------------------------------------------- C5: places to override for prediction and update
class Answers(nn.Linear):
    "Returns a dictionary, as the models of Hugging Face do."

    def forward(self, x):
        return {"logits": super().forward(x)}


class FromDictionary(Trainer):
    def step(self, batch):
        outputs = self.model(batch[0])["logits"]
        return self.loss_fn(outputs, batch[1]), outputs

    def predict_step(self, batch):
        return self.model(batch[0])["logits"]


class Newton(Trainer):
    def optimize(self, loss):
        def closure():
            self.optimizer.zero_grad()
            loss, *_ = self.step(self.batch)
            loss.backward()
            return loss

        self.optimizer.step(closure)


def test_predict_step():
    X, y = draw(40, 4), classes(40)
    trainer = make(Answers(4, 3), nn.CrossEntropyLoss(), FromDictionary, callbacks=[Checks()])
    history = trainer.fit(1, batches(X, y, shuffle=True))
    assert "train_acc" in history.columns
    assert trainer.predict(batches(X, y)).shape == (40, 3)
    with pytest.raises(TypeError, match="dict.*predict_step"):
        make(Answers(4, 3), nn.CrossEntropyLoss()).predict(batches(X, y))


def test_lbfgs():
    X = draw(40, 4)
    y = X @ torch.tensor([[1.0], [2.0], [-1.0], [0.5]]) + 3
    model = nn.Linear(4, 1)
    trainer = Newton(model, nn.MSELoss(), torch.optim.LBFGS(model.parameters()), progress=False, callbacks=[Checks()])
    trainer.fit(3, [(X, y)])
    assert trainer.evaluate([(X, y)])["loss"] < 1e-8


# ------------------------------------------------------------------------------------------- C7: a language model
class NextWord(nn.Sequential):
    def __init__(self, swap: bool):
        super().__init__(nn.Embedding(20, 6), nn.Linear(6, 20))
        self.swap = swap

    def forward(self, x):
        return super().forward(x).transpose(1, 2) if self.swap else super().forward(x)


def test_a_language_model_is_told_to_swap_dimensions():
    X, y = classes(32, 8, num=20), classes(32, 8, num=20, seed=2)
    with pytest.raises(TrainingError, match=r"classes in dimension 1: logits.transpose\(1, 2\)") as error:
        make(NextWord(False), nn.CrossEntropyLoss(), callbacks=[Checks()]).fit(1, batches(X, y, shuffle=True))
    assert "(8, 20)" not in str(error.value), "no labels of this shape exist"
    trainer = make(NextWord(True), nn.CrossEntropyLoss(), callbacks=[Checks()])
    history = trainer.fit(1, batches(X, y, shuffle=True))
    assert 0 <= history.train_acc[0] <= 1


# --------------------------------------------------------------------------- D5: numbers of a step, the loss of a step
class WithNorm(Trainer):
    def step(self, batch):
        loss, outputs = super().step(batch)
        return loss, outputs, {"norm": outputs.norm(dim=1).mean(), "constant": 2.0}


class Recorder(Callback):
    def before_fit(self, trainer):
        self.losses, self.shapes = [], []

    def after_batch(self, trainer):
        self.losses.append(trainer.loss.item())
        self.shapes.append(tuple(trainer.outputs.shape))


def test_further_numbers_are_in_the_history_and_the_loss_of_a_step_is_known():
    X, y = draw(20, 4), classes(20)
    recorder = Recorder()
    trainer = make(linear(), nn.CrossEntropyLoss(), WithNorm, callbacks=[Checks(), recorder], lr=0.0)
    row = trainer.fit(1, batches(X, y, shuffle=True), batches(X + 0, y)).iloc[0]
    norm = trainer.model(X).norm(dim=1).mean().item()
    assert row.train_norm == pytest.approx(norm, rel=1e-5) and row.valid_norm == pytest.approx(norm, rel=1e-5)
    assert row.train_constant == 2.0 and trainer.evaluate(batches(X, y))["norm"] == pytest.approx(norm, rel=1e-5)
    assert recorder.shapes == [(8, 3), (8, 3), (4, 3)]
    mean = sum(loss * size for loss, (size, _) in zip(recorder.losses, recorder.shapes)) / 20
    assert row.train_loss == pytest.approx(mean, rel=1e-5)


def test_a_trainer_has_no_private_matters_without_an_underscore():
    known = set("model loss_fn optimizer metrics device callbacks history epoch batch_index steps start_epoch epochs "
                "should_stop phase batch loss outputs numbers accumulating updated meter train_dataloader "
                "valid_dataloader progress".split())
    trainer = make(linear(), nn.CrossEntropyLoss(), callbacks=[Checks()])
    trainer.fit(1, batches(draw(16, 4), classes(16), shuffle=True), batches(draw(16, 4), classes(16)))
    public = {name for name in vars(trainer) if not name.startswith("_")}
    assert len(public - known) <= 7, public - known


# ------------------------------------------------------------------------------------- D8: my model stays as it was
class Formats(Callback):
    def after_batch(self, trainer):
        self.weight_is_channels_last = trainer.model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fails", [False, True])
def test_convolutions_are_contiguous_after_fit(fails):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    optimizer, formats = torch.optim.Adam(model.parameters()), Formats()
    callbacks = [ChannelsLast(), formats, *([CrashAfter(2)] if fails else [])]
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, progress=False)
    loader = batches(draw(16, 3, 8, 8), classes(16), shuffle=True)
    try:
        trainer.fit(1, loader)
    except Crash:
        assert fails
    assert formats.weight_is_channels_last or not torch.backends.mkldnn.is_available()
    for parameter in model.parameters():
        parameter.view(-1)
        assert parameter.is_contiguous() and parameter.stride() == optimizer.state[parameter]["exp_avg"].stride()


# ------------------------------------------------------------------------------- models, losses, metrics on the device
class Moves(nn.CrossEntropyLoss):
    "Notes where it was asked to go."

    def to(self, *args, **kwargs):
        self.moved_to = torch.device(*args)
        return super().to(*args, **kwargs)


class CountingMetric(nn.Module):
    "A metric object that is a module, as in torchmetrics."

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))

    def reset(self):
        self.total.zero_()

    def update(self, outputs, targets):
        self.total += (outputs.argmax(dim=1) == targets).sum()

    def compute(self):
        return self.total


class TwoModels(Trainer):
    "A second model is an attribute."
    teacher: nn.Module

    def step(self, batch):
        loss, outputs = super().step(batch)
        return loss + 0 * self.teacher(batch[0]).sum(), outputs


@pytest.mark.parametrize("device", ["cpu", *DEVICES])
def test_losses_metrics_and_further_models_move_to_the_device(device):
    X, y = draw(24, 4), classes(24)
    loss_fn = Moves(weight=torch.tensor([1.0, 5.0, 2.0]))
    trainer = make(linear(), loss_fn, TwoModels, device=device, metrics={"hits": CountingMetric()})
    trainer.teacher = nn.Linear(4, 3)
    row = trainer.fit(1, batches(X, y, shuffle=True), batches(X, y)).iloc[0]
    assert loss_fn.moved_to.type == device and loss_fn.weight.device.type == device
    assert trainer.teacher.weight.device.type == trainer.model.weight.device.type == device
    outputs = trainer.predict(batches(X))
    assert outputs.device.type == "cpu" and row.valid_hits == (outputs.argmax(dim=1) == y).sum()
    assert Trainer(linear(), loss_fn, device=device, progress=False).evaluate(batches(X, y))["loss"] > 0


def test_a_constructor_has_no_side_effects():
    model, loss_fn = linear(), Moves()
    before = torch.get_rng_state(), [value.clone() for value in model.state_dict().values()]
    make(model, loss_fn, callbacks=[Checks(), ChannelsLast(), Reproducible(1)])
    assert not hasattr(loss_fn, "moved_to") and torch.equal(torch.get_rng_state(), before[0])
    assert all(map(torch.equal, model.state_dict().values(), before[1]))


# --------------------------------------------------------------------------- a bad loss is stopped before it does harm
class Poison(Callback):
    def __init__(self, at):
        self.at = at

    def before_batch(self, trainer):
        if trainer.steps == self.at:
            trainer.batch = (trainer.batch[0] * float("nan"), trainer.batch[1])


class Weights(Callback):
    def before_fit(self, trainer):
        self.after = []

    def after_batch(self, trainer):
        self.after.append(trainer.model.weight.detach().clone())


@pytest.mark.parametrize("at", [0, 3])
def test_nan_moves_no_weight(at):
    weights = Weights()
    trainer = make(linear(), nn.CrossEntropyLoss(), callbacks=[Checks(), Poison(at), weights])
    with pytest.raises(TrainingError, match=f"the loss is nan at step {at + 1}; .* in the input"):
        trainer.fit(1, batches(draw(48, 4), classes(48), shuffle=True))
    assert trainer.model.weight.isfinite().all() and len(weights.after) == at
    assert not at or torch.equal(trainer.model.weight, weights.after[-1])


@pytest.mark.parametrize("device", DEVICES)
def test_nan_on_a_gpu_is_found_within_50_steps_and_at_the_end_of_the_epoch(device):
    for at, steps in ((0, 50), (110, 120)):
        trainer = make(linear(), nn.CrossEntropyLoss(), device=device, callbacks=[Checks(), Poison(at)])
        with pytest.raises(TrainingError, match=f"the loss is nan at step {at + 1}; "):
            trainer.fit(1, batches(draw(120, 4), classes(120), size=1, shuffle=True))
        assert trainer.steps <= steps


def test_checks_change_nothing():
    results = []
    for callbacks in ([], [Checks()]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        trainer = make(model, nn.CrossEntropyLoss(), callbacks=callbacks)
        trainer.fit(2, batches(draw(48, 4), classes(48), shuffle=True), batches(draw(16, 4, seed=8), classes(16)))
        results.append([value.tolist() for value in model.state_dict().values()] + [trainer.history])
    assert results[0] == results[1]


class Share:
    "A metric object in the style of torchmetrics: the share of correct predictions."
    def reset(self):
        self.correct, self.seen = 0, 0

    def update(self, logits, y):
        self.correct += int((logits.argmax(1) == y).sum())
        self.seen += len(y)

    def compute(self):
        return self.correct / self.seen


def small_data(n=40):
    X = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(X, (X[:, 0] > 0.3).long())


def small_trainer(kind=Trainer, **options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return kind(model, nn.CrossEntropyLoss(), optimizer, progress=False, **options)


def test_metric_objects_of_training_and_validation_are_apart():
    trainer = small_trainer(metrics={"object": Share(), "acc": accuracy})
    valid = TensorDataset(torch.zeros(7, 4), torch.zeros(7).long())
    trainer.fit(2, DataLoader(small_data(), 8), DataLoader(valid, 7))
    for row in trainer.history:
        assert row["train_object"] == pytest.approx(row["train_acc"])
        assert row["valid_object"] == pytest.approx(row["valid_acc"])


class Distillation(Trainer):
    "With a teacher that stays in evaluation mode."
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        torch.manual_seed(2)
        self.teacher = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).eval()

    def step(self, batch):
        logits = self.model(batch[0])
        return nn.functional.mse_loss(logits, self.teacher(batch[0]).detach()), logits


def test_a_second_model_keeps_its_mode(tmp_path):
    class Cut(Callback):
        def after_batch(self, trainer):
            if trainer.steps == 7: raise KeyError

    def run(folder, *callbacks, resume=False):
        manager = CheckpointManager(folder, every_steps=1)
        own = [Reproducible(3), Checkpoints(manager, resume), *callbacks]
        trainer = small_trainer(Distillation, callbacks=own)
        trainer.fit(2, DataLoader(small_data(), 8, shuffle=True), DataLoader(small_data(16), 8))
        assert trainer.model.training and not any(module.training for module in trainer.teacher.modules())
        return [value.tolist() for value in trainer.model.state_dict().values()]

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyError):
        run(tmp_path / "parts", Cut())
    assert run(tmp_path / "parts", resume=True) == whole


def test_callbacks_may_be_a_generator():
    seen = []

    class Note(Callback):
        def after_epoch(self, trainer):
            seen.append(trainer.epoch)

    small_trainer(callbacks=(callback for callback in [Note()])).fit(1, DataLoader(small_data(), 8))
    assert seen == [1]


def test_yes_or_no_in_another_shape():
    outputs = torch.tensor([[2.0], [-1.0], [3.0]])
    assert binary_accuracy(outputs, torch.tensor([1.0, 0.0, 1.0])) == 1
    assert binary_accuracy(torch.rand(4, 10), torch.ones(4)).isnan()
