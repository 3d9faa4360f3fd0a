"""The networks, and a table of their names.

The classes are those of lesson 02, Model (nbs/02_model.ipynb of pytorch_course), letter for letter.
README.md says how to add your own.
"""
import inspect

import torch
from torch import nn


from pytorch_course.model import _conv_block, TinyVGG, Cifar10Net


MODELS = {"tinyvgg": TinyVGG, "cifar10net": Cifar10Net}  # the choices of --model


def choose_arguments(name: str, channels: int, num_classes: int, hidden_units: int, image_size: int) -> dict:
    "Those of the numbers that the model `name` takes, by the names of its parameters."
    known = {"input_shape": channels, "in_channels": channels, "output_shape": num_classes, "num_classes": num_classes}
    known |= {"hidden_units": hidden_units, "image_size": image_size}
    signature = inspect.signature(MODELS[name])
    arguments = {key: value for key, value in known.items() if key in signature.parameters}
    if not {"output_shape", "num_classes"} & set(arguments):
        raise ValueError(f"model {name!r} needs a parameter output_shape or num_classes, the number of classes")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}; give it a default in model_builder.py") from None
    return arguments
