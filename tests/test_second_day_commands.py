"""What surprised somebody who used the commands for a day: each surprise has a small test."""
import json
import math
import os
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from pytorch_course import runs
from pytorch_course.going_modular import main
from pytorch_course.model import build_model
from pytorch_course.trainer import Trainer

CODE = """
from pathlib import Path
from torch import nn

class Small(nn.Sequential):
    def __init__(self, channels, num_classes, width=4):
        super().__init__(nn.Conv2d(channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))

class Many(Small):
    def __init__(self, channels, num_classes):
        super().__init__(channels, 7)

class WrongSize(nn.Sequential):
    def __init__(self, channels, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(10, num_classes))

class Dictionary(Small):
    def forward(self, x):
        return {"logits": super().forward(x)}

class NoClasses(nn.Module):
    def __init__(self, channels):
        super().__init__()
"""


def command(*words):
    "Exit status, output, errors."
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            status = main([*map(str, words)])
        except SystemExit as stopped:
            status = stopped.code
    return status, out.getvalue(), err.getvalue()


def refused(*words):
    "The one line of an error."
    status, out, err = command(*words)
    assert (status, err.count("\n")) == (2, 1), (status, out, err)
    assert "epoch 1/" not in out
    return err


def write_images(folder, count, start):
    for number, name in enumerate(("cat", "dog")):
        Path(folder, name).mkdir(parents=True)
        for i in range(count):
            color = (90 * number + 20, start + i, 60)
            Image.new("RGB", (20, 20), color).save(Path(folder, name, f"{i}.png"))


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    "A folder with a Python file of models, and `pets`: 8 training and 6 test images."
    monkeypatch.chdir(tmp_path)
    Path("my_models.py").write_text(CODE)
    write_images("pets/train", 4, 0)
    write_images("pets/test", 3, 100)


PETS = ("train", "--data", "pets", "--image_size", 16, "--batch_size", 4, "--epochs", 1)


def train(*words):
    status, out, err = command(*PETS, *words)
    assert status == 0, err
    return out


@pytest.mark.parametrize("name, reason", [
    ("Many", "the model gives (1, 7) for one image, but there are 2 class names"),
    ("WrongSize", "cannot be multiplied"),
    ("Dictionary", "the model gives dict for one image"),
])
def test_a_model_that_does_not_fit_is_refused_before_the_first_epoch(name, reason):
    line = refused(*PETS, "--model", f"my_models.py:{name}")
    assert f"my_models.py:{name} does not fit images of shape (3, 16, 16) and 2 classes: " in line and reason in line
    assert not Path("runs").exists()


def test_evaluate_leaves_out_damaged_images_as_the_run_did():
    for part in ("train", "test"):
        Path("pets", part, "cat", "0.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    train("--skip_damaged", "--out", "mine")
    status, out, err = command("evaluate", "mine")
    assert status == 0 and "of 5 correct" in out and "left out: cannot read " in err and "train" not in err
    config = json.loads(Path("mine/config.json").read_text())
    Path("mine/config.json").write_text(json.dumps(config | {"skip_damaged": False}))
    assert "cannot read" in refused("evaluate", "mine")
    assert command("evaluate", "mine", "--skip_damaged")[0] == 0
    write_images("some", 1, 200)
    Path("some/cat/0.png").write_text("broken")
    status, _, err = command("evaluate", "mine", "--test_dir", "some", "--skip_damaged")
    assert status == 2 and "no image of class 'cat' can be read in some" in err


def test_evaluate_counts_training_images():
    train("--out", "mine")
    status, out, _ = command("evaluate", "mine", "--test_dir", "pets/train")
    assert status == 0 and "pets/train; 8 of these 8 are training images\n" in out
    assert json.loads(command("evaluate", "mine", "--test_dir", "pets/train", "--json")[1])["training_images"] == 8
    assert "training images" not in command("evaluate", "mine")[1]
    Path("pets/train").rename("gone")  # then nobody knows
    assert "training images" not in command("evaluate", "mine", "--test_dir", "gone")[1]


def test_train_counts_images_of_two_parts():
    write_images("pets/valid", 3, 3)  # the first of each class is a training image
    assert "overlap 2 of 6 validation images are training images\n" in train()
    out = train("--out", "b")
    assert "test images are training images" not in out
    status, out, _ = command("train", "--train_dir", "pets/train", "--test_dir", "pets/train", "--epochs", 1)
    assert status == 0 and "WARNING all 8 of 8 test images are training images\n" in out
    assert out.index("WARNING") < out.index("epoch 1/1")


def test_a_model_that_diverged_in_the_last_epoch_is_not_saved(monkeypatch):
    measure = Trainer.measure
    monkeypatch.setattr(Trainer, "measure", lambda *args: measure(*args) | {"loss": math.nan})
    status, out, err = command(*PETS, "--out", "mine")
    assert status == 2 and "the loss is not finite" in err and "--learning_rate" in err and "saved in" not in out
    assert not Path("mine/model.pt").exists()


def test_printed_commands_are_complete():
    out = train("--model", "my_models.py:Small", "--out", "mine")
    words = out.splitlines()[-1].removeprefix("next: pytorch-course ").split()
    assert words[-2:] == ["--model_code", "my_models.py"] and command(*words)[0] == 0
    resume = "pytorch-course train --resume mine --model my_models.py:Small"
    with pytest.raises(KeyboardInterrupt, match=f"resume with: {resume}"), runs.open_run("", resume="mine"):
        raise KeyboardInterrupt("stopped")
    Path("mine/model.pt").unlink()
    assert f"finish the run: {resume}" in refused("predict", "mine", "pets")
    assert command(*resume.split()[1:])[0] == 0


@pytest.mark.parametrize("name, expected, never", [
    ("my_models.py:NoClasses", "its __init__ must accept num_classes (or output_shape)", "tinyvgg"),
    ("my_models.py:Large", "it has Small, Many, WrongSize, Dictionary, NoClasses", "Path"),
    ("my_models.py", "name the class: my_models.py:CLASS", "choose"),
    ("resnet18", "did you mean torchvision:resnet18? choose one of cifar10net, neuralnetwork, tinyvgg, t", "linear"),
    ("tinyvg", "did you mean tinyvgg?", "linear"),
    ("torchvision:resnet19", "torchvision has no 'resnet19', but for example resnet18", "alexnet"),
])
def test_wrong_model_names_are_answered_with_the_next_step(name, expected, never):
    line = refused(*PETS, "--model", name)
    assert expected in line and never not in line and line.count("did you mean") <= 1


def test_a_figure_without_a_place_does_not_cost_the_table(monkeypatch):
    train("--out", "mine")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    status, out, err = command("evaluate", "mine")
    assert status == 0 and "of 6 correct" in out and "confusion matrix" not in out
    assert err == ("pytorch-course: warning: the figure was not saved: cannot write mine/confusion_matrix.png; "
                   "choose another place with --plot\n")
    assert "cannot write here.png" in refused("evaluate", "mine", "--plot", "here.png")


def test_resume_with_fewer_epochs_than_are_done():
    train("--epochs", 3, "--out", "mine")
    before = Path("mine/config.json").read_text()
    assert "3 epochs are done already" in refused("train", "--resume", "mine", "--epochs", 2)
    assert Path("mine/config.json").read_text() == before
    assert command("train", "--resume", "mine", "--epochs", 3)[0] == 0


def test_pretrained_by_a_run_with_another_model():
    train("--model", "my_models.py:Small", "--out", "mine")
    line = refused(*PETS, "--pretrained", "mine")
    assert "holds another network than tinyvgg; add --model my_models.py:Small" in line


def test_a_resumed_run_needs_no_pretrained_file():
    "Another normalization and another folder: what the images need is in the settings of the run."
    train("--out", "base")
    train("--pretrained", "base", "--out", "mine")
    before = torch.load("mine/model.pt", weights_only=True)
    Path("base").rename("gone")
    assert command("train", "--resume", "mine", "--epochs", 2)[0] == 0
    after = torch.load("mine/model.pt", weights_only=True)
    assert after["info"]["transform"] == before["info"]["transform"]


def test_each_part_says_what_it_lacks():
    for name in ("cat", "dog"):
        for i in range(2):
            Path("two", name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (40 * i + 9, 80, len(name))).save(f"two/{name}/{i}.png")
    line = refused("train", "--data", "two", "--valid_share", 0.2)
    assert "two has too few images of each class for a validation part; add images" in line
    for i in range(2, 9):
        Image.new("RGB", (20, 20), (20 * i, 90, 7)).save(f"two/dog/{i}.png")
    _, _, err = command("train", "--data", "two", "--valid_share", 0.2, "--epochs", 1)
    assert "two: too few images of cat: none of them in the validation part" in err
    assert command("evaluate", "runs/two-tinyvgg")[2].count("too few images") == 1


def test_a_run_that_stopped_at_once_does_not_say_how_to_resume():
    with pytest.raises(KeyboardInterrupt) as stopped, runs.open_run("pets") as folder:
        raise KeyboardInterrupt("stopped at once")
    assert str(stopped.value) == "stopped at once" and not folder.exists()


@pytest.mark.parametrize("words", [
    ["evaluate", "mine", "--test_dir", ""], ["evaluate", "mine", "--data", ""], ["predict", "", "pets"],
    ["predict", "mine", ""], [*PETS, "--pretrained", ""], [*PETS, "--out", ""], ["get-data", ""],
    ["doctor", "--data", ""],
])
def test_an_empty_word_is_never_a_default(words):
    assert "must not be empty" in refused(*words)


def test_evaluate_needs_only_the_images_that_it_measures():
    train("--out", "mine")
    whole = command("evaluate", "mine")[1].splitlines()[0]
    shutil.copytree("pets/test", "other/train")
    assert command("evaluate", "mine", "--data", "other")[1].splitlines()[0] == whole  # class folders, called train
    shutil.rmtree("pets/train")
    assert command("evaluate", "mine")[1].splitlines()[0] == whole


def test_predict_names_the_files_that_it_left_out():
    train("--out", "mine")
    Path("phone").mkdir()
    for name in ("a.heic", "b.txt"):
        Path("phone", name).write_text("x")
    line = refused("predict", "mine", "phone")
    assert "no images in phone; skipped: *.heic (1, needs pillow-heif), *.txt (1)" in line
    shutil.copy("pets/test/cat/0.png", "phone")
    status, out, err = command("predict", "mine", "phone")
    assert (status, out.count("\n")) == (0, 1) and "skipped *.heic (1, needs pillow-heif), *.txt (1)" in err


def test_two_runs_at_the_same_moment_do_not_share_a_folder():
    path = runs._new_path(None, "pets")
    with runs._new_folder(path) as folder:
        (folder/"config.json").touch()
        with pytest.raises(ValueError, match="another run has just begun in runs/pets"), runs._new_folder(path):
            pass
        assert (folder/"config.json").exists()


def test_an_own_file_that_changed_since_training():
    train("--model", "my_models.py:Small", "--out", "mine")
    Path("my_models.py").write_text(CODE.replace("width=4", "width=5"))
    os.utime("my_models.py", (1, 1))
    line = refused("predict", "mine", "pets", "--model_code", "my_models.py")
    assert "size mismatch" in line and "or the file has changed since training" in line


def test_what_is_no_image_and_what_is_no_run():
    train("--out", "runs/mine")
    assert "download the file first" in refused("predict", "runs/mine", "https://example.org/cat.jpg")
    assert "photos.zip is an archive; unpack it" in refused("predict", "runs/mine", "photos.zip")
    assert "no runs/config.json; choose one of runs/mine" in refused("train", "--resume", "runs")


def test_json_has_an_entry_for_each_image():
    train("--out", "mine")
    Path("bad.png").write_text("milk")
    status, out, err = command("predict", "mine", "bad.png", "pets/test/cat/0.png", "--json", "--plot", "seen.png")
    first, second = json.loads(out)
    assert (status, first["path"], err.count("\n")) == (1, "bad.png", 1)
    assert "cannot read bad.png" in first["error"] and second["predictions"]


def test_a_flag_that_the_model_ignores_is_named():
    assert "cifar10net has no hidden_units, so --hidden_units is ignored\n" in train(
        "--model", "cifar10net", "--hidden_units", 5)
    assert "ignored" not in train("--hidden_units", 5) + train("--model", "cifar10net")


def test_the_run_of_one_folder_is_named_after_it():
    Path("pets/train").rename("few")
    assert command("train", "--train_dir", "few", "--test_dir", "few", "--epochs", 1, "--image_size", 16)[0] == 0
    assert Path("runs/few-tinyvgg/model.pt").is_file()


def test_trying_the_model_does_not_change_the_run():
    "The test before the first epoch draws no random number of the run, and changes no weight."
    from pytorch_course.images import ImageTransform
    from pytorch_course.save_load import ModelInfo, check_description
    model = build_model("my_models.py:Small", channels=3, num_classes=2)
    info = ModelInfo("my_models.py:Small", {"channels": 3, "num_classes": 2}, ["a", "b"], ImageTransform(16))
    before, state = torch.get_rng_state(), {name: p.clone() for name, p in model.state_dict().items()}
    check_description(model, info, "")
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert all(torch.equal(p, state[name]) for name, p in model.state_dict().items())
