"""What makes a training faster must not break it: channels last, precision, memory that is used again."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytorch_course.training import EpochMeter, Trainer, accuracy

draw = torch.Generator().manual_seed(0)
DATA = TensorDataset(torch.randn(24, 3, 8, 8, generator=draw), torch.randint(0, 3, (24,), generator=draw))


class Views(nn.Module):
    "As in older tutorials."
    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.linear = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 6 * 6, 3)

    def forward(self, x):
        return self.linear(self.norm(self.convolution(x)).view(x.size(0), -1))


def trainer(model=None, fused=True, **options):
    torch.manual_seed(0)
    model = model or Views()
    return Trainer(
        model, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), fused=fused), progress=False, **options
    )


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def fit(some, epochs=2, **options):
    return some.fit(epochs, DataLoader(DATA, 8), **options)


def test_a_model_with_view_is_trained_in_the_usual_format():
    plain, chosen = trainer(channels_last=False), trainer()
    fit(plain)
    with pytest.warns(UserWarning, match="use `flatten` or `reshape`"):
        fit(chosen)
    assert chosen.channels_last is False and torch.equal(weights(plain.model), weights(chosen.model))


@pytest.mark.filterwarnings("ignore:the model calls")  # a copy that was tried tells nothing to the original
@pytest.mark.parametrize("use", ["evaluate", "predict", "overfit_one_batch"])
def test_a_model_with_view_is_measured_and_then_trained(use):
    some = trainer()
    with pytest.warns(UserWarning, match="use `flatten` or `reshape`"):
        getattr(some, use)(DataLoader(DATA, 8))
    fit(some)  # the weights are no leftovers of inference mode
    assert not any(parameter.is_inference() for parameter in some.model.parameters())


def test_who_asks_for_channels_last_gets_the_error():
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        fit(trainer(channels_last=True))


def test_row_11_a_model_with_view_is_resumed_without_a_second_word(tmp_path):
    def run(folder, epochs, **options):
        some = trainer()
        fit(some, epochs, checkpoint_dir=tmp_path / folder, seed=3, **options)
        return weights(some.model)

    with pytest.warns(UserWarning):
        whole = run("whole", 2)
    with pytest.warns(UserWarning):
        run("parts", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run("parts", 2, resume=True), whole)


def test_an_optimizer_that_has_made_steps_follows_the_format():
    def run(turn):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        for channels_last in (False, turn):
            Trainer(model, nn.CrossEntropyLoss(), optimizer, progress=False, channels_last=channels_last).fit(
                2, DataLoader(DATA, 8)
            )
        return weights(model)

    torch.testing.assert_close(run(True), run(False), rtol=1e-3, atol=1e-4)


def test_another_precision_cannot_be_resumed(tmp_path):
    fit(trainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 3))), 1, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="is from a training with precision fp32, not fp16"):
        fit(
            trainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), precision="fp16"),
            checkpoint_dir=tmp_path,
            resume=True,
        )


def test_metrics_do_not_depend_on_memory_that_is_used_again():
    meter, y = EpochMeter({"acc": accuracy}), torch.zeros(4, dtype=torch.long)
    logits = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    for _ in range(3):
        meter.add(torch.zeros(()), logits, y)
    y += 1
    logits.fill_(torch.nan)
    assert meter.means()["acc"] == 1


def test_predictions_keep_their_type():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()
    data = DataLoader([(X.double(), y) for X, y in DATA], 8)
    assert Trainer(model, nn.CrossEntropyLoss(), progress=False).predict(data).dtype == torch.float64
    assert (
        trainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), precision="bf16").predict(DataLoader(DATA, 8)).dtype
        == torch.float32
    )


def test_16_bits_end_with_their_block():
    class Nested(Trainer):
        def step(self, X, y):
            self.predict([X])
            return super().step(X, y)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    Nested(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), progress=False, precision="bf16"
    ).fit(1, DataLoader(DATA, 8))
    assert not torch.is_autocast_enabled("cpu")
