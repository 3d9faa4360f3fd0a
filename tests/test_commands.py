"""The commands as a user meets them: processes, files, exit statuses."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from pytorch_course.data import create_dataloaders
from pytorch_course.going_modular import main
from pytorch_course.images import ImageTransform
from pytorch_course.model import build_model
from pytorch_course.reproducibility import SeededDataLoader
from pytorch_course.tensors import seed_everything
from pytorch_course.training import train_step


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def make_images(folder, classes=("cat", "dog"), per_class=6, size=(40, 30), mode="RGB"):
    "Colored images, a class a color, in train/ and test/."
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(per_class):
                level = 40 + 150 * number + 5 * i
                color = {"L": level, "RGB": (level, 60, 200 - level), "RGBA": (level, 60, 20, 128)}[mode]
                Image.new(mode, size, color).save(folder / split / name / f"{i}.png")
    return folder


# --- train ---


def test_default_training(digits_run):
    folder, done = digits_run
    assert (done.status, done.err) == (0, "")
    run = folder / "runs" / "digits-tinyvgg"
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "curves.png",
        "history.csv",
        "model.pt",
    ]
    rows = list(csv.DictReader((run / "history.csv").open()))
    assert list(rows[0]) == ["epoch", "train_loss", "train_acc", "valid_loss", "valid_acc"]
    assert len(rows) == 5
    assert float(rows[-1]["valid_acc"]) >= 0.95
    assert f"test accuracy {float(rows[-1]['valid_acc']):.1%} on 360 images" in done.out
    config = json.loads((run / "config.json").read_text())
    assert config["model_info"]["model_kwargs"] == {
        "input_shape": 1,
        "hidden_units": 10,
        "output_shape": 10,
        "image_size": 64,
    }
    assert config["versions"]["torch"] and config["learning_rate"] == 0.001
    assert Image.open(run / "curves.png").size[0] > 500
    assert [line for line in done.out.splitlines() if line.startswith("epoch")][0].startswith("epoch 1/5  train_loss")
    assert "\r" not in done.out + done.err  # one line per epoch, no bar, when not a terminal


def test_same_seed_same_run(command, tmp_path):
    make_images(tmp_path / "pets")
    for out in ("a", "b"):
        assert command("train", "--data", "pets", "--epochs", 2, "--image_size", 16, "--out", out).status == 0
    assert (tmp_path / "a" / "history.csv").read_text() == (tmp_path / "b" / "history.csv").read_text()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_own_folder_and_zip(command, tmp_path, mode):
    make_images(tmp_path / "my pets", mode=mode)
    shutil.make_archive(str(tmp_path / "zipped pets"), "zip", tmp_path, "my pets")  # inside one more folder
    for data, name in (("my pets", "my pets-tinyvgg"), ("zipped pets.zip", "zipped pets-tinyvgg")):
        done = command("train", "--data", data, "--epochs", 1, "--image-size", 32, "--batch-size=4")
        told = f"unpacked to {Path('data/zipped pets')}\n" if data.endswith("zip") else ""
        assert (done.status, done.err) == (0, told)
        config = json.loads((tmp_path / "runs" / name / "config.json").read_text())
        assert config["model_info"]["class_names"] == ["cat", "dog"]
        assert config["model_info"]["transform"]["channels"] == (1 if mode == "L" else 3)
    assert "'runs/zipped pets-tinyvgg/model.pt'" in done.out  # quoted for the shell


def test_folders_models_and_spellings(command, tmp_path):
    make_images(tmp_path / "pets", per_class=3)
    common = ("train", "--train-dir", "pets/train", "--test_dir", "pets/test", "--num-epochs=1")
    for model, size in (("TinyVGG", 64), ("cifar10-net", 32), ("NeuralNetwork", 28)):
        done = command(*common, "--model", model, "--lr", "1e-2", "--num_workers", 1, "--seed", 7)
        assert (done.status, done.err) == (0, "")
        assert f"images {size} x {size}" in done.out
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "pets-cifar10net",
        "pets-neuralnetwork",
        "pets-tinyvgg",
    ]
    assert command(*common).status == 0
    assert (tmp_path / "runs" / "pets-tinyvgg-2" / "model.pt").is_file()  # never over another run


PETS = ["train", "--data", "pets", "--image_size", "16", "--batch_size", "4"]


def hear_ctrl_c():
    "What is started in the background by a shell ignores it, and so would its children."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin(folder, *words):
    "A training as a process; returns when it has printed its second epoch, so that there is a checkpoint of the first."
    line = [sys.executable, "-u", "-m", "pytorch_course", *PETS, *map(str, words)]
    process = subprocess.Popen(
        line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    )
    while not process.stdout.readline().startswith("epoch 2"):
        assert process.poll() is None, process.stderr.read()
    return process


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    "A folder with images and a run that was never interrupted."
    folder = tmp_path_factory.mktemp("whole")
    make_images(folder / "pets", per_class=40)
    assert begin(folder, "--epochs", 60, "--out", "whole").wait(timeout=120) == 0
    return folder


def weights(folder):
    return {
        name: value.tolist() for name, value in torch.load(folder / "model.pt", weights_only=True)["state_dict"].items()
    }


@pytest.mark.parametrize(
    "number, status",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=["ctrl-c", "sigterm", "kill"],
)
def test_interrupted_training_goes_on_to_the_same_end(whole_run, command, number, status):
    "Row 14 and 15 of the fault table, and 1: the same files in the end, bit by bit."
    out = f"stopped by {number}"
    process = begin(whole_run, "--epochs", 60, "--out", out)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    if number != signal.SIGKILL:
        assert f"resume with: pytorch-course train --resume '{out}'" in err and "Traceback" not in err
    assert not (whole_run / out / "model.pt").exists() and (whole_run / out / "config.json").exists()
    done = command(
        "train", "--resume", whole_run / out, "--num_workers", 1
    )  # from another folder, with another number of workers
    assert (done.status, done.err) == (0, "")
    assert "resumed from step-" in done.out
    assert (whole_run / out / "history.csv").read_text() == (whole_run / "whole" / "history.csv").read_text()
    assert weights(whole_run / out) == weights(whole_run / "whole")


# --- what makes a training fast, or exact ---


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    "`train` in this process, in an empty folder; `(status, out, err)`."
    def run(*words):
        monkeypatch.chdir(tmp_path)
        try:
            status = main(["train", *map(str, words)])
        except SystemExit as exit:
            status = exit.code
        return status, *capfd.readouterr()

    return run


def speed(out):
    return next(line for line in out.splitlines() if line.startswith("speed"))


def settings(run):
    return json.loads((run / "config.json").read_text())


def test_decoding_once_changes_nothing(train, tmp_path):
    make_images(tmp_path / "pets", per_class=20)
    for out, flags, said in (
        ("once", [], "decoded once (0.1 MB in memory)"),
        ("each time", ["--no_cache"], "decoded in every epoch"),
    ):
        status, printed, err = train(*PETS[1:], "--epochs", 3, "--out", out, *flags)
        assert (status, err) == (0, "") and said in speed(printed)
        assert settings(tmp_path / out)["no_cache"] is bool(flags)
    for name in ("history.csv", "model.pt"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "each time" / name).read_bytes()


def test_a_store_in_files_is_said(train, tmp_path, monkeypatch):
    make_images(tmp_path / "pets")
    monkeypatch.setattr("pytorch_course.image_cache.available_memory", lambda: 0)
    _, printed, err = train(*PETS[1:], "--epochs", 1)
    assert "in files)" in speed(printed) and err.count("decoded images") == 2
    assert len(list((tmp_path / "pets").glob(".*.images"))) == 2


def test_precision(train, tmp_path):
    accuracies = {}
    for precision in ("fp32", "bf16"):
        status, printed, err = train("--epochs", 3, "--image_size", 28, "--precision", precision, "--out", precision)
        assert (status, err) == (0, "") and f", {precision}, " in speed(printed)
        found = settings(tmp_path / precision)
        assert found["precision"] == precision
        accuracies[precision] = found["model_info"]["metrics"]["valid_acc"]
    assert min(accuracies.values()) > 0.85 and max(accuracies.values()) - min(accuracies.values()) < 0.05, accuracies
    for name, value in torch.load(tmp_path / "bf16" / "model.pt", weights_only=True)["state_dict"].items():
        assert value.dtype == torch.float32, name
    assert weights(tmp_path / "bf16") != weights(tmp_path / "fp32")
    make_images(tmp_path / "pets")  # without instructions for it, a processor takes its time for fp16
    status, printed, err = train(*PETS[1:], "--epochs", 2, "--precision", "fp16")
    assert (status, err) == (0, "") and ", fp16, " in speed(printed)


def test_exact_is_the_plain_loop(train, tmp_path):
    make_images(tmp_path / "pets", per_class=20)
    status, printed, err = train(*PETS[1:], "--epochs", 3, "--exact", "--out", "exact")
    assert (status, err) == (0, "") and "channels_last" not in speed(printed)
    seed_everything(42)
    found = settings(tmp_path / "exact")["model_info"]
    transform = ImageTransform(image_size=16, channels=found["transform"]["channels"])
    model = build_model("tinyvgg", **found["model_kwargs"])
    train_loader, test_loader, _ = create_dataloaders(
        tmp_path / "pets" / "train", tmp_path / "pets" / "test", transform, 4, 0, seed=42
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for epoch in range(3):  # the loop in five lines; only the order of the images is not PyTorch's own
        seeded = SeededDataLoader(train_loader, 42)
        seeded.set_position(epoch)
        train_step(model, seeded, torch.nn.CrossEntropyLoss(), optimizer, "cpu")
    assert weights(tmp_path / "exact") == {name: value.tolist() for name, value in model.state_dict().items()}
    assert "channels_last" in speed(train(*PETS[1:], "--epochs", 3, "--out", "fast")[1])
    exact, fast = (
        [list(map(float, row)) for row in list(csv.reader((tmp_path / name / "history.csv").open()))[1:]]
        for name in ("exact", "fast")
    )
    torch.testing.assert_close(torch.tensor(fast), torch.tensor(exact), rtol=1e-3, atol=1e-3)


def test_draft_is_faster_but_not_the_same(train, tmp_path):
    make_images(tmp_path / "pets", per_class=3, size=(640, 480))
    for path in [*(tmp_path / "pets").rglob("*.png")]:
        image = Image.effect_mandelbrot((640, 480), (-3, -2.5, 2, 2.5), 50)  # something with edges
        Image.blend(Image.open(path), image.convert("RGB"), 0.5).save(path.with_suffix(".jpg"))
        path.unlink()
    for out, flags in (("whole", []), ("draft", ["--draft"])):
        status, printed, err = train(*PETS[1:], "--epochs", 1, "--out", out, *flags)
        assert (status, err) == (0, "") and ("reduced size" in speed(printed)) is bool(flags)
    assert settings(tmp_path / "draft")["draft"] is True
    assert weights(tmp_path / "draft") != weights(tmp_path / "whole")


def test_compile(train, tmp_path, monkeypatch):
    make_images(tmp_path / "pets", per_class=2)
    compiled = []
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "compile", lambda *arguments, **_: compiled.append(arguments))
        status, printed, _ = train(*PETS[1:], "--epochs", 1, "--compile", "--device", "cpu")
    assert status == 0 and len(compiled) == 1 and ", compiled, " in speed(printed)
    before = everything(tmp_path)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    status, _, err = train(*PETS[1:], "--epochs", 1, "--compile", "--device", "cpu")
    assert status == 2 and err.count("\n") == 1 and "needs a C++ compiler" in err
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "begun, resumed",
    [(["--precision", "bf16", "--no_cache"], []), ([], ["--no_cache"])],
    ids=["bf16", "cache, then none"],
)
def test_interrupted_training_keeps_its_settings(whole_run, train, tmp_path, begun, resumed):
    "Whether images are cached may change on the way and makes no difference."
    (tmp_path / "pets").symlink_to(whole_run / "pets")
    process = begin(tmp_path, "--epochs", 60, "--out", "stopped", *begun)
    process.kill()
    process.communicate(timeout=60)
    assert not (tmp_path / "stopped" / "model.pt").exists()
    if begun:
        assert train(*PETS[1:], "--epochs", 60, "--out", "whole", "--precision", "bf16")[0] == 0
        status, _, err = train("--resume", "stopped", "--precision", "fp32")
        assert status == 2 and "leave out --precision" in err
    status, printed, err = train("--resume", "stopped", *resumed)
    assert (status, err) == (0, "") and "resumed from step-" in printed
    assert "decoded in every epoch" in speed(printed) and (", bf16, " in speed(printed)) is bool(begun)
    whole = (tmp_path if begun else whole_run) / "whole"
    assert (tmp_path / "stopped" / "history.csv").read_text() == (whole / "history.csv").read_text()
    assert weights(tmp_path / "stopped") == weights(whole)


def test_row_10_nan_says_where_the_last_good_checkpoint_is(command, tmp_path):
    make_images(tmp_path / "pets")
    done = command(
        "train", "--data", "pets", "--image_size", 16, "--lr", "1e9"
    )  # a single batch an epoch: the first leaves finite weights
    assert done.status == 2 and done.err.count("\n") == 1
    assert "the loss is nan at step 2" in done.err
    assert "The last good checkpoint is runs/pets-tinyvgg/checkpoints/step-00000001.pt" in done.err


def test_damaged_checkpoint_is_said_in_one_line(whole_run, command):
    shutil.copytree(whole_run / "whole", whole_run / "damaged")
    newest = sorted((whole_run / "damaged" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-5000])
    done = command("train", "--resume", whole_run / "damaged")
    assert done.status == 0 and done.err.count("\n") == 1
    assert (
        done.err.startswith("pytorch-course: warning: cannot load ")
        and newest.name in done.err
        and "going back to step-" in done.err
    )
    assert weights(whole_run / "damaged") == weights(whole_run / "whole")


def test_interrupted_before_the_first_step_leaves_nothing(tmp_path):
    make_images(tmp_path / "pets", per_class=2)
    line = [sys.executable, "-c", "import signal, sys, pytorch_course.image_cache as cache\n"
            "cache.decode_datasets = lambda *a, **k: signal.raise_signal(signal.SIGINT)\n"
            "from pytorch_course.going_modular import main; sys.exit(main(sys.argv[1:]))", *PETS]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60, preexec_fn=hear_ctrl_c)
    assert (done.returncode, done.stderr.strip()) == (130, "pytorch-course train: interrupted")
    assert not (tmp_path / "runs").exists()


def test_doctor(command):
    done = command("doctor", "--json")
    findings = json.loads(done.out)
    assert done.status == int(any(finding["fails"] for finding in findings))
    assert {"torch", "torchvision"} <= {finding["name"] for finding in findings}


# --- bad input: one line, status 2, nothing left behind ---


BAD_LINES = {
    "train --data imagenet": "unknown data set 'imagenet'",
    "train --model resnet": "unknown model 'resnet'",
    "train --model net": "does not classify images",
    "train --epochs none": "a whole number of at least 1 is needed, not 'none'",
    "train --batch_size 0": "at least 1 is needed, not '0'",
    "train --lr -1": "a number above 0 is needed, not '-1'",
    "train --lr nan": "a number above 0 is needed",
    "train --seed -5": "at least 0 is needed",
    "train --precision half": "invalid choice: 'half'",
    "train --data pets --no_cache yes": "unrecognized arguments: yes",
    "train --batch_size 99999999999999999999": "at most 2,147,483,647 is needed",
    "train --hidden_units 99999999": "at most 4,096 is needed",
    "train --data pets --image_size 16 --batch_size 4 --lr 1e9": "lower the learning rate",
    "evaluate not_a.zip --data pets --test_dir pets/test": "not both",
    "train --device warp": "'warp'",
    "train --image_size 15 --data pets": "at least 16 pixels, not 15",
    "train --data nowhere/pets": "no folder nowhere/pets",
    "train --train_dir nowhere --test_dir nowhere": "no folder nowhere",
    "train --test_dir pets/test": "--train_dir, which is missing",
    "train --data pets --train_dir pets/train --test_dir pets/test": "not both",
    "train --data pets/train/cat": "no train and test folders in pets/train/cat",
    "train --data no_images": "no images in",
    "train --data other_classes": "classes differ",
    "train --data one_class": "a single class, 'cat'",
    "train --data broken_image": "cannot read broken_image/train/dog/3.png: ",
    "train --data broken_image --num_workers 2": "cannot read broken_image/train/dog/3.png: ",
    "train --data not_a.zip": "cannot unpack not_a.zip: ",
    "train --data pets --out pets": "is not empty",
    "train --data pets --out not_a.zip/run": "cannot write to not_a.zip/run",
    "train --data pets --out /proc/run": "cannot write to /proc/run",
    "get-data mnist": "unknown data set 'mnist'",
    "get-data pets/train/cat": "no train and test folders",
    "predict missing.pt a.png": "no model file at missing.pt",
    "predict not_a.zip a.png": "cannot load not_a.zip",
    "predict pets a.png": "no model file at pets/model.pt",
    "predict plain.pth a.png": "weights without a description",
    "predict pickled.pt a.png": "could run any code",
    "predict": "required: MODEL, IMAGE",
    "train --resume missing": "no missing/config.json",
    "train --resume pets --epochs 7": "no pets/config.json",
    "train --resume empty_run": "is not complete",
    "evaluate missing.pt": "no model file at missing.pt",
    "scaffold pets": "pets is not an empty folder",
    "frobnicate": "invalid choice: 'frobnicate'",
    "": "required: COMMAND",
}


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    "A folder with all kinds of trouble in it."
    folder = tmp_path_factory.mktemp("troubled")
    make_images(folder / "pets")
    make_images(folder / "other_classes")
    (folder / "other_classes" / "test" / "dog").rename(folder / "other_classes" / "test" / "wolf")
    make_images(folder / "one_class", classes=("cat",))
    make_images(folder / "broken_image")
    whole = (folder / "broken_image" / "train" / "dog" / "3.png").read_bytes()
    (folder / "broken_image" / "train" / "dog" / "3.png").write_bytes(whole[: len(whole) // 2])
    for split in ("train", "test"):
        (folder / "no_images" / split / "cat").mkdir(parents=True)
    (folder / "empty_run").mkdir()
    (folder / "empty_run" / "config.json").write_text("{}")
    (folder / "not_a.zip").write_text("<html>moved</html>")
    torch.save({"weight": torch.zeros(2)}, folder / "plain.pth")
    torch.save(zipfile.ZipInfo("x"), folder / "pickled.pt")  # any object that is no plain value
    return folder


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_input(troubled, line, monkeypatch, capfd):
    "In this process, which spares forty imports of PyTorch; `test_bad_input_of_a_process` looks at a real one."
    before = everything(troubled)
    monkeypatch.chdir(troubled)
    try:
        status = main(line.split())
    except SystemExit as exit:
        status = exit.code
    out, err = capfd.readouterr()
    assert status == 2, err
    assert BAD_LINES[line] in err
    assert err.count("\n") == 1 and err.startswith("pytorch-course")
    assert everything(troubled) == before


def test_bad_input_of_a_process(command, troubled):
    before = everything(troubled)
    done = command("train", "--data", "broken_image", "--num_workers", 2, cwd=troubled)
    assert done.status == 2 and done.err.count("\n") == 1
    assert everything(troubled) == before


def test_clashing_folder_is_not_touched(command, tmp_path):
    (tmp_path / "data" / "digits").mkdir(parents=True)
    (tmp_path / "data" / "digits" / "mine.txt").write_text("mine")
    done = command("train")
    assert done.status == 2 and "was not made from digits v1" in done.err
    assert everything(tmp_path) == ["data", "data/digits", "data/digits/mine.txt"]


def test_no_network_is_one_line(command, tmp_path):
    done = command("get-data", "pizza_steak_sushi", PYTORCH_COURSE_MIRROR="http://127.0.0.1:9")
    assert done.status == 2 and done.err.count("\n") == 1
    assert "no connection" in done.err and "digits" in done.err
    assert everything(tmp_path) == []


# --- get-data ---


def test_get_data_skips_what_is_complete(command, tmp_path):
    first = command("get-data", "food_shapes", "--root", "sets")
    stamp = (tmp_path / "sets" / "food_shapes" / ".complete").stat().st_mtime_ns
    second = command("get-data", "food_shapes", "--root", "sets")
    assert first.status == second.status == 0
    assert (
        first.out
        == second.out
        == "sets/food_shapes: 225 training and 75 test files in 3 classes\n".replace("/", os.sep)
    )
    assert (tmp_path / "sets" / "food_shapes" / ".complete").stat().st_mtime_ns == stamp


# --- predict ---


def test_predict_needs_only_the_model_file(digits_run, command, tmp_path):
    folder, _ = digits_run
    shutil.copy(folder / "runs" / "digits-tinyvgg" / "model.pt", tmp_path / "digits.pt")
    three = sorted((folder / "data" / "digits" / "test" / "3").iterdir())[0]
    image = Image.open(three)
    image.save(tmp_path / "gray.png")
    image.convert("RGB").resize((200, 150)).save(tmp_path / "color.jpg")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    done = command("predict", "digits.pt", "gray.png", "color.jpg", "alpha.png")
    assert (done.status, done.err) == (0, "")
    assert [line.split()[:2] for line in done.out.splitlines()] == [
        ["gray.png", "3"],
        ["color.jpg", "3"],
        ["alpha.png", "3"],
    ]


def test_predict_topk_json_and_plot(digits_run, command, tmp_path):
    folder, _ = digits_run
    images = [str(path) for path in sorted((folder / "data" / "digits" / "test" / "8").iterdir())[:3]]
    done = command("predict", folder / "runs" / "digits-tinyvgg", *images, "--topk", 3, "--json", "--plot", "out.png")
    results = json.loads(done.out)
    assert [result["path"] for result in results] == images
    for result in results:
        probabilities = [p["probability"] for p in result["predictions"]]
        assert (
            len(probabilities) == 3
            and probabilities == sorted(probabilities, reverse=True)
            and 0 < sum(probabilities) <= 1.0001
        )
    assert Image.open(tmp_path / "out.png").width > 300
    assert "class" in results[0]["predictions"][0]


def test_predict_names_the_image_that_it_cannot_read(digits_run, command, tmp_path):
    folder, _ = digits_run
    good = sorted((folder / "data" / "digits" / "test" / "8").iterdir())[0]
    (tmp_path / "notes.jpg").write_text("not an image")
    done = command("predict", folder / "runs" / "digits-tinyvgg", good, "notes.jpg", "--plot", "out.png")
    assert (done.status, done.out.split()[0]) == (1, str(good))
    assert "cannot read notes.jpg" in done.err and done.err.count("\n") == 1
    assert (tmp_path / "out.png").exists()


# --- evaluate ---


def test_evaluate(digits_run, command, tmp_path):
    folder, _ = digits_run
    shutil.copy(folder / "runs" / "digits-tinyvgg" / "model.pt", tmp_path / "model.pt")
    done = command("evaluate", "model.pt", "--data", folder / "data" / "digits", "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    config = json.loads((folder / "runs" / "digits-tinyvgg" / "config.json").read_text())
    assert found["accuracy"] == pytest.approx(config["model_info"]["metrics"]["valid_acc"])
    matrix = found["confusion_matrix"]
    assert sum(map(sum, matrix)) == 360
    assert sum(matrix[i][i] for i in range(10)) / 360 == pytest.approx(found["accuracy"])
    assert [row["support"] for row in found["classes"]] == [sum(row) for row in matrix]
    assert Image.open(tmp_path / "confusion_matrix.png").width > 500


# --- speed of starting ---


COMMANDS = ["", "get-data", "train", "predict", "evaluate", "scaffold", "doctor"]


@pytest.mark.parametrize("line", ["--version", *(f"{name} --help" for name in COMMANDS)])
def test_help_is_instant(line):
    script = Path(sys.executable).with_name("pytorch-course")
    before = os.times()
    done = subprocess.run([script, *line.split()], capture_output=True, text=True)
    after = os.times()
    assert done.returncode == 0 and done.stdout
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 0.3, "seconds of processor time, which other programs hardly change"


def test_light_imports():
    heavy = "torch", "torchvision", "matplotlib", "sklearn", "pandas"

    def loaded(module):
        code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
        return subprocess.check_output([sys.executable, "-c", code], text=True).strip()

    assert loaded("pytorch_course") == "[]"
    assert loaded("pytorch_course.going_modular") == "[]"
    assert loaded("pytorch_course.save_load") == "['torch']"  # all that predict needs
    assert loaded("pytorch_course.data") == "['torch']"
