"""Flags of `pytorch-course train` that say how to train, and what the command says of its result."""
import csv
import json
import signal
from functools import partial

import pytest
import torch
from PIL import Image
from torch.optim import lr_scheduler

from pytorch_course import going_modular
from pytorch_course.callbacks import StepLogger
from pytorch_course.going_modular import main
from pytorch_course.save_load import load_model
from pytorch_course.trainer import Trainer

EPOCHS, STEPS = 4, 5  # steps in an epoch, of 4 images


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    "`train` in this process, in a folder with 20 training and 12 test images; `(status, out, err)`."
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for split, size in (("train", 10), ("test", 6)):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(size):
                pixels = torch.randint(60 * number, 196 + 60 * number, (16, 16), generator=generator).byte()
                Image.fromarray(pixels.numpy()).save(tmp_path / "pets" / split / name / f"{i}.png")

    def run(*words):
        if "--resume" not in words:
            words = ["--data", "pets", "--image_size", 16, "--batch_size", 4, *words]
        try:
            status = main(["train", *map(str, words)])
        except SystemExit as exit:
            status = exit.code
        return status, *capfd.readouterr()

    return run


def weights(folder):
    return {name: value.tolist() for name, value in load_model(folder)[0].state_dict().items()}


def rows(path):
    return list(csv.DictReader(path.open()))


def settings(folder):
    return json.loads((folder / "config.json").read_text())


def spy(monkeypatch):
    "The trainers that the command makes."
    made = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self, *a, **k: [made.append(self), fit(self, *a, **k)][1])
    return made


@pytest.mark.parametrize("name, kind, momentum", [("sgd", "SGD", 0.9), ("adam", "Adam", None),
                                                  ("adamw", "AdamW", None)])
def test_optimizer(train, tmp_path, monkeypatch, name, kind, momentum):
    made = spy(monkeypatch)
    status, out, err = train("--optimizer", name, "--lr", 0.02, "--epochs", 1, "--out", "run")
    assert (status, err) == (0, "") and f"{name} with learning rate 0.02\n" in out
    assert type(made[0].optimizer).__name__ == kind and settings(tmp_path / "run")["optimizer"] == name
    assert made[0].optimizer.param_groups[0].get("momentum") == momentum
    assert made[0].optimizer.param_groups[0]["lr"] == 0.02


def test_schedules(train, tmp_path):
    steps = STEPS * 2
    for name in ("none", "cosine", "onecycle"):
        status, out, err = train("--schedule", name, "--lr", 0.01, "--epochs", 2, "--log_every", 1, "--out", name)
        assert (status, err) == (0, "") and (f", schedule {name}" in out) is (name != "none")
    rates = {name: [float(row["learning_rate"]) for row in rows(tmp_path / name / "steps.csv")]
             for name in ("none", "cosine", "onecycle")}
    assert rates["none"] == [0.01] * steps
    assert sorted(rates["cosine"], reverse=True) == rates["cosine"] and rates["cosine"][-1] < 1e-5
    assert 0.0095 < rates["cosine"][0] <= 0.01
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    cycle = lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps, cycle_momentum=False)
    for rate in rates["onecycle"]:
        assert rate == optimizer.param_groups[0]["lr"]
        optimizer.step()
        cycle.step()


def test_augment(train, tmp_path, monkeypatch):
    made = spy(monkeypatch)
    for out, flags in (("plain", []), ("augmented", ["--augment"]), ("again", ["--augment"]),
                       ("workers", ["--augment", "--num_workers", 1, "--no_cache"])):
        status, printed, err = train("--epochs", 2, "--out", out, *flags)
        assert (status, err) == (0, "") and ("augmented" in printed) is bool(flags)
    datasets = [(trainer.train_dataloader.dataset, trainer.valid_dataloader.dataset) for trainer in made]
    assert [train.augment is not None for train, _ in datasets] == [False, True, True, True]
    assert datasets[1][0].augment.padding == 2 and datasets[1][1].augment is None  # never the test images
    assert weights(tmp_path / "plain") != weights(tmp_path / "augmented")
    assert weights(tmp_path / "augmented") == weights(tmp_path / "again") == weights(tmp_path / "workers")


def test_patience_keeps_the_best_weights(train, tmp_path):
    status, out, err = train("--patience", 2, "--epochs", 40, "--lr", 0.02, "--out", "run")
    assert (status, err) == (0, "") and "stopped: valid_loss has not improved for 2 epochs" in out
    history = rows(tmp_path / "run" / "history.csv")
    losses = [float(row["valid_loss"]) for row in history]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 and f"model.pt (of epoch {best + 1})" in out
    network, info = load_model(tmp_path / "run")
    assert info.metrics == {name: float(value) for name, value in history[best].items() if name != "epoch"}
    assert f"test accuracy {info.metrics['valid_acc']:.1%} on 12 images (used to choose the epoch; --valid_share" in out
    train("--epochs", best + 1, "--lr", 0.02, "--out", "short")  # the run that would have ended there
    assert weights(tmp_path / "run") == weights(tmp_path / "short")
    before = (tmp_path / "run" / "model.pt").read_bytes()
    status, out, _ = train("--resume", "run")
    assert status == 0 and "nothing to do" in out and (tmp_path / "run" / "model.pt").read_bytes() == before


ALL = ["--epochs", EPOCHS, "--optimizer", "sgd", "--lr", 0.02, "--schedule", "cosine", "--augment", "--patience", 3,
       "--log_every", 3]


def stop_at(monkeypatch, step, action):
    "Let something happen in the middle of a run, when its row has been written."
    log = StepLogger.after_batch

    def after_batch(self, trainer):
        log(self, trainer)
        if trainer.steps == step:
            action()

    monkeypatch.setattr(StepLogger, "after_batch", after_batch)


def crash():
    raise MemoryError


@pytest.mark.parametrize("how, step", [("ctrl-c", 2), ("ctrl-c", 10), ("ctrl-c", 13), ("crash", 9), ("crash", 20)])
def test_resume_is_exact_with_all_flags(train, tmp_path, monkeypatch, how, step):
    "Order, augmentation, schedule, patience and the rows of steps.csv, stopped between and within epochs."
    assert train(*ALL, "--out", "whole")[0] == 0
    stopped = partial(signal.raise_signal, signal.SIGINT) if how == "ctrl-c" else crash
    with monkeypatch.context() as patch:
        stop_at(patch, step, stopped)
        status, _, _ = train(*ALL, "--out", "parts")
    assert status == (130 if how == "ctrl-c" else 2)
    if how == "crash":  # rows that are not in the checkpoint, and half a row
        with (tmp_path / "parts" / "steps.csv").open("a") as file:
            file.write("18,4,0.5,0.1\n21,5,0.")
    status, out, err = train("--resume", "parts")
    assert (status, err) == (0, "") and "resumed from step-" in out
    for name in ("steps.csv", "history.csv"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    steps = [int(row["step"]) for row in rows(tmp_path / "parts" / "steps.csv")]
    assert steps == list(range(3, EPOCHS * STEPS + 1, 3))
    found = settings(tmp_path / "parts")
    assert {name: found[name] for name in ("optimizer", "schedule", "augment", "patience", "log_every")} == {
        "optimizer": "sgd", "schedule": "cosine", "augment": True, "patience": 3, "log_every": 3}
    status, _, err = train("--resume", "parts", "--schedule", "none")
    assert status == 2 and "leave out --schedule" in err


def test_a_crash_before_the_first_checkpoint_leaves_nothing(train, tmp_path, monkeypatch):
    stop_at(monkeypatch, 4, crash)
    assert train(*ALL)[0] == 2 and not (tmp_path / "runs").exists()


def test_a_longer_run_needs_the_same_schedule(train):
    train("--schedule", "onecycle", "--epochs", 1, "--out", "run")
    status, _, err = train("--resume", "run", "--epochs", 2)
    assert status == 2 and err.count("\n") == 1 and "a cycle of 5 steps, not 10; resume with the same epochs" in err


# --- what is said of the result ---


def said(out):
    return next(line for line in out.splitlines() if line.startswith("test accuracy"))


def test_test_images_that_were_trained_on_are_counted(train, capfd):
    "B4: the last line said that they were not used for training."
    status, out, err = train("--epochs", 1)
    assert status == 0 and "training images" not in said(out)
    words = ["--train_dir", "pets/test", "--test_dir", "pets/test", "--image_size", "16", "--epochs", "1"]
    assert main(["train", *words]) == 0
    out, err = capfd.readouterr()
    assert "12 of 12 validation samples are training samples" in err
    assert said(out).endswith("; 12 of them are training images") and "not used" not in out


def test_the_number_belongs_to_the_images(train, tmp_path):
    "B4: after an image was added, `--resume` of a finished run said the old number with the new count."
    train("--epochs", 1, "--out", "run")
    old = float(rows(tmp_path / "run" / "history.csv")[-1]["valid_acc"])
    for i in range(12):  # all of them wrong, or all of them right
        Image.new("L", (16, 16), 255).save(tmp_path / "pets" / "test" / "cat" / f"new {i}.png")
    status, out, _ = train("--resume", "run")
    assert status == 0 and "nothing to do" in out and " on 24 images" in said(out)
    accuracy = float(said(out).split()[2].rstrip("%")) / 100
    wrong, right = old * 12 / 24, (old * 12 + 12) / 24
    assert min(abs(accuracy - wrong), abs(accuracy - right)) < 1e-3


def test_names_say_how_a_number_came_about(train, tmp_path, monkeypatch):
    "D7: `valid_` after every epoch, `test_` once."
    status, out, _ = train("--epochs", 2, "--out", "two parts")
    assert status == 0 and "valid_acc" in out and "test_" not in out
    assert "on 12 images (measured after every epoch; --valid_share 0.2 keeps some for choosing)" in said(out)
    names = ["epoch", "train_loss", "train_acc", "valid_loss", "valid_acc"]
    assert list(rows(tmp_path / "two parts" / "history.csv")[0]) == names
    assert list(settings(tmp_path / "two parts")["model_info"]["metrics"]) == names[1:]
    prepare = going_modular._prepare

    def with_validation(args):
        parts = prepare(args)
        parts.valid = parts.test
        return parts

    monkeypatch.setattr(going_modular, "_prepare", with_validation)
    status, out, _ = train("--epochs", 2, "--out", "three parts")
    assert status == 0 and "20 training, 12 validation and 12 test images" in out
    assert said(out).endswith(" on 12 images, measured once")
    assert list(rows(tmp_path / "three parts" / "history.csv")[0]) == names
    metrics = settings(tmp_path / "three parts")["model_info"]["metrics"]
    assert list(metrics) == [*names[1:], "test_loss", "test_acc"]
    assert metrics["test_acc"] == metrics["valid_acc"]  # here these are the same images


# --- misspelt words ---


@pytest.mark.parametrize("line, proposal", [
    ("train --epoch 3", "train: error: unrecognized arguments: --epoch 3; did you mean --epochs?"),
    ("train --batch-sise=8", "did you mean --batch_size?"),
    ("train --num-epoch 8", "did you mean --num_epochs?"),
    ("train --schedule cosin", "did you mean cosine?"),
    ("evaluate model.pt --dta x", "did you mean --data?"),
    ("train --model tinyvg", "did you mean tinyvgg?"),
    ("train --data digitz", "did you mean digits?"),
    ("trian", "did you mean train?"),
    ("getdata digits", "did you mean get-data?"),
])
def test_the_nearest_word_is_proposed(line, proposal, capfd):
    "C9"
    try:
        status = main(line.split())
    except SystemExit as exit:
        status = exit.code
    err = capfd.readouterr().err
    assert status == 2 and err.count("\n") == 1 and proposal in err


@pytest.mark.parametrize("line", ["train --zzz 3", "train --colour red", "train yes", "frobnicate", "train --epochs 0"])
def test_far_words_are_not_proposed(line, capfd):
    with pytest.raises(SystemExit):
        main(line.split())
    assert "did you mean" not in capfd.readouterr().err
