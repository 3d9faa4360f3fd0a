"""Folders of images in, shuffled batches out.

From lesson 01, Data (nbs/01_data.ipynb of pytorch_course), nbs/1_basics/13_images.ipynb (`open_image`) and
nbs/2_data/29_augmentation.ipynb (the idea of `augment`); shorter, with the transforms of torchvision.
"""
import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def open_image(path: str | Path) -> Image.Image:
    "An image file as upright RGB. Raises `ValueError` that names a file that cannot be read."
    try:
        with Image.open(path) as image:
            if image.mode in ("I", "F"):
                raise ValueError(f"pixels of mode {image.mode} have no fixed range; convert it to 8 bits first")
            if image.mode.startswith("I;16"):  # 16 bits of gray
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def find_images(path: Path) -> list[Path]:
    "All images in a folder, at any depth, sorted, without hidden ones; a file as it is."
    if not path.is_dir(): return [path]
    files = [file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS]
    images = sorted(file for file in files if not any(part[0] == "." for part in file.relative_to(path).parts))
    if not images: raise ValueError(f"no images in {path}; add some, or remove the folder")
    return images


def make_transform(image_size: int, channels: int = 3, mean=(0.5,), std=(0.5,), augment: bool = False):
    "Image to float tensor `(channels, image_size, image_size)` around 0; with `augment` flipped and shifted at random."
    steps = [v2.Grayscale()] if channels == 1 else []
    steps += [v2.Resize((image_size, image_size))]
    if augment:  # only for training; add your own here, for example v2.ColorJitter(0.2, 0.2)
        steps += [v2.RandomHorizontalFlip(), v2.RandomCrop(image_size, padding=max(1, image_size // 16))]
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose(steps)


class ImageFolder(Dataset):
    "Images in class folders, `root/<class>/**/<image>`, as samples `(image, class index)`."
    def __init__(self, root: str | Path, transform):
        self.root, self.transform = Path(root), transform
        if not self.root.is_dir(): raise FileNotFoundError(f"no folder {root}")
        self.classes = sorted(path.name for path in self.root.iterdir() if path.is_dir() and path.name[0] != ".")
        self.samples = [(path, k) for k, name in enumerate(self.classes) for path in find_images(self.root / name)]
        if not self.samples: raise ValueError(f"no class folders in {root}; expected {root}/<class>/<image>")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        path, target = self.samples[index]
        return self.transform(open_image(path)), target


def check_images(train_dataset: ImageFolder, test_dataset: ImageFolder) -> int:
    "Open each image once. Raises `ValueError` for those that cannot be read; returns how many are in both data sets."
    errors, hashes = [], []
    for path, _ in train_dataset.samples + test_dataset.samples:
        try:
            open_image(path)
        except ValueError as error:
            errors.append(str(error))
        hashes.append(hashlib.sha256(path.read_bytes()).digest())
    if errors: raise ValueError(f"{len(errors)} damaged images; replace or remove them: {'; '.join(errors[:10])}")
    known = set(hashes[:len(train_dataset)])
    return sum(content in known for content in hashes[len(train_dataset):])


def create_dataloaders(train_dir, test_dir, transform, batch_size: int, num_workers: int = 0, test_transform=None):
    "Training batches, test batches `X (N, C, H, W)`, `y (N,)`, and the class names."
    train_dataset = ImageFolder(train_dir, transform)
    test_dataset = ImageFolder(test_dir, test_transform or transform)
    if different := sorted(set(train_dataset.classes) ^ set(test_dataset.classes)):
        raise ValueError(f"classes {different} are in only one of {train_dir} and {test_dir}; make them equal")
    options = dict(batch_size=batch_size, num_workers=num_workers, pin_memory=torch.cuda.is_available(),
                   generator=torch.Generator().manual_seed(torch.initial_seed()))  # of the workers, not of the order
    if num_workers:  # they stay from epoch to epoch, are no copies of a process with threads, cannot hang for ever
        options |= dict(persistent_workers=True, multiprocessing_context="spawn", timeout=120)
    train_dataloader = DataLoader(train_dataset, sampler=RandomSampler(train_dataset), **options)
    return train_dataloader, DataLoader(test_dataset, **options), train_dataset.classes
