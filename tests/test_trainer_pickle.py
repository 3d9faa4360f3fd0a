"A trainer can be pickled after training, whatever its callbacks have wrapped around a step."
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytorch_course.callbacks import GradientAccumulation
from pytorch_course.performance import ChannelsLast, MixedPrecision
from pytorch_course.trainer import Trainer


@pytest.mark.parametrize("callback", [MixedPrecision("fp16"), GradientAccumulation(2), ChannelsLast()])
def test_a_trainer_survives_pickling(callback):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, callbacks=[callback], progress=False)
    data = DataLoader(TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8) % 2), 4)
    trainer.fit(1, data)
    copied = pickle.loads(pickle.dumps(trainer))
    torch.testing.assert_close(copied.predict(data), trainer.predict(data))
    assert len(copied.fit(1, data)) == 2
    assert copied.optimizer.param_groups[0]["params"][0] is copied.model[0].weight
