"""Draw the data set food_shapes into data/food_shapes beside this script; what is there already stays.

Example: python get_data.py
"""
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from food_shapes import write_food_shapes

HERE = Path(__file__).resolve().parent


def get_data(folder: Path) -> Path:
    "Draw the images elsewhere and move them here when all are done, so that a folder is complete or not there."
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
        return write_food_shapes(Path(temporary) / folder.name).rename(folder)


def main():
    folder = get_data(HERE / "data" / "food_shapes")
    counts = {split: len(list((folder / split).glob("*/*"))) for split in ("train", "test")}
    print(f"{folder}: {counts['train']} training and {counts['test']} test images")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"get_data.py: error: {error}")
