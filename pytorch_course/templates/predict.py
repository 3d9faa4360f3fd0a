"""Print the most probable classes of images, also of all images in a folder.

From lesson 06, Going modular (nbs/06_going_modular.ipynb of pytorch_course); model files are lesson 05, Save and load.
"""
import argparse
import sys
from pathlib import Path

import torch

import data_setup
import utils

RUNS = Path(__file__).resolve().parent / "runs"


def newest_model() -> Path:
    "The model that was trained last."
    files = sorted(RUNS.glob("*/model.pt"), key=lambda path: path.stat().st_mtime)
    if not files: raise FileNotFoundError(f"no model in {RUNS}; run train.py first, or give --model_file")
    return files[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the most probable classes of images.")
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="image files of any size and kind, or folders of them")
    add("--model_file", type=Path, help="or run folder, made by train.py (default: the newest run)")
    add("--topk", type=utils.whole_number, default=1, help="show the K most probable classes (default: 1)")
    add("--device", default="cpu", help="cpu, cuda, mps ... (default: cpu, the fastest for a few images)")
    args = parser.parse_args()
    device = utils.pick_device(args.device)
    model, info = utils.load_model(args.model_file or newest_model(), device)
    transform = data_setup.make_transform(**info["transform"])
    status = 0
    for path in (image for place in args.images for image in data_setup.find_images(place)):
        try:
            X = transform(data_setup.open_image(path))[None].to(device)
        except ValueError as error:  # the other images are classified all the same
            print(f"predict.py: error: {error}", file=sys.stderr)
            status = 1
            continue
        with torch.inference_mode():
            probabilities = model(X).softmax(dim=1)[0]
        best = zip(*probabilities.topk(min(args.topk, len(probabilities))))
        print(path, *(f"{info['class_names'][index]} {share:.1%}" for share, index in best), sep="  ")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        argparse.ArgumentParser().exit(2, f"predict.py: error: {error}\n")
