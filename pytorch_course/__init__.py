"""A PyTorch course you can import: each module is one lesson, written as a notebook of the same name.

    from pytorch_course import fit             # the shortest way: checks, speed, exact resume
    from pytorch_course.training import train  # the plain loop; so for every module below

The lessons, in order
    tensors               describe, pick_device, seed_everything
    data                  ImageFolder, find_parts, find_splits, create_dataloaders
    model                 TinyVGG and other networks; build_model, summary
    autograd              gradients: topological_sort, which walks through a computation graph
    training              metrics, train_step, test_step, train: the plain loop
    save_load             model files that describe themselves: save_model, load_model
    going_modular         the commands of `pytorch-course`
Your own data
    get_data              ready-made data sets by name: food_shapes, film_reviews ...
    downloads, archives   fetch files and unpack them safely
    splits                training, validation and test images, copies kept together
    custom_datasets, text    tables of files, samplers; sentences as word indices
    decoding, image_cache    look at all images first; decode every image once
    augmentation          random flips and crops
A trainer
    arguments, hooks, trainer    clear errors; Callback and Trainer
    callbacks             early stopping, best weights, schedules, accumulation, clipping
    lr_finder, tracking   which learning rate to begin with; TensorBoard
    evaluation            confusion matrix, report for each class
    recipes               fit: all good defaults in one call
Training you can trust
    data_checks, checks   notice bugs that raise no error
    reproducibility, worker_errors    the same run again, with any number of workers
    weights_files, transfer_weights    files of tensors, read without running code
    checkpoint_files, checkpoint_manager, shutdown, checkpoints    resume exactly, at any step
Training that is fast
    performance           memory format, mixed precision, torch.compile
    distributed           several processes under torchrun
Tools
    graph_layout, graph_drawing    the graph that autograd recorded, as SVG
    command_line, runs    commands from signatures; the folder of a run: settings, history, resume
    inference             predict and evaluate as commands: many files, some of them broken
    scaffold, doctor      a folder of stand-alone scripts; what would fail on this machine
The ground floor
    seeds, system, files, images, plots
"""
__version__ = "0.1.0"

import re
import sys
from pathlib import Path
from types import ModuleType

_HOME = {  # what can be imported from the package itself, and its module; as in `__init__.pyi`
    "create_dataloaders": "data", "find_splits": "data", "create_cached_dataloaders": "image_cache",
    "ImageTransform": "images", "build_model": "model", "save_model": "save_load", "load_model": "save_load",
    "train": "training", "Callback": "hooks", "Trainer": "trainer", "fit": "recipes",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]

# Editors and type checkers see no `__getattr__`; they read `__init__.pyi`.
def __getattr__(name: str):
    "Import a module, or a name of `_HOME`, when somebody asks for it."
    from importlib import import_module
    if name in _HOME: return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if not name.startswith("_") and name in __dir__(): return import_module(f"{__name__}.{name}")
    message = f"module {__name__!r} has no attribute {name!r}; help({__name__}) shows what there is"
    if not re.fullmatch("[A-Za-z]\\w*", name): raise AttributeError(message)
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):  # nothing is imported
        if not re.search(rf"(?m)^__all__ = \[[^]]*'{name}'", path.read_text(encoding="utf-8")): continue
        message = f"{name} is in a module: from {__name__}.{path.stem} import {name}"
        if sys._getframe(1).f_globals.get("__name__") == "importlib._bootstrap":  # it would drop the message
            raise ImportError(message)
        break
    raise AttributeError(message)

def __dir__() -> list[str]:
    from pkgutil import iter_modules
    modules = [module.name for module in iter_modules(__path__) if not module.name.startswith("_")]
    return sorted({*__all__, *modules, *(name for name in globals() if name.startswith("_"))})

class _Package(ModuleType):
    "Python sets each module that was imported as an attribute of its package: the moment to complete its docstrings."
    def __setattr__(self, name: str, value: object):
        super().__setattr__(name, value)
        if isinstance(value, ModuleType) and sys.flags.optimize < 2:  # -OO is for those who want no docstrings
            try:
                from ._docstrings import add_parameters
                add_parameters(value)
            except Exception:  # no source, perhaps; help is not worth that an import fails
                pass

sys.modules[__name__].__class__ = _Package
