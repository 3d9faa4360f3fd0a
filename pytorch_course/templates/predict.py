"""Print the most probable classes of images.

Example: python predict.py some_image.jpeg
"""
import argparse
import sys
from pathlib import Path

import utils

MODELS = Path(__file__).resolve().parent / "models"


def newest_model() -> Path:
    "The model that was trained last."
    files = sorted(MODELS.glob("*.pth"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"no model in {MODELS}; run train.py first, or give --model_file")
    return files[-1]


def read_arguments() -> argparse.Namespace:
    "What to classify, and with which model, from the command line."
    parser = argparse.ArgumentParser(description="Print the most probable classes of images.")
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files of any size and kind")
    add("--model_file", type=Path, help="file saved by train.py (default: the newest one in models/)")
    add("--topk", type=int, default=1, help="show the K most probable classes (default: 1)")
    add("--device", default="cpu", help="cpu, cuda, mps ... (default: cpu, the fastest for a few images)")
    return parser.parse_args()


def main():
    args = read_arguments()
    model, info = utils.load_model(args.model_file or newest_model(), utils.pick_device(args.device))
    for result in utils.predict_images(model, info, args.images, args.topk):
        best = (f"{found['class']} {found['probability']:.1%}" for found in result["predictions"])
        print(result["path"], *best, sep="  ")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"predict.py: error: {error}")
