"""What makes training faster must not break it: channels last, mixed precision, memory that is used again."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytorch_course.checkpoints import Checkpoints
from pytorch_course.performance import ChannelsLast, MixedPrecision
from pytorch_course.reproducibility import Reproducible
from pytorch_course.trainer import Trainer, overfit_one_batch
from pytorch_course.training import EpochMeter, accuracy

draw = torch.Generator().manual_seed(0)
DATA = TensorDataset(torch.randn(24, 3, 8, 8, generator=draw), torch.randint(0, 3, (24,), generator=draw))


class Views(nn.Module):
    "As in older tutorials."

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8 * 6 * 6, 3)

    def forward(self, x):
        return self.linear(self.norm(self.convolution(x)).view(x.size(0), -1))


def make_trainer(*callbacks, model=None):
    torch.manual_seed(0)
    model = model or Views()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    return Trainer(model, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, progress=False)


def flat():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def fit(trainer, epochs=2):
    return trainer.fit(epochs, DataLoader(DATA, 8))


def test_a_model_with_view_is_trained_in_the_default_format():
    plain, chosen = make_trainer(), make_trainer(channels_last := ChannelsLast())
    fit(plain)
    with pytest.warns(UserWarning, match="use `flatten` or `reshape`"):
        fit(chosen)
    assert channels_last.active is False and torch.equal(weights(plain.model), weights(chosen.model))


@pytest.mark.parametrize("use", [Trainer.evaluate, Trainer.predict, overfit_one_batch])
def test_a_model_with_view_is_measured_and_then_trained(use):
    trainer = make_trainer(ChannelsLast())
    use(trainer, DataLoader(DATA, 8))
    with pytest.warns(UserWarning, match="use `flatten` or `reshape`"):
        fit(trainer)  # the weights are no leftovers of inference mode
    assert not any(parameter.is_inference() for parameter in trainer.model.parameters())


def test_a_model_that_is_put_into_channels_last_by_hand_raises_the_error():
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        fit(make_trainer(model=Views().to(memory_format=torch.channels_last)))


def test_row_11_a_model_with_view_is_resumed_without_a_second_warning(tmp_path):
    def run(folder, epochs, resume=False):
        trainer = make_trainer(ChannelsLast(), Reproducible(3), Checkpoints(tmp_path / folder, resume))
        fit(trainer, epochs)
        return weights(trainer.model)

    with pytest.warns(UserWarning):
        complete = run("complete", 2)
    with pytest.warns(UserWarning):
        run("parts", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run("parts", 2, resume=True), complete)


def test_an_optimizer_that_has_made_steps_follows_the_format():
    def run(*callbacks):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        for chosen in ((), callbacks):
            fit(Trainer(model, nn.CrossEntropyLoss(), optimizer, callbacks=chosen, progress=False))
        return weights(model)

    torch.testing.assert_close(run(ChannelsLast()), run(), rtol=1e-3, atol=1e-4)


def test_the_model_has_its_own_memory_format_back_after_training():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    fit(make_trainer(ChannelsLast(), model=model))
    assert model[0].weight.view(-1).shape == (216,)  # view needs the default format


def test_another_precision_cannot_be_resumed(tmp_path):
    def run(precision, resume):
        callbacks = [MixedPrecision(precision), Reproducible(3), Checkpoints(tmp_path, resume)]
        fit(make_trainer(*callbacks, model=flat()), 1 + resume)

    run("bf16", resume=False)
    with pytest.raises(ValueError, match="is from a run with bf16, not fp16"):
        run("fp16", resume=True)


def test_metrics_do_not_depend_on_memory_that_is_used_again():
    meter, y = EpochMeter({"acc": accuracy}), torch.zeros(4, dtype=torch.long)
    logits = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    for _ in range(3):
        meter.update(torch.zeros(()), logits, y)
    y += 1
    logits.fill_(torch.nan)
    assert meter.compute()["acc"] == 1


def test_predictions_keep_their_type():
    data = DataLoader([(X.double(), y) for X, y in DATA], 8)
    assert Trainer(flat().double(), nn.CrossEntropyLoss(), progress=False).predict(data).dtype == torch.float64
    mixed = make_trainer(MixedPrecision("bf16"), model=flat())
    assert mixed.predict(DataLoader(DATA, 8)).dtype == torch.float32


def test_16_bits_end_with_their_block():
    class Nested(Trainer):
        def step(self, batch):
            if self.phase == "train":
                self.evaluate([batch])
            return super().step(batch)

    model = flat()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Nested(model, nn.CrossEntropyLoss(), optimizer, callbacks=[MixedPrecision("bf16")], progress=False)
    fit(trainer, 1)
    assert not torch.is_autocast_enabled("cpu")
