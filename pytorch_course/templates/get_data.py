"""Put a small data set into data/train and data/test beside this script; what is there already stays.

Draws circles, squares and triangles, in a second and without a network. The idea is that of
nbs/2_data/23_food_shapes.ipynb of pytorch_course; `pytorch-course scaffold --with_food_shapes` adds its pizzas.
"""
import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw

DATA = Path(__file__).resolve().parent / "data"
CORNERS = {"circle": 40, "square": 4, "triangle": 3}


def draw_shape(kind: str, rng: np.random.Generator, size: int = 64) -> Image.Image:
    "One shape with a random color, size, place and angle, on noise."
    image = Image.fromarray(rng.integers(0, 60, (size, size, 3), dtype=np.uint8))
    angles = rng.uniform(0, 0.5) + np.arange(CORNERS[kind]) * 2 * np.pi / CORNERS[kind]
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * size * rng.uniform(0.25, 0.35)
    corners += size * rng.uniform(0.35, 0.65, 2)
    color = tuple(rng.integers(120, 256, 3).tolist())
    ImageDraw.Draw(image).polygon(corners.ravel().tolist(), fill=color)
    return image


def write_shapes(folder: Path, seed: int = 42) -> Path:
    "200 training and 50 test images of each kind, in class folders."
    rng = np.random.default_rng(seed)
    for split, count in (("train", 200), ("test", 50)):
        for kind in CORNERS:
            (folder / split / kind).mkdir(parents=True)
            for number in range(count):
                draw_shape(kind, rng).save(folder / split / kind / f"{number:04d}.jpg")
    return folder


def main():
    try:
        from food_shapes import write_food_shapes as write_images  # only there when you asked for it
    except ModuleNotFoundError:
        write_images = write_shapes
    if not DATA.exists():
        with TemporaryDirectory(prefix=".", dir=DATA.parent) as temporary:
            write_images(Path(temporary) / "new").rename(DATA)  # complete, or not there
    counts = [len(list((DATA / split).glob("*/*"))) for split in ("train", "test")]
    if not all(counts):
        argparse.ArgumentParser().exit(2, f"get_data.py: error: {DATA} lacks train or test images; move it away\n")
    print(f"{DATA}: {counts[0]} training and {counts[1]} test images")


if __name__ == "__main__":
    main()
