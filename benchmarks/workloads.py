"""What is trained: four small networks on folders of images (W1-W4), a step that costs next to nothing, the images."""

import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = {"train": "train"} | dict.fromkeys(("test", "val", "valid", "validation"), "test")  # folder -> what it is for


@dataclass(frozen=True)
class ImageSet:
    "A folder `<split>/<class>/<image>` that is made from a seed, or taken from a real one."
    size: tuple[int, int]  # width and height in pixels of a image that is made
    mode: str  # Pillow's: "L" for gray, "RGB" for color
    suffix: str  # ".png" or ".jpg"
    classes: int  # of the images that are made
    train: int  # images to train on
    test: int  # images to test on


IMAGES = {
    "mnist": ImageSet((28, 28), "L", ".png", 10, 20_000, 3_333),
    "cifar": ImageSet((32, 32), "RGB", ".jpg", 10, 6_000, 1_200),
    "photos": ImageSet((500, 375), "RGB", ".jpg", 2, 244, 153),
}


@dataclass(frozen=True)
class Workload:
    "A network, its data and the size of its batches."
    title: str  # a line for the table
    images: str | None  # key of `IMAGES`; `None`: batches of random numbers
    model: str  # name for `pytorch_course.model.build_model`, or "Linear"
    arguments: dict  # of the model
    image_size: int  # height and width of the network's input
    channels: int  # 1 or 3
    batch_size: int
    optimizer: str  # class in `torch.optim`
    lr: float
    threads: int | None = None  # `None`: as the command says


# A step of `overhead` is too small to share; with two threads, another busy process would cost milliseconds a barrier.
WORKLOADS = {
    "W1": Workload("MLP 784-512-512-10, gray 28x28", "mnist", "NeuralNetwork", {}, 28, 1, 64, "SGD", 1e-2),
    "W2": Workload(
        "TinyVGG-10, CIFAR JPEGs at 64x64", "cifar", "TinyVGG", {"hidden_units": 10}, 64, 3, 32, "Adam", 1e-3
    ),
    "W3": Workload("Cifar10Net, CIFAR JPEGs at 32x32", "cifar", "Cifar10Net", {}, 32, 3, 64, "SGD", 1e-2),
    "W4": Workload(
        "TinyVGG-10, large photos at 64x64", "photos", "TinyVGG", {"hidden_units": 10}, 64, 3, 32, "Adam", 1e-3
    ),
    "overhead": Workload(
        "engine alone: linear layer 8-2, resident batches", None, "Linear", {}, 8, 1, 8, "SGD", 1e-2, threads=1
    ),
}


# ---------------------------------------------------------------- images

def make_images(
    folder: Path,  # `train/` and `test/` are made inside
    images: ImageSet,  # how many, and of what kind
    seed: int,  # the pixels follow from it
):
    "Write images of blurred blobs, one pattern per class, with noise: a network can learn them, files have real sizes."
    import numpy as np  # here: the process that keeps the time stays small

    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 256, (images.classes, 6, 6, len(images.mode)), dtype=np.uint8)
    for split, number in (("train", images.train), ("test", images.test)):
        for i in range(number):
            path = folder/split/f"class_{i % images.classes}"/f"{i:05d}{images.suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            _draw(patterns[i % images.classes], images, rng).save(path)


def _draw(pattern, images: ImageSet, rng):
    "One image: the pattern of its class, blown up, and noise."
    import numpy as np
    from PIL import Image

    smooth = Image.fromarray(pattern.squeeze(), images.mode if images.mode == "RGB" else None).resize(
        images.size, Image.Resampling.BICUBIC
    )
    pixels = np.asarray(smooth, dtype=np.float32)
    noise = 40 * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def take_images(
    source: Path,  # a folder or a zip file with `train/<class>/...` and `test/<class>/...` (or `val`) at any depth
    folder: Path,  # copies go here
    images: ImageSet,  # how many to take, in equal parts from every class
):
    "Copy a part of a real data set, the first images of every class by name. Raises `ValueError` when there are none."
    groups = defaultdict(list)  # (split, class) -> names
    for name in sorted(_names(source)):
        parts = PurePosixPath(name).parts
        if len(parts) > 2 and parts[-3] in SPLITS and name.lower().endswith(SUFFIXES):
            groups[SPLITS[parts[-3]], parts[-2]].append(name)
    if not groups:
        raise ValueError(f"no images in {source}; expected train/<class>/<image> and test/<class>/<image>")
    chosen = {}
    for (split, label), names in groups.items():
        share = -(-getattr(images, split) // sum(other == split for other, _ in groups))  # rounded up
        chosen |= {name: folder/split/label/PurePosixPath(name).name for name in names[:share]}
    _copy(source, chosen)


def _names(source: Path) -> Iterator[str]:
    "Files in a folder or a zip file, hidden ones left out."
    if source.is_dir():
        names = (path.relative_to(source).as_posix() for path in source.rglob("*"))
    else:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    return (name for name in names if not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts))


def _copy(source: Path, chosen: dict[str, Path]):
    "From a folder or a zip file, name by name."
    archive = None if source.is_dir() else zipfile.ZipFile(source)
    for name, path in chosen.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if archive:
            path.write_bytes(archive.read(name))
        else:
            shutil.copyfile(source/name, path)
    if archive:
        archive.close()


def prepare_images(
    folder: Path,  # where all data sets are kept
    name: str,  # key of `IMAGES`
    source: Path | None,  # real images; `None`: make some
    images: ImageSet,  # how many
    seed: int,
) -> Path:  # a folder with `train/` and `test/`
    "Make or copy images unless an earlier call has done so with the same numbers."
    origin = source.stem if source else f"seed{seed}"
    target = folder/f"{name}-{origin}-{images.train}-{images.test}"
    if target.is_dir(): return target
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    if source:
        take_images(source, partial, images)
    else:
        make_images(partial, images, seed)
    return partial.rename(target)


# ---------------------------------------------------------------- what every contender receives

@dataclass(frozen=True)
class Job:
    "Everything that a contender's process needs to know; travels as JSON."
    workload: str  # key of `WORKLOADS`
    folder: str | None  # with `train/` and `test/`; `None`: random batches
    options: dict  # of the contender
    threads: int  # for `torch.set_num_threads`
    num_workers: int  # processes of the standard dataloader
    steps: int  # batches of an epoch, for random batches only
    device: str
    seed: int

    @property
    def work(self) -> Workload:
        return WORKLOADS[self.workload]


def num_classes(job: Job) -> int:
    "As many as there are folders, or two."
    return len([path for path in Path(job.folder, "train").iterdir() if path.is_dir()]) if job.folder else 2


def make_model(job: Job):
    "The network, the loss and the optimizer, with the same first weights for everybody."
    import torch

    torch.manual_seed(job.seed)
    if job.work.model == "Linear":
        model = torch.nn.Linear(job.work.image_size, num_classes(job))
    else:
        from pytorch_course.model import build_model
        shape = {"input_shape": job.work.channels, "output_shape": num_classes(job), "image_size": job.work.image_size}
        model = build_model(job.work.model, **shape, **job.work.arguments)
    model.to(job.device)
    optimizer = getattr(torch.optim, job.work.optimizer)(model.parameters(), lr=job.work.lr)
    return model, torch.nn.CrossEntropyLoss(), optimizer


class Batches:
    "Batches in memory. Not a plain list, which Lightning takes for several dataloaders."
    def __init__(self, batches: list):
        self.batches = batches
    def __len__(self) -> int:
        return len(self.batches)
    def __iter__(self) -> Iterator[tuple]:
        return iter(self.batches)
    def __getitem__(self, i: int) -> tuple:
        return self.batches[i]


def random_batches(job: Job) -> list[Batches]:
    "`job.steps` batches to train on and one to test on."
    import torch

    torch.manual_seed(job.seed)
    shape = (job.steps + 1, job.work.batch_size)
    X, y = torch.randn(*shape, job.work.image_size, device=job.device), torch.randint(0, 2, shape, device=job.device)
    batches = list(zip(X, y))
    return [Batches(batches[:-1]), Batches(batches[-1:])]


def make_datasets(job: Job) -> list:
    "The standard recipe: `ImageFolder`, `Resize` and `ToTensor`, sample by sample, for training and for testing."
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Grayscale, Resize, ToTensor

    steps = [Resize((job.work.image_size, job.work.image_size)), ToTensor()]
    if job.work.channels == 1:
        steps.insert(0, Grayscale())
    return [ImageFolder(f"{job.folder}/{split}", Compose(steps)) for split in ("train", "test")]


def make_loaders(
    job: Job,
    datasets: list | None = None,  # for training and for testing; `None`: those of `make_datasets`
    **options,  # further arguments for `DataLoader`
) -> list:  # two `DataLoader`s, or two `Batches` where the workload has no images
    "The standard recipe's loaders. The order of every epoch follows from the seed, so all see the same batches."
    import torch
    from torch.utils.data import DataLoader

    if job.folder is None: return random_batches(job)
    options = {"batch_size": job.work.batch_size, "num_workers": job.num_workers} | options
    train_dataset, test_dataset = datasets or make_datasets(job)
    generator = torch.Generator().manual_seed(job.seed)
    return [
        DataLoader(train_dataset, shuffle=True, generator=generator, **options),
        DataLoader(test_dataset, **options),
    ]
