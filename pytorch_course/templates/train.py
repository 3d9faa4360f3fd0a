"""Train an image classifier and save it as models/<model>.pth beside this script.

Example: python train.py --model tinyvgg --batch_size 32 --lr 0.001 --num_epochs 10
"""
import argparse
import csv
import inspect
import itertools
import sys
from pathlib import Path

import torch

import data_setup
import engine
import model_builder
import utils
from images import ImageTransform

HERE = Path(__file__).resolve().parent
DATA = HERE / "data" / "food_shapes"
MODELS = HERE / "models"


def whole_number(text: str) -> int:
    "Convert a flag: 1 or more."
    if int(text) < 1:
        raise ValueError
    return int(text)


def read_arguments() -> argparse.Namespace:
    "The settings of this run, from the command line."
    parser = argparse.ArgumentParser(
        description="Train an image classifier.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--train_dir", type=Path, default=DATA / "train", help="folder of class folders to train on")
    add("--test_dir", type=Path, default=DATA / "test", help="folder of class folders to test on")
    add("--learning_rate", "--lr", type=float, default=0.001, help="step size of Adam")
    add("--batch_size", type=whole_number, default=32, help="images per step")
    add("--num_epochs", "--epochs", type=whole_number, default=5, help="passes over the training images")
    add("--hidden_units", type=whole_number, default=10, help="channels of TinyVGG's convolutions")
    add("--model", choices=model_builder.list_models(), default="tinyvgg", help="which network")
    add("--image_size", type=whole_number, default=64, help="height and width in pixels")
    add("--num_workers", type=int, default=0, help="processes that read images; 0: this one")
    add("--seed", type=int, default=42, help="same seed, same run")
    add("--device", default="auto", help="cpu, cuda, mps ...; auto takes the best one")
    return parser.parse_args()


def build_model(name: str, available: dict) -> tuple[torch.nn.Module, dict]:
    "The model, and those of the available arguments that it takes."
    parameters = inspect.signature(model_builder.get_model_class(name)).parameters
    kwargs = {key: value for key, value in available.items() if key in parameters}
    return model_builder.build_model(name, **kwargs), kwargs


def new_name(name: str) -> str:
    "`tinyvgg.pth`, or `tinyvgg-2.pth` ... when older models have those names: they stay."
    names = itertools.chain([f"{name}.pth"], (f"{name}-{number}.pth" for number in itertools.count(2)))
    return next(candidate for candidate in names if not (MODELS / candidate).exists())


def write_history(path: Path, results: dict[str, list[float]]):
    "Loss and accuracy of every epoch as a table."
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", *results])
        writer.writerows([epoch, *row] for epoch, row in enumerate(zip(*results.values()), start=1))


def main():
    args = read_arguments()
    if args.train_dir == DATA / "train" and not args.train_dir.is_dir():
        raise FileNotFoundError(f"no images in {DATA}; run get_data.py first, or give --train_dir and --test_dir")
    device = utils.pick_device(args.device)
    utils.seed_everything(args.seed)

    transform = ImageTransform(image_size=args.image_size)
    train_dataloader, test_dataloader, class_names = data_setup.create_dataloaders(
        train_dir=args.train_dir,
        test_dir=args.test_dir,
        transform=transform,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        seed=args.seed,
    )
    available = {
        "input_shape": transform.channels,
        "hidden_units": args.hidden_units,
        "output_shape": len(class_names),
        "image_size": args.image_size,
    }
    model, kwargs = build_model(args.model, available)
    model.to(device)

    results = engine.train(
        model=model,
        train_dataloader=train_dataloader,
        test_dataloader=test_dataloader,
        loss_fn=torch.nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=args.learning_rate),
        epochs=args.num_epochs,
        device=device,
    )

    metrics = {name: numbers[-1] for name, numbers in results.items()}
    info = utils.ModelInfo(args.model, kwargs, class_names, transform, metrics)
    path = utils.save_model(model=model, target_dir=MODELS, model_name=new_name(args.model), info=info)
    write_history(path.with_suffix(".csv"), results)
    print(f"saved {path}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: error: {error}")
