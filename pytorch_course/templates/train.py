"""Train an image classifier; all of it goes into a new folder: runs/tinyvgg, runs/tinyvgg-2, ...

From lesson 06, Going modular (nbs/06_going_modular.ipynb of pytorch_course), and nbs/4_tools/50_runs.ipynb.
"""
import argparse
import json
import math
import shlex
import sys
from pathlib import Path

import torch
from torch.optim import lr_scheduler

import data_setup
import engine
import model_builder
import utils

HERE = Path(__file__).resolve().parent
CHANGEABLE = {"num_epochs", "num_workers", "device", "train_dir", "test_dir", "resume"}  # when a run is resumed


def read_arguments() -> argparse.Namespace:
    "The settings from the command line; with --resume those of that run, and what was given besides."
    parser = argparse.ArgumentParser(description="Train an image classifier.", allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--train_dir", type=Path, default=HERE / "data" / "train", help="folder of class folders to train on")
    add("--test_dir", type=Path, default=HERE / "data" / "test", help="folder of class folders to test on")
    add("--model", choices=model_builder.MODELS, default="tinyvgg", help="which network")
    add("--hidden_units", type=utils.whole_number, default=10, help="channels of TinyVGG's convolutions")
    add("--image_size", type=utils.whole_number, default=64, help="height and width in pixels")
    add("--augment", action="store_true", help="flip and shift the training images at random")
    add("--num_epochs", "--epochs", type=utils.whole_number, default=5, help="passes over the training images")
    add("--batch_size", type=utils.whole_number, default=32, help="images per step")
    add("--learning_rate", "--lr", type=float, default=0.001, help="step size of Adam, or the largest of its schedule")
    add("--schedule", choices=["none", "cosine", "onecycle"], default="none", help="how the learning rate changes")
    add("--seed", type=int, default=42, help="same seed, same run")
    add("--num_workers", type=int, default=0, help="processes that read images; 0: this one")
    add("--device", default="auto", help="cpu, cuda, mps ...; auto takes the best one")
    add("--resume", type=Path, metavar="RUN", help="go on with a run that was stopped, for example runs/tinyvgg")
    parser.set_defaults(class_names=None)
    args = parser.parse_args()
    if args.resume is None: return args
    if not (args.resume / "config.json").exists():
        parser.error(f"--resume needs the folder of a run; there is no {args.resume / 'config.json'}")
    saved = json.loads((args.resume / "config.json").read_text(encoding="utf-8"))
    parser.set_defaults(**saved)
    args = parser.parse_args()
    for name in sorted(set(saved) - CHANGEABLE | ({"num_epochs"} if args.schedule != "none" else set())):
        if getattr(args, name) != saved[name]:
            parser.error(f"--resume keeps the settings of the run; leave out --{name}")
    return args


def as_json(args: argparse.Namespace, class_names: list[str]) -> str:
    "The settings of a run, folders as absolute paths."
    config = {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in vars(args).items()}
    return json.dumps({**config, "resume": None, "class_names": class_names}, indent=2)


def make_scheduler(kind: str, optimizer, steps: int):
    "What sets the learning rate after every step."
    if kind == "cosine": return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if kind == "onecycle":
        return lr_scheduler.OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps)
    return lr_scheduler.ConstantLR(optimizer, factor=1)


def main():
    args = read_arguments()
    if not args.train_dir.exists() and args.train_dir == HERE / "data" / "train":
        raise FileNotFoundError(f"no folder {args.train_dir}; run get_data.py first, or give --train_dir, --test_dir")
    device = utils.pick_device(args.device)
    utils.seed_everything(args.seed)
    prepare = {"image_size": args.image_size, "channels": 3, "mean": [0.5], "std": [0.5]}
    train_dataloader, test_dataloader, class_names = data_setup.create_dataloaders(
        args.train_dir, args.test_dir, data_setup.make_transform(**prepare, augment=args.augment), args.batch_size,
        args.num_workers, test_transform=data_setup.make_transform(**prepare))
    if args.class_names not in (None, class_names):
        raise ValueError(f"the classes of the run are {args.class_names}, but these images have {class_names}")
    shared = data_setup.check_images(train_dataloader.dataset, test_dataloader.dataset)
    kwargs = model_builder.choose_arguments(args.model, 3, len(class_names), args.hidden_units, args.image_size)
    model = model_builder.MODELS[args.model](**kwargs).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    scheduler = make_scheduler(args.schedule, optimizer, args.num_epochs * len(train_dataloader))
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    run = args.resume or utils.new_run(HERE / "runs", args.model)
    is_begun = (run / "checkpoint.pt").exists()
    results = utils.load_checkpoint(run / "checkpoint.pt", parts)["results"] if is_begun else None
    utils.write_file(run / "config.json", lambda file: file.write(as_json(args, class_names).encode()))
    counts = f"{len(train_dataloader.dataset)} training and {len(test_dataloader.dataset)} test images"
    print(f"{run}: {counts} ({shared} in both) of {len(class_names)} classes, on {device}")

    def save(results):
        if results["test_loss"][-1] == min(results["test_loss"]):  # the best epoch so far
            info = {"architecture": args.model, "model_kwargs": kwargs, "class_names": class_names,
                    "transform": prepare, "metrics": {name: numbers[-1] for name, numbers in results.items()}}
            utils.save_model(model, run, "model.pt", info)
        utils.write_history(run / "history.csv", results)
        utils.save_checkpoint(run / "checkpoint.pt", parts, results=results)

    try:
        results = engine.train(
            model, train_dataloader, test_dataloader, optimizer, torch.nn.CrossEntropyLoss(), args.num_epochs, device,
            scheduler=scheduler, seed=args.seed, results=results, callbacks=[save])
    except KeyboardInterrupt:
        command = shlex.join(["python", sys.argv[0], "--resume", str(run)])
        argparse.ArgumentParser().exit(130, f"\ninterrupted; go on with: {command}\n")
    if (lowest := min(results["test_loss"])) > 2 * math.log(len(class_names)):  # guessing has half of it
        (run / "model.pt").unlink()
        raise ValueError(f"the run diverged, its lowest test loss is {lowest:.3g}; use a lower --lr")
    best = results["test_loss"].index(lowest)
    print(f"saved {run / 'model.pt'}: epoch {best + 1}, test accuracy {results['test_acc'][best]:.1%}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:  # of a worker, the last line is what matters
        argparse.ArgumentParser().exit(2, f"train.py: error: {str(error).strip().splitlines()[-1]}\n")
