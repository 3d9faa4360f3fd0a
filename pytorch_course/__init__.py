"""A PyTorch course you can import: each module is one lesson, written as a notebook of the same name.

    from pytorch_course import fit             # the shortest way: checks, speed, exact resume
    from pytorch_course.training import train  # the plain loop; so for every module below

The lessons, in order
    workflow              prologue: a first training run, every step once
    tensors               describe, pick_device, seed_everything
    data                  ImageFolder, find_splits, create_dataloaders
    model                 TinyVGG and other networks; build_model, summary
    autograd              gradients; an engine built by hand
    training              metrics, train_step, test_step, train: the plain loop
    save_load             model files that describe themselves: save_model, load_model
    going_modular         the commands of `pytorch-course`

Your own data
    get_data              ready-made data sets by name
    downloads, archives   fetch files and unpack them safely
    food_shapes, film_reviews    data sets that need no network
    custom_datasets       tables of files, splits, samplers
    text                  from sentences to batches of word indices
    image_cache           decode every image once
    augmentation          random flips and crops

A trainer
    arguments, hooks, trainer      clear errors; Callback and Trainer
    callbacks             early stopping, best weights, schedules, accumulation, clipping
    lr_finder             which learning rate to begin with
    tracking              TensorBoard
    evaluation            confusion matrix, report for each class, confident mistakes
    recipes               fit, and CIFAR-10 in a minute

Training you can trust
    data_checks, checks   notice bugs that raise no error
    reproducibility, worker_errors    the same run again, with any number of workers
    weights_files         files of tensors, read without running code
    transfer_weights      start from other weights
    checkpoint_files, checkpoint_manager, shutdown, checkpoints    resume exactly, at any step

Training that is fast
    performance           memory format, mixed precision, torch.compile
    distributed           several processes under torchrun
    timing                measure fairly; where a step's time goes

Tools
    graph_layout, graph_drawing    the graph that autograd recorded, as SVG
    command_line, runs    commands from signatures; the folder of a run: settings, history, resume
    scaffold              a folder of stand-alone scripts
    doctor                what would fail on this machine

The ground floor
    seeds, system, files, images, plots
"""
__version__ = "0.1.0"

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` imports a module when it is needed
    from pytorch_course.callbacks import BestWeights as BestWeights
    from pytorch_course.callbacks import EarlyStopping as EarlyStopping
    from pytorch_course.callbacks import GradientAccumulation as GradientAccumulation
    from pytorch_course.callbacks import GradientClipping as GradientClipping
    from pytorch_course.callbacks import LRScheduler as LRScheduler
    from pytorch_course.callbacks import OneCycle as OneCycle
    from pytorch_course.checkpoints import Checkpoints as Checkpoints
    from pytorch_course.checks import Checks as Checks
    from pytorch_course.data import ImageFolder as ImageFolder
    from pytorch_course.data import create_dataloaders as create_dataloaders
    from pytorch_course.data import find_splits as find_splits
    from pytorch_course.hooks import Callback as Callback
    from pytorch_course.image_cache import create_cached_dataloaders as create_cached_dataloaders
    from pytorch_course.images import ImageTransform as ImageTransform
    from pytorch_course.lr_finder import find_learning_rate as find_learning_rate
    from pytorch_course.model import TinyVGG as TinyVGG
    from pytorch_course.model import build_model as build_model
    from pytorch_course.model import list_models as list_models
    from pytorch_course.model import register_model as register_model
    from pytorch_course.model import summary as summary
    from pytorch_course.performance import ChannelsLast as ChannelsLast
    from pytorch_course.performance import MixedPrecision as MixedPrecision
    from pytorch_course.plots import plot_images as plot_images
    from pytorch_course.plots import plot_loss_curves as plot_loss_curves
    from pytorch_course.recipes import fit as fit
    from pytorch_course.reproducibility import Reproducible as Reproducible
    from pytorch_course.save_load import ModelInfo as ModelInfo
    from pytorch_course.save_load import load_model as load_model
    from pytorch_course.save_load import save_model as save_model
    from pytorch_course.tensors import describe as describe
    from pytorch_course.tensors import pick_device as pick_device
    from pytorch_course.tensors import seed_everything as seed_everything
    from pytorch_course.trainer import Trainer as Trainer
    from pytorch_course.training import accuracy as accuracy
    from pytorch_course.training import test_step as test_step
    from pytorch_course.training import train as train
    from pytorch_course.training import train_step as train_step

_NAMES = {  # module -> what can be imported from the package itself; as above
    "callbacks": "BestWeights EarlyStopping GradientAccumulation GradientClipping LRScheduler OneCycle",
    "checkpoints": "Checkpoints",
    "checks": "Checks",
    "data": "ImageFolder create_dataloaders find_splits",
    "hooks": "Callback",
    "image_cache": "create_cached_dataloaders",
    "images": "ImageTransform",
    "lr_finder": "find_learning_rate",
    "model": "TinyVGG build_model list_models register_model summary",
    "performance": "ChannelsLast MixedPrecision",
    "plots": "plot_images plot_loss_curves",
    "recipes": "fit",
    "reproducibility": "Reproducible",
    "save_load": "ModelInfo load_model save_model",
    "tensors": "describe pick_device seed_everything",
    "trainer": "Trainer",
    "training": "accuracy test_step train train_step",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}


def _modules() -> list[str]:
    "The public modules of the package."
    from pkgutil import iter_modules
    return [module.name for module in iter_modules(__path__) if not module.name.startswith("_")]


def __getattr__(name: str):
    "Import a module, or a name of `_NAMES`, when somebody asks for it."
    from importlib import import_module
    if name in _HOME: return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name.startswith("_") or name not in _modules():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; help({__name__}) shows what there is")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_modules()})
