"The network and the recipe of the lesson on recipes, from `nbs/3_training/46_recipes.ipynb`: 80% on CIFAR-10, soon."

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pytorch_course.augmentation import RandomFlipCrop
from pytorch_course.callbacks import OneCycle
from pytorch_course.hooks import Callback
from pytorch_course.image_cache import create_cached_dataloaders
from pytorch_course.images import ImageTransform
from pytorch_course.recipes import fit
from pytorch_course.trainer import Trainer


def block(in_channels: int, out_channels: int, pool: bool, **options) -> nn.Sequential:
    "Convolution, perhaps pooling, then what treats each pixel alone."
    layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, padding=1, bias=False, **options)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(out_channels), nn.ReLU())


class QuickNet(nn.Module):
    """A small fast network for images of at least 32 x 32 pixels: `(N, input_shape, H, W)` in, logits out.

    Pooling before normalization and logits divided by 8: K. Jordan's airbench, https://arxiv.org/abs/2404.00498.
    """
    def __init__(
        self,
        input_shape: int = 3,  # channels of the images
        hidden_units: int = 32,  # channels of the first convolution; the others have 2, 4 and 8 times as many
        output_shape: int = 10,  # classes
    ):
        super().__init__()
        width = hidden_units
        self.features = nn.Sequential(
            block(input_shape, width, pool=False, kernel_size=4, stride=2),
            block(width, 2 * width, pool=True, kernel_size=3),
            block(2 * width, 4 * width, pool=True, kernel_size=3),
            block(4 * width, 8 * width, pool=True, kernel_size=3),
        )
        self.classifier = nn.Linear(8 * width, output_shape, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).amax(dim=(2, 3))) / 8


def train_cifar10_quickly(
    train_dir: str | Path,  # folder of class folders to train on
    test_dir: str | Path,  # folder of class folders to test on
    epochs: int = 5,
    *,
    batch_size: int = 256,
    lr: float = 0.8,  # the highest learning rate; for smaller batches, make it smaller by the same factor
    precision: Literal["bf16", "fp32"] = "bf16",  # `"fp32"` on processors that have no instructions for bf16
    seed: int = 0,
    callbacks: Iterable[Callback] = (),  # further ones
    progress: bool = True,  # print a line per epoch
) -> Trainer:  # with the model and the history
    "Train a `QuickNet` on images of 32 x 32 pixels by a recipe that was found for CIFAR-10 on two cores."
    torch.manual_seed(seed)
    transform = ImageTransform(image_size=32, mean=(0.5,), std=(0.25,))
    augment = RandomFlipCrop(padding=2)
    *loaders, class_names = create_cached_dataloaders(train_dir, test_dir, transform, batch_size, augment=augment)
    model = QuickNet(output_shape=len(class_names))
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": others}]
    schedule = OneCycle(lr, pct_start=0.25, anneal_strategy="linear", cycle_momentum=False)
    parts = {
        "loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1),
        "optimizer": torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
        "callbacks": [schedule, *callbacks],
    }
    return fit(model, *loaders, epochs=epochs, seed=seed, precision=precision, progress=progress, **parts)
