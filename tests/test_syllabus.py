"""Every row of the syllabus has its place: a heading in a lesson and, where one is named, an API.

The tables say where to look for a topic; the tests fail when a heading or a name disappears.
"""
import inspect
import json
from importlib import import_module
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parent.parent / "nbs"

# topic -> (notebook, heading)
TOPICS = {
    # 00 Tensors
    "from lists, inferred dtype; ones, zeros, rand, *_like": ("00_tensors", "## Creating tensors"),
    "NumPy and back, shared memory": ("00_tensors", "### From NumPy, and back"),
    "ones_like, rand_like with another dtype": ("00_tensors", "### From a shape, or like another tensor"),
    "shape, dtype, device": ("00_tensors", "## What a tensor knows about itself"),
    "indexing and slicing, column assignment": ("00_tensors", "## Indexing and slicing"),
    "cat against stack": ("00_tensors", "## Joining: `cat` or `stack`?"),
    "@, matmul, *, mul": ("00_tensors", "## Arithmetic"),
    "out= resizes with a warning, raises with requires_grad": (
        "00_tensors",
        "### Mistake: `out=` with the wrong shape",
    ),
    "sum().item()": ("00_tensors", "### Summing up"),
    "in-place operations": ("00_tensors", "## In-place operations, and why to avoid them"),
    "broadcasting": ("00_tensors", "## Broadcasting"),
    "devices; current_accelerator": ("00_tensors", "## Devices"),
    "seeds": ("00_tensors", "## Seeds and reproducibility"),
    "decoded images are kept": ("2_data/28_image_cache", "## A store that fills itself"),
    "scaling by multiplication differs in the last bit": (
        "2_data/28_image_cache",
        "### Mistake: a multiplication instead of a division",
    ),
    "a whole batch from the data set": ("2_data/28_image_cache", "## A batch that is whole already"),
    "augmentation per image, for a whole batch": ("2_data/29_augmentation", "## Flip and crop without a loop"),
    # 01 Data
    "Dataset: __len__, __getitem__": ("01_data", "## A data set answers two questions"),
    "Dataset against DataLoader": ("01_data", "## A loader makes batches"),
    "every DataLoader argument": ("2_data/27_custom_datasets", "## Every argument of DataLoader"),
    "when workers help": ("2_data/27_custom_datasets", "### When do workers help?"),
    "TensorDataset on iris; float64": ("2_data/27_custom_datasets", "### Mistake: float64 features"),
    "random_split with a generator, dataset +": ("2_data/27_custom_datasets", "### Parts and sums"),
    "halves of a split share one transform": (
        "2_data/27_custom_datasets",
        "### Mistake: the two halves of a split share one transform",
    ),
    "ImageFolder, class_to_idx": ("01_data", "## What real folders contain"),
    "augmentation for training only": ("01_data", "## Augmentation: for training only"),
    "flips and rotation": ("2_data/27_custom_datasets", "## Augmentation, and who gets it"),
    "folders that lack a class": ("01_data", "### Mistake: folders that number their classes apart"),
    "files and a CSV": ("2_data/27_custom_datasets", "## Files and a list"),
    "a CSV without a header": ("2_data/27_custom_datasets", "### Mistake: the header that was an image"),
    "FashionMNIST, CIFAR10, labels_map, 3x3 grid, next(iter(loader))": (
        "2_data/27_custom_datasets",
        "## Ready-made sets",
    ),
    "scaling, normalising, v2, ToTensor is deprecated": ("1_basics/13_images", "## From image to batch"),
    "one-hot labels as a picklable class": ("2_data/27_custom_datasets", "## Labels as vectors"),
    "samplers": ("2_data/27_custom_datasets", "## In which order?"),
    "unbalanced classes": ("2_data/27_custom_datasets", "### Rare classes"),
    "getting data": ("2_data/25_get_data", "## One name for each set"),
    "making a data set": ("2_data/23_food_shapes", "# Make your own data set"),
    "raw label<TAB>text lines; tabs in the text": ("2_data/26_text", "### Mistake: a tab inside the text"),
    "one sample per file; listdir order": ("2_data/26_text", "### Mistake: the order of the directory"),
    "clean and tokenize: the empty word": ("2_data/26_text", "### Mistake: splitting at the space"),
    "punctuation glues words": ("2_data/26_text", "### Mistake: marks removed instead of replaced"),
    "count": ("2_data/26_text", "## Counting"),
    "vocabulary, 0 unknown, 1 padding": ("2_data/26_text", "## A number for every word"),
    "fewer words than the vocabulary": ("2_data/26_text", "### Mistake: a vocabulary larger than the language"),
    "left-pad, keep the last 200": ("2_data/26_text", "## Different lengths in one batch"),
    "sentiment model": ("2_data/26_text", "## A bag of words"),
    "aclImdb": ("2_data/26_text", "## The real thing: IMDB"),
    # 02 Model
    "Flatten, Linear, ReLU, Sequential, Softmax": ("02_model", "## What a layer does to a shape"),
    "named_parameters; call the model": ("02_model", "## Modules, parameters, and why you call the model"),
    "NeuralNetwork": ("02_model", "## The fully connected classic"),
    "TinyVGG": ("02_model", "## TinyVGG, at any image size"),
    "Cifar10Net and Net": ("02_model", "## Two more networks"),
    "initialisation": ("02_model", "## Where weights start"),
    "three ways to build": ("02_model", "## Three ways to write the same network"),
    "ModuleList, ModuleDict": ("02_model", "### Mistake: layers in a plain list"),
    "build_model, list_models": ("02_model", "## A model from its name"),
    "summary": ("02_model", "## What is in it? A summary"),
    "feature maps": ("02_model", "## What a filter sees"),
    # 03 Autograd
    "x**2 + y**3": ("03_gradients", "## A first gradient"),
    "grad_fn, leaves, requires_grad_": ("03_gradients", "## Leaves, and who gets a gradient"),
    "engine by hand": ("03_gradients", "## Build the engine yourself"),
    "checked against PyTorch": ("03_gradients", "### PyTorch is the judge"),
    "backward step by step": ("03_gradients", "### The backward pass in slow motion"),
    "draw_graph": ("3_training/30a_graph_drawing", "## See the graph"),
    "the graph is rebuilt": ("03_gradients", "## The graph is rebuilt on every forward pass"),
    "one-layer net with binary_cross_entropy_with_logits": ("03_gradients", "## A network with one layer"),
    "no_grad, inference_mode, detach, freezing": ("03_gradients", "## When not to record"),
    "accumulation and zeroing": ("03_gradients", "## Gradients add up"),
    "retain_graph": ("03_gradients", "## A graph is used once"),
    "vector-Jacobian products, jacrev, vjp": ("03_gradients", "## When the result is not a single number"),
    "double backward": ("03_gradients", "## Gradients of gradients"),
    "gradient checking": ("03_gradients", "## Trust, but check"),
    # 03f The machine
    "the allocator gives memory back": ("3_training/39_performance", "## Freed memory that stays"),
    "channels last": ("3_training/39_performance", "## Channels last"),
    "torch.compile": ("3_training/39_performance", "## A program made for this model"),
    "prefetching to a GPU": ("3_training/39_performance", "## Copies that nobody waits for"),
    # 04 Training
    "loss functions; CrossEntropy = LogSoftmax + NLL": ("04_training", "## The loss: how wrong, as one number"),
    "optimizers": ("04_training", "## The optimizer: one step downhill"),
    "five training steps, three testing steps; script style": ("04_training", "## Five steps to train, three to test"),
    "weighted by samples": ("04_training", "### Mistake: the mean of batch means"),
    "function style": ("04_training", "## Function style"),
    "class style": ("3_training/31_trainer", "## The loop"),
    "loss curves": ("04_training", "## Read the curves"),
    "hyperparameters": ("04_training", "## Hyperparameters"),
    "linear regression from start to end": ("000_workflow", "# Prologue: a first training run"),
    "bugs that raise no error": ("3_training/33_checks", "# Training checks"),
    "data checks": ("3_training/32_data_checks", "# Data checks"),
    "confusion matrix": ("3_training/42_evaluation", "## Count every kind of answer"),
    "confusion matrix as a figure": ("3_training/42_evaluation", "## Look at the matrix"),
    "devices in training": ("04_training", "## Any device"),
    "when a callback is called": ("3_training/40_callbacks", "## When does what happen?"),
    "history as a CSV": ("3_training/40_callbacks", "## A table on disk"),
    "best weights": ("3_training/40_callbacks", "## Monitor one metric"),
    "early stopping": ("3_training/40_callbacks", "### Stop when nothing improves"),
    "gradient accumulation": ("3_training/40_callbacks", "## Larger batches than fit"),
    "gradient clipping": ("3_training/40_callbacks", "## Steps that are never too long"),
    "learning rate schedules": ("3_training/40_callbacks", "## A learning rate that changes"),
    "learning rate finder": ("3_training/41_lr_finder", "## Which learning rate to begin with?"),
    "mixed precision": ("3_training/39_performance", "## Half the bits"),
    "callbacks in mixed precision": ("3_training/40_callbacks", "## Mixed precision, and everybody must know"),
    "TensorBoard": ("3_training/43_tracking", "# Tracking with TensorBoard"),
    "TensorBoard: train and valid in one chart": ("3_training/43_tracking", "## Train and valid in one chart"),
    "TensorBoard: one folder per run": ("3_training/43_tracking", "### Mistake: two runs in one folder"),
    "several processes": ("3_training/44_distributed", "# Distributed training"),
    "how to measure time": ("3_training/45_timing", "## How to fool yourself"),
    "where an epoch's time goes": ("3_training/45_timing", "## Where does an epoch go?"),
    "what a trainer costs": ("3_training/45_timing", "## What the trainer costs"),
    # 05 Save and load
    "state_dict, map_location": ("05_save_load", "## What is there to save?"),
    "state_dict aliases live weights": ("05_save_load", "### Mistake: best weights that keep changing"),
    "a loss module stored on the model": ("05_save_load", "### Mistake: a loss stored on the model"),
    "whole-model pickles": ("05_save_load", "### Mistake: saving the whole model"),
    "self-describing file": ("05_save_load", "## A file that explains itself"),
    "checkpoints of one or several models": ("3_training/37_checkpoint_files", "## Several models in one file"),
    "warm starts": ("3_training/36_transfer_weights", "## Warm starts"),
    "VGG16-style pretrained weights": ("3_training/36_transfer_weights", "## The weights of a giant"),
    "same-seed resume replays epoch 0's order": (
        "3_training/37_checkpoint_files",
        "### Mistake: the order of epoch 0, again",
    ),
    "saving over the only checkpoint": (
        "3_training/37_checkpoint_files",
        "### Mistake: saving over the only checkpoint",
    ),
    # 06 Going modular
    "script without a __main__ guard": ("4_tools/51_scaffold", "### Mistake: a script without a guard"),
    "cell mode against script mode": ("06_going_modular", "## Cells are good for thinking"),
    "how this course is compiled": ("06_going_modular", "## How this course is compiled"),
    "standard files of a project": ("06_going_modular", "## The files of a project"),
    "what a command is": ("06_going_modular", "## A command is a function with a front door"),
    "command: get-data": ("06_going_modular", "## get-data"),
    "command: train": ("06_going_modular", "## train"),
    "command: predict": ("06_going_modular", "## predict"),
    "command: evaluate": ("06_going_modular", "## evaluate"),
    "command: scaffold": ("06_going_modular", "## scaffold"),
    "python -m pytorch_course": ("06_going_modular", "## The front door"),
    # mistakes that belong to these lessons
    "one sigmoid output with CrossEntropyLoss": (
        "03_gradients",
        "### Mistake: one sigmoid output with CrossEntropyLoss",
    ),
    "shuffled test loader misaligns predictions": ("3_training/42_evaluation", "### Mistake: the shuffled test loader"),
    "training transform on validation data": (
        "2_data/27_custom_datasets",
        "### Mistake: training transform on validation data",
    ),
    "unshuffled training on sorted classes": (
        "2_data/27_custom_datasets",
        "### Mistake: unshuffled training on sorted classes",
    ),
    "stacked Linear layers collapse": ("02_model", "### Mistake: linear layers without an activation"),
    "fixed 13*13 head": ("02_model", "### Mistake: the fixed 13 x 13"),
    "RGBA gives 4 channels": ("2_data/27_custom_datasets", "### Mistake: RGBA image gives 4 channels"),
    "missing eval()": ("02_model", "### Mistake: the missing eval()"),
    "lambda transforms cannot be pickled": (
        "2_data/27_custom_datasets",
        "### Mistake: lambda transforms cannot be pickled by spawned workers",
    ),
}

# module.name -> the first parameters, in their order
APIS = {
    "tensors.pick_device": ["prefer"],
    "tensors.seed_everything": ["seed"],
    "tensors.describe": ["tensor"],
    "system.cpu_count": [],
    "image_cache.ImageCache": ["paths", "transform", "root"],
    "image_cache.CachedImageFolder": ["root", "transform", "target_transform"],
    "image_cache.create_cached_dataloaders": ["train_dir", "test_dir", "transform", "batch_size", "num_workers"],
    "augmentation.RandomFlipCrop": ["padding", "p"],
    "data.create_dataloaders": ["train_dir", "test_dir", "transform", "batch_size", "num_workers"],
    "get_data.get_data": ["name", "root"],
    "custom_datasets.CustomImageDataset": ["annotations_file", "img_dir", "transform", "target_transform"],
    "custom_datasets.show_batch": ["dataloader_or_batch", "class_names", "transform"],
    "text.Vocabulary": ["words"],
    "text.TextDataset": ["samples", "targets", "vocabulary", "max_length"],
    "text.PadCollate": ["padding"],
    "model.LinearRegressionModel": [],
    "model.LinearRegressionModelV2": [],
    "model.NeuralNetwork": ["input_shape", "output_shape", "image_size"],
    "model.TinyVGG": ["input_shape", "hidden_units", "output_shape", "image_size"],
    "model.Cifar10Net": ["input_shape", "output_shape", "image_size"],
    "model.Net": [],
    "model.build_model": ["name"],
    "model.list_models": [],
    "model.summary": ["model", "input_shape"],
    "model.count_parameters": ["model"],
    "graph_drawing.draw_graph": ["output", "params"],
    "performance.keep_freed_memory": [],
    "performance.prefers_channels_last": ["model", "device"],
    "performance.MixedPrecision": ["precision"],
    "performance.ChannelsLast": [],
    "performance.Compile": [],
    "training.train_step": ["model", "dataloader", "loss_fn", "optimizer", "device"],
    "training.test_step": ["model", "dataloader", "loss_fn", "device"],
    "training.train": ["model", "train_dataloader", "test_dataloader", "optimizer", "loss_fn", "epochs", "device"],
    "plots.plot_loss_curves": ["results"],
    "plots.plot_regression": ["train_data", "train_labels", "test_data", "test_labels", "predictions"],
    "trainer.Trainer": ["model", "loss_fn", "optimizer", "metrics"],
    "trainer.Trainer.fit": ["self", "epochs", "train_dataloader", "valid_dataloader"],
    "trainer.Trainer.evaluate": ["self", "dataloader"],
    "trainer.Trainer.predict": ["self", "dataloader"],
    "trainer.overfit_one_batch": ["trainer", "dataloader", "steps"],
    "recipes.fit": ["model", "train_dataloader", "valid_dataloader"],
    "save_load.save_model": ["model", "target_dir", "model_name"],
    "save_load.load_model": ["path"],
    "transfer_weights.load_weights": ["model", "weights_or_path", "rename", "strict"],
    "checkpoint_files.save_checkpoint": ["path", "models", "optimizers", "stateful", "extra"],
    "checkpoint_files.load_checkpoint": ["path", "models", "optimizers", "stateful", "training"],
    "checkpoints.Checkpoints": ["folder", "resume"],
    "scaffold.scaffold": ["directory"],
    "tracking.TensorBoard": ["log_dir"],
    "callbacks.EarlyStopping": ["monitor", "patience"],
    "lr_finder.find_learning_rate": ["trainer", "dataloader"],
}


def headings(notebook):
    "The lines of a notebook's prose that may be headings."
    cells = json.loads((NBS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return {line.strip() for text in prose for line in text.splitlines()}


def test_topics_have_their_headings():
    known = {notebook: headings(notebook) for notebook, _ in TOPICS.values()}
    missing = [f"{notebook}: {heading}" for notebook, heading in TOPICS.values() if heading not in known[notebook]]
    assert not missing, "\n".join(missing)


def wrong_api(name, arguments):
    "What is wrong with a function or class, or `None`."
    module, *attributes = name.split(".")
    try:
        found = import_module(f"pytorch_course.{module}")
        for attribute in attributes:
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        return f"{name}: {error}"
    parameters = list(inspect.signature(found).parameters)
    if parameters[: len(arguments)] != arguments: return f"{name}{tuple(parameters)} instead of {tuple(arguments)}"
    return None if inspect.getdoc(found) else f"{name} has no docstring"


def test_apis_have_their_names_and_arguments():
    wrong = [fault for name, arguments in APIS.items() if (fault := wrong_api(name, arguments))]
    assert not wrong, "\n".join(wrong)


def layers(stem, *numbers):
    return [f"{stem}.{number}.{kind}" for number in numbers for kind in ("weight", "bias")]


# Names of the tensors in published weights; arguments of the model, then the keys of its `state_dict`.
KEYS = {
    "LinearRegressionModel": ((), ["weights", "bias"]),
    "LinearRegressionModelV2": ((), ["linear_layer.weight", "linear_layer.bias"]),
    "NeuralNetwork": ((), layers("linear_relu_stack", 0, 2, 4)),
    "TinyVGG": ((3, 10, 3), [*layers("conv_block_1", 0, 2), *layers("conv_block_2", 0, 2), *layers("classifier", 1)]),
    "Cifar10Net": ((), layers("model", 0, 2, 4, 7, 8)),
}


@pytest.mark.parametrize("name", KEYS)
def test_weights_keep_their_names(name):
    arguments, keys = KEYS[name]
    assert list(getattr(import_module("pytorch_course.model"), name)(*arguments).state_dict()) == keys
