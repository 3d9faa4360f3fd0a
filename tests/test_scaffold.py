"""The scripts that `scaffold` writes, in a Python that has torch, torchvision and tqdm but none of these packages."""

import ast
import importlib
import json
import math
import os
import runpy
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pytorch_course import food_shapes, training
from pytorch_course.images import ImageTransform
from pytorch_course.save_load import load_model, predict_images
from pytorch_course.scaffold import scaffold

SCRIPTS = ["train", "engine", "model_builder", "data_setup", "utils", "predict", "get_data"]
WITHOUT = ("pytorch_course", "sklearn", "requests", "safetensors", "pandas", "matplotlib", "torchinfo")
SITECUSTOMIZE = f"""import sys
class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {WITHOUT} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
# The calls of the field's best-known teaching script: modules by name, arguments by keyword.
TEACHING_SCRIPT = """
import json
import sys
import torch
from torchvision import transforms
import data_setup, engine, model_builder, utils

if __name__ == "__main__":
    torch.manual_seed(42)
    images, target = sys.argv[1:]
    to_tensor = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor()])
    train_loader, test_loader, names = data_setup.create_dataloaders(
        train_dir=images + "/train", test_dir=images + "/test", transform=to_tensor, batch_size=32)
    network = model_builder.TinyVGG(input_shape=3, hidden_units=10, output_shape=len(names)).to("cpu")
    history = engine.train(
        model=network, train_dataloader=train_loader, test_dataloader=test_loader, loss_fn=torch.nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(network.parameters(), lr=0.001), epochs=2, device="cpu")
    utils.save_model(model=network, target_dir=target, model_name="tinyvgg_model.pth")
    print(json.dumps(history))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    "Run Python without those packages, from a folder that holds nothing else of interest."
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def run(*words, cwd=folder):
        env = {**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.fixture(scope="module")
def scripts(tmp_path_factory, python):
    "A scaffolded folder with its data set drawn."
    folder = tmp_path_factory.mktemp("scaffolded") / "scripts"
    scaffold(folder)
    done = python(folder / "get_data.py")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "600 training and 150 test images" in done.stdout
    return folder


@contextmanager
def imported(folder):
    "The modules of a scaffolded folder, imported under their own names: name -> module."
    for name in SCRIPTS:
        sys.modules.pop(name, None)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield {name: importlib.import_module(name) for name in SCRIPTS}
    finally:
        sys.path.remove(str(folder))
        for name in SCRIPTS:
            sys.modules.pop(name, None)


@pytest.fixture
def modules(scripts):
    with imported(scripts) as modules:
        yield modules


class Project:
    "A scaffolded folder with few small images, whose programs run in this process."
    def __init__(self, folder, modules):
        self.folder, self.modules = folder, modules

    def __call__(self, line):
        "Run `main` of a program; the exit status, or the error that it raises."
        script, *words = line.split()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [script, *words])
            try:
                return self.modules[script.removesuffix(".py")].main() or 0
            except SystemExit as exit:
                return exit.code

    def run(self, script, *words):
        "Run a whole program; its exit status."
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [script, *map(str, words)])
            try:
                runpy.run_path(str(self.folder / script), run_name="__main__")
            except SystemExit as exit:
                return exit.code


def write_photos(folder, train=12, test=6, classes=("blue", "red")):
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for k, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for n in range(count):
                pixels = rng.integers(0, 120, (24, 20, 3)).astype(np.uint8)
                pixels[..., k] += 80
                Image.fromarray(pixels).save(folder / split / name / f"{n}.png")


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    scaffold(folder)
    write_photos(folder / "data")
    with imported(folder) as modules:
        yield Project(folder, modules)


SMALL = "train.py --image_size 16 --hidden_units 4 --batch_size 8 --device cpu --lr 0.01"


def weights_of(run):
    return load_model(run)[0].state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_these_packages_are_really_out_of_reach(python):
    code = f"import importlib\nfor name in {WITHOUT}:\n    try: importlib.import_module(name)"
    code += "\n    except ModuleNotFoundError as error: print(error)"
    assert python("-c", code).stdout.splitlines() == [f"No module named '{name}'" for name in WITHOUT]


# short, from the lessons


def test_short_enough_for_one_sitting_and_each_file_names_its_lesson(scripts):
    texts = {name: (scripts / f"{name}.py").read_text() for name in SCRIPTS}
    assert sorted(path.stem for path in scripts.glob("*.py")) == sorted(SCRIPTS)
    assert sum(len(text.splitlines()) for text in texts.values()) <= 600
    notebooks = Path(__file__).resolve().parent.parent / "nbs"
    for name, text in texts.items():
        note = ast.get_docstring(ast.parse(text))
        assert "pytorch_course" in note, name
        words = note.replace("(", " ").replace(",", " ").replace(";", " ").split()
        lessons = [word.removeprefix("nbs/").rstrip(".)") for word in words if ".ipynb" in word]
        assert lessons and all((notebooks / lesson).is_file() for lesson in lessons), (name, lessons)
        assert max(map(len, text.splitlines())) <= 120, name


def test_the_networks_are_those_of_the_lesson(scripts):
    script = (scripts / "model_builder.py").read_text()
    lesson = (Path(training.__file__).parent / "model.py").read_text()
    for node in ast.parse(lesson).body:
        if getattr(node, "name", None) in ("_conv_block", "TinyVGG", "Cifar10Net"):
            assert ast.get_source_segment(lesson, node) in script


def test_images_become_the_tensors_of_the_library(modules, tmp_path):
    rng = np.random.default_rng(0)
    gray = Image.fromarray(rng.integers(0, 65536, (30, 40)).astype(np.uint16))
    color = Image.fromarray(rng.integers(0, 256, (50, 33, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    gray.save(tmp_path / "gray.png")
    color.save(tmp_path / "color.jpg", exif=exif)
    color.convert("P").save(tmp_path / "palette.gif")
    from pytorch_course.images import open_image
    for path in tmp_path.iterdir():
        for options in ({}, {"channels": 1}, {"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}):
            transform = modules["data_setup"].make_transform(20, **options)
            X = transform(modules["data_setup"].open_image(path))
            torch.testing.assert_close(X, ImageTransform(20, **options)(open_image(path)))
    Image.fromarray(rng.random((4, 4)).astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="cannot read .*float.tiff: pixels of mode F"):
        modules["data_setup"].open_image(tmp_path / "float.tiff")


def test_only_training_images_are_augmented(modules, tmp_path):
    write_photos(tmp_path, 1, 1)
    plain, random = (modules["data_setup"].make_transform(16, augment=augment) for augment in (False, True))
    train_dataloader, test_dataloader, _ = modules["data_setup"].create_dataloaders(
        tmp_path / "train", tmp_path / "test", random, 2, test_transform=plain)
    first, second = (next(iter(test_dataloader))[0] for _ in range(2))
    assert torch.equal(first, second)
    samples = [train_dataloader.dataset[0][0] for _ in range(20)]
    assert len({sample.numpy().tobytes() for sample in samples}) > 5


def plain_loop(model, batches, test_batches, epochs):
    "Written out, with nothing of ours: every loss and every right answer counts once per sample."
    loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.001)
    history = {"train_loss": [], "train_acc": [], "test_loss": [], "test_acc": []}
    for _ in range(epochs):
        for split, part in (("train", batches), ("test", test_batches)):
            model.train(split == "train")
            total, right = 0.0, 0
            seen = 0
            for X, y in part:
                with torch.set_grad_enabled(split == "train"):
                    logits = model(X)
                    loss = loss_fn(logits, y)
                if split == "train":
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                total += loss.item() * len(y)
                right += (logits.argmax(dim=1) == y).sum().item()
                seen += len(y)
            history[f"{split}_loss"].append(total / seen)
            history[f"{split}_acc"].append(right / seen)
    return history


def test_losses_are_those_of_the_lesson_and_of_a_plain_loop(modules, tmp_path):
    write_photos(tmp_path, 11, 5)
    transform = modules["data_setup"].make_transform(16)
    loaders = modules["data_setup"].create_dataloaders(tmp_path / "train", tmp_path / "test", transform, 8)
    batches, test_batches = list(loaders[0]), list(loaders[1])  # one fixed order; the last batches are smaller
    assert len(batches[-1][1]) == 22 % 8 and len(test_batches[-1][1]) == 10 % 8
    model = modules["model_builder"].TinyVGG(input_shape=3, hidden_units=4, output_shape=2, image_size=16)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    histories = [plain_loop(model, batches, test_batches, 3)]
    for train in (modules["engine"].train, partial(training.train, progress=False)):
        model.load_state_dict(start)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
        histories.append(train(model, batches, test_batches, optimizer, nn.CrossEntropyLoss(), 3, "cpu"))
    for name, numbers in histories[0].items():
        np.testing.assert_allclose(histories[1][name], numbers, rtol=1e-6)
        np.testing.assert_allclose(histories[1][name], histories[2][name], rtol=1e-12)


def small_training(train, lr=0.1, epochs=2, samples=40, **options):
    "A tiny network, always the same one on the same batches; the last one is smaller."
    torch.manual_seed(0)
    X, y = torch.randn(samples, 6), torch.randint(3, (samples,))
    batches = list(zip(X.split(16), y.split(16), strict=True)) if samples else []
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return train(model, batches, batches[:2], optimizer, nn.CrossEntropyLoss(), epochs, "cpu", **options)


def test_the_bar_is_there_in_a_terminal_and_leaves_no_trace(modules, capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    small_training(modules["engine"].train)
    out, err = capfd.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/2", "epoch 2/2"] and err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(modules["engine"], "tqdm", partial(modules["engine"].tqdm, mininterval=0))
    small_training(modules["engine"].train, epochs=1)
    err = capfd.readouterr().err
    assert "epoch 1/1:" in err and "\n" not in err and err.split("\r")[-2].strip() == ""


def test_mistakes_in_a_call_of_train(modules):
    train = modules["engine"].train
    with pytest.raises(ValueError, match="loss became (nan|inf) in epoch 1/2; lower the learning rate"):
        small_training(train, lr=1e30)
    with pytest.raises(ValueError, match="no batch"):
        small_training(train, samples=0)


# the programs


def test_get_data_leaves_what_is_there(scripts, python):
    before = {path: path.stat().st_mtime_ns for path in (scripts / "data").rglob("*")}
    done = python(scripts / "get_data.py")
    assert done.returncode == 0 and "600 training and 150 test images" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (scripts / "data").rglob("*")} == before
    assert sorted(path.name for path in (scripts / "data").iterdir()) == ["test", "train"]  # no temporary folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_get_data_says_what_to_do_when_half_of_it_is_there(project, capsys, split):
    data = project.folder / "data"
    (data / split).rename(project.folder / "kept")
    assert project.run("get_data.py") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"{data} lacks train or test images; move it away" in err
    data.rename(project.folder / "moved")
    assert project.run("get_data.py") is None
    assert "600 training and 150 test images" in capsys.readouterr().out


def test_food_shapes_only_on_request(python, tmp_path):
    written = scaffold(tmp_path / "scripts", with_food_shapes=True)
    assert written[-1].name == "food_shapes.py" and "2_data/23_food_shapes.ipynb" in written[-1].read_text()
    code = "from food_shapes import draw_food; draw_food('pizza', 42, 32, 6).save('../pizza.png')"
    done = python("-c", code, cwd=tmp_path / "scripts")
    assert (done.returncode, done.stderr) == (0, "")
    assert np.array_equal(Image.open(tmp_path / "pizza.png"), food_shapes.draw_food("pizza", 42, 32, 6))
    text = written[-1].read_text()
    written[-1].write_text(text.replace("= 75", "= 2").replace("= 25", "= 1"))  # fewer images, to save time
    assert "6 training and 3 test images" in python(written[-2]).stdout
    drawn = tmp_path / "scripts" / "data" / "test"
    assert sorted(path.name for path in drawn.iterdir()) == ["pizza", "steak", "sushi"]


def test_train_and_predict(scripts, python):
    flags = "--model tinyvgg --batch_size 32 --lr 0.001 --num_epochs 2 --device cpu"
    done = python(scripts / "train.py", *flags.split())
    assert (done.returncode, done.stderr) == (0, "")
    run = scripts / "runs" / "tinyvgg"
    assert "epoch 2/2" in done.stdout and f"saved {run / 'model.pt'}: epoch 2" in done.stdout
    images = ["circle/0000.jpg", "square/0000.jpg"]
    done = python(scripts / "predict.py", *images, "--topk", 3, cwd=scripts / "data" / "test")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == images
    model, info = load_model(run)  # the library reads the file, and predicts the same
    assert info.model_kwargs == {"input_shape": 3, "hidden_units": 10, "output_shape": 3, "image_size": 64}
    results = predict_images(model, info, [scripts / "data" / "test" / image for image in images], topk=3)
    for line, result in zip(lines, results, strict=True):
        expected = [f"{found['class']} {found['probability']:.1%}" for found in result["predictions"]]
        assert line.split("  ")[1:] == expected


def test_the_model_learns_what_get_data_draws(scripts, modules):
    transform = modules["data_setup"].make_transform(32)
    data = scripts / "data"
    loaders = modules["data_setup"].create_dataloaders(data / "train", data / "test", transform, 32)
    torch.manual_seed(0)
    model = modules["model_builder"].TinyVGG(3, 10, 3, image_size=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    results = modules["engine"].train(model, *loaders[:2], optimizer, nn.CrossEntropyLoss(), 6, "cpu", seed=0)
    assert max(results["test_acc"]) > 0.7


def test_a_second_run_does_not_replace_the_first(project):
    assert project(f"{SMALL} --epochs 2") == 0
    runs = project.folder / "runs"
    before = {path: path.read_bytes() for path in (runs / "tinyvgg").iterdir()}
    assert sorted(path.name for path in before) == ["checkpoint.pt", "config.json", "history.csv", "model.pt"]
    with pytest.raises(ValueError, match="the run diverged"):
        project(f"{SMALL} --lr 1000 --epochs 1")
    assert not (runs / "tinyvgg-2" / "model.pt").exists()
    assert project(f"{SMALL} --model cifar10net --epochs 1") == 0
    assert sorted(path.name for path in runs.iterdir()) == ["cifar10net", "tinyvgg", "tinyvgg-2"]
    assert {path: path.read_bytes() for path in (runs / "tinyvgg").iterdir()} == before
    table = (runs / "tinyvgg" / "history.csv").read_text().splitlines()
    assert table[0] == "epoch,train_loss,train_acc,test_loss,test_acc" and len(table) == 3


def test_same_seed_same_model(project):
    for seed in (1, 1, 2):
        project(f"{SMALL} --epochs 1 --seed {seed} --augment")
    one, again, other = (weights_of(project.folder / "runs" / f"tinyvgg{number}") for number in ("", "-2", "-3"))
    assert same(one, again) and not same(one, other)


WORKERS_AND_DROPOUT = "--num_workers 1 --model cifar10net --lr 0.0001"


@pytest.mark.parametrize(
    "flags", ["", "--augment --schedule cosine", "--augment --schedule onecycle", WORKERS_AND_DROPOUT])
def test_a_resumed_run_is_the_one_that_was_never_stopped(project, capsys, monkeypatch, flags):
    line = f"{SMALL} --epochs 4 {flags}"
    assert project(line) == 0
    test_step, calls = project.modules["engine"].test_step, []

    def interrupted(*words):
        calls.append(words)
        if len(calls) == 3: raise KeyboardInterrupt
        return test_step(*words)

    monkeypatch.setattr(project.modules["engine"], "test_step", interrupted)
    capsys.readouterr()
    assert project(line) == 130
    out, err = capsys.readouterr()
    command = err.strip().splitlines()[-1].partition("go on with: python ")[2]
    assert out.count("epoch ") == 2 and command.startswith("train.py --resume")
    assert project(command) == 0
    assert "epoch 3/4" in capsys.readouterr().out
    whole, resumed = sorted((project.folder / "runs").iterdir())
    assert (resumed / "history.csv").read_text() == (whole / "history.csv").read_text()
    assert same(weights_of(resumed), weights_of(whole))
    states = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (whole, resumed)]
    assert same(states[0]["model"], states[1]["model"]) and states[0]["scheduler"] == states[1]["scheduler"]


def test_a_run_that_stopped_in_its_first_epoch_can_go_on(project, monkeypatch):
    def interrupt(*words):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(project.modules["engine"], "train_step", interrupt)
        assert project(f"{SMALL} --epochs 1") == 130
    assert project(f"train.py --resume {project.folder / 'runs' / 'tinyvgg'}") == 0
    assert weights_of(project.folder / "runs" / "tinyvgg")


def test_resume_takes_more_epochs_and_moved_data_but_no_other_settings(project, capsys):
    assert project(f"{SMALL} --epochs 1") == 0
    run = project.folder / "runs" / "tinyvgg"
    (project.folder / "data").rename(project.folder / "moved")
    moved = f"--train_dir {project.folder}/moved/train --test_dir {project.folder}/moved/test"
    assert project(f"train.py --resume {run} --epochs 2 {moved}") == 0
    assert len((run / "history.csv").read_text().splitlines()) == 3
    assert project(f"train.py --resume {run} --lr 0.1") == 2
    assert project(f"train.py --resume {run} --model cifar10net") == 2
    assert project(f"train.py --resume {project.folder}") == 2
    err = capsys.readouterr().err
    for message in ("leave out --learning_rate", "leave out --model", "--resume needs the folder of a run"):
        assert message in err
    write_photos(project.folder / "other", 2, 2, ("cat", "dog"))
    other = f"--train_dir {project.folder}/other/train --test_dir {project.folder}/other/test"
    with pytest.raises(ValueError, match=r"classes of the run are \['blue', 'red'\], but these images have \['cat'"):
        project(f"train.py --resume {run} {other}")


def test_a_checkpoint_that_cannot_be_resumed(project, capsys):
    assert project(f"{SMALL} --epochs 1") == 0
    run, builder = project.folder / "runs" / "tinyvgg", project.folder / "model_builder.py"
    before = {path: path.read_bytes() for path in run.iterdir()}
    builder.write_text(builder.read_text().replace("_conv_block(input_shape, hidden_units)", "nn.Identity()"))
    capsys.readouterr()

    def resume():
        "Resume in a process that knows the new model; the error."
        with imported(project.folder):
            assert project.run("train.py", "--resume", run, "--epochs", 2) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"train.py: error: {run / 'checkpoint.pt'} ") and err.count("\n") == 1, err
        return err

    error = resume()
    assert "model_builder.py was changed; start a new run. Error" in error and "Unexpected key" in error
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    checkpoint = run / "checkpoint.pt"
    for length in (0, 100, len(before[checkpoint]) // 2):
        checkpoint.write_bytes(before[checkpoint][:length])
        assert "is damaged, or" in resume()


def test_the_best_epoch_is_kept(project, monkeypatch, capsys):
    states, losses = [], iter([0.5, 0.2, 0.9])

    def measured(model, *words):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(losses), 0.75

    monkeypatch.setattr(project.modules["engine"], "test_step", measured)
    assert project(f"{SMALL} --epochs 3") == 0
    assert "epoch 2, test accuracy 75.0%" in capsys.readouterr().out
    model, info = load_model(project.folder / "runs" / "tinyvgg")
    assert same(model.state_dict(), states[1]) and info.metrics["test_loss"] == 0.2
    last = torch.load(project.folder / "runs" / "tinyvgg" / "checkpoint.pt", weights_only=True)["model"]
    assert same(last, states[2])


def test_a_killed_save_leaves_the_old_file(modules, tmp_path, monkeypatch):
    utils = modules["utils"]
    utils.save_checkpoint(tmp_path / "checkpoint.pt", {}, results=1)

    def killed(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(OSError):
        utils.save_checkpoint(tmp_path / "checkpoint.pt", {}, results=2)
    assert utils.load_checkpoint(tmp_path / "checkpoint.pt", {}) == {"results": 1}


OWN_MODELS = """
class Mine(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * in_channels, num_classes))

    def forward(self, x):
        return self.layers(x)

def small(output_shape, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, output_shape))

def deep(num_classes, depth):
    return nn.Identity()

def blind():
    return nn.Identity()

MODELS |= {"mine": Mine, "small": small, "deep": deep, "blind": blind}
"""


def test_own_models(project, capsys):
    path = project.folder / "model_builder.py"
    path.write_text(path.read_text() + OWN_MODELS)
    image = project.folder / "data" / "test" / "red" / "0.png"
    with imported(project.folder) as project.modules:
        for name in ("mine", "small"):
            assert project(f"{SMALL} --model {name} --epochs 1") == 0
            capsys.readouterr()
            assert project(f"predict.py {image} --model_file {project.folder / 'runs' / name}") == 0
            assert capsys.readouterr().out.startswith(f"{image}  ")
        with pytest.raises(ValueError, match="'deep': missing a required argument: 'depth'; give it a default"):
            project(f"{SMALL} --model deep")
        with pytest.raises(ValueError, match="'blind' needs a parameter output_shape or num_classes"):
            project(f"{SMALL} --model blind")
        del project.modules["model_builder"].MODELS["mine"]
        with pytest.raises(ValueError, match="does not fit model_builder.py; was 'mine' changed or removed"):
            project(f"predict.py {image} --model_file {project.folder / 'runs' / 'mine'}")


def test_predict_takes_folders_and_names_what_it_cannot_read(project, capsys):
    test = project.folder / "data" / "test"
    with pytest.raises(FileNotFoundError, match="run train.py first"):
        project(f"predict.py {test}")
    assert project(f"{SMALL} --epochs 1") == 0
    capsys.readouterr()
    (test / "blue" / ".hidden.png").write_text("no image")
    assert project(f"predict.py {test}") == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    (test / "blue" / "bad.png").write_text("no image")
    images = test / "blue" / "bad.png", project.folder / "nope.png", test / "red" / "0.png"
    assert project.run("predict.py", *images) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and "bad.png" in err and "nope.png" in err and len(err.splitlines()) == 2


def test_a_damaged_image_in_an_own_folder_read_by_a_worker(project, python, tmp_path):
    photos = tmp_path / "my photos"
    write_photos(photos, 3, 1, ("a cat", "a dog"))
    (photos / "train" / ".ipynb_checkpoints").mkdir()
    bad = photos / "train" / "a cat" / "0.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:100])
    line = ["--train_dir", "my photos/train", "--test_dir", "my photos/test", "--epochs", 1, "--num_workers", 1]
    done = python(project.folder / "train.py", *line, "--image_size", 16, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "train.py: error: " in done.stderr and f"cannot read {Path('my photos/train/a cat/0.png')}" in done.stderr
    bad.write_bytes(content)
    assert not (project.folder / "runs").exists(), "the images are checked first"
    assert python(project.folder / "train.py", *line, "--image_size", 16, cwd=tmp_path).returncode == 0
    assert load_model(project.folder / "runs" / "tinyvgg")[1].class_names == ["a cat", "a dog"]


def test_mistakes_end_in_one_line(project, capsys):
    (project.folder / "data").rename(project.folder / "elsewhere")
    for line, message in {
        "train.py": "run get_data.py first",
        "train.py --train_dir elsewhere": "no folder elsewhere",
        "predict.py x.png": "run train.py first",
        f"predict.py x.png --model_file {project.folder}/README.md": "not a model file",
    }.items():
        assert project.run(*line.split()) == 2
        out, err = capsys.readouterr()
        assert err.startswith(f"{line.split()[0]}: error: ") and message in err, err
        assert err.count("\n") == 1 and out == ""
    assert project("train.py --epochs 0") == 2
    assert "invalid whole_number value: '0'" in capsys.readouterr().err.splitlines()[-1]
    assert project("predict.py x.png --topk -1") == 2
    assert "invalid whole_number value: '-1'" in capsys.readouterr().err.splitlines()[-1]


def test_mistakes_leave_no_run(project, tmp_path):
    for flags, message in {
        "--device nix": "device 'nix' is not available; the best one here is",
        "--device meta": "device 'meta' is not available",
        "--train_dir here --test_dir there": "no folder here",
        f"--train_dir {tmp_path}/project/data/train/red": "no class folders in",
        f"--test_dir {tmp_path}/project/data": r"classes \['blue', 'red', 'test', 'train'\] are in only one of",
        "--lr -1": "Invalid learning rate: -1.0",
        "--image_size 8": "at least 16 pixels",
    }.items():
        with pytest.raises((ValueError, OSError), match=message):
            project(f"train.py {flags}")
    assert not (project.folder / "runs").exists()


@pytest.mark.skipif(os.name == "nt", reason="a signal of POSIX")
def test_ctrl_c(scripts, tmp_path):
    folder = copytree(scripts, tmp_path / "my scripts", ignore=lambda *_: ["runs", "__pycache__"])
    line = [sys.executable, folder / "train.py", "--epochs", "1000", "--image_size", "16", "--device", "cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, **pipes, text=True) as process:
        while not process.stdout.readline().startswith("epoch 2/"):  # then the first one is saved
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in err
    assert err.strip().startswith("interrupted; go on with: python '") and err.count("\n") == 2
    content = torch.load(folder / "runs" / "tinyvgg" / "checkpoint.pt", weights_only=True)
    assert all(math.isfinite(loss) for loss in content["results"]["train_loss"])


def test_the_teaching_script_runs_unchanged(project, capsys):
    write_photos(project.folder / "more", 30, 10, ("pizza", "steak", "sushi"))
    (project.folder / "teaching.py").write_text(TEACHING_SCRIPT)
    assert project.run("teaching.py", project.folder / "more", project.folder / "models") is None
    history = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(history) == ["train_loss", "train_acc", "test_loss", "test_acc"]
    assert all(len(numbers) == 2 and all(isinstance(n, float) for n in numbers) for numbers in history.values())
    assert history["train_loss"][-1] < history["train_loss"][0]
    weights = torch.load(project.folder / "models" / "tinyvgg_model.pth", weights_only=True)
    assert weights["classifier.1.weight"].shape == (3, 10 * 13 * 13)


# the folder


def test_the_packages_are_those_of_the_library(project):
    lines = (project.folder / "requirements.txt").read_text().split()
    assert {line.partition(">")[0] for line in lines} == {"torch", "torchvision", "numpy", "pillow", "tqdm"}
    settings = Path(__file__).resolve().parent.parent / "settings.ini"
    assert {*lines} <= {*settings.read_text().partition("\nrequirements =")[2].partition("\n")[0].split()}


def test_the_command(command, tmp_path):
    done = command("scaffold", "my scripts")
    assert (done.status, done.err) == (0, "")
    expected = ["README.md", "requirements.txt", *(f"{name}.py" for name in SCRIPTS)]
    assert sorted(path.name for path in (tmp_path / "my scripts").iterdir()) == sorted(expected)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.py")}
    done = command("scaffold", "my scripts")
    assert done.status == 2 and done.err.count("\n") == 1 and "is not an empty folder" in done.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.py")} == before
    (tmp_path / "here").mkdir()  # the shell must not stand in a folder that was replaced
    done = command("scaffold", ".", "--with_food_shapes", cwd=tmp_path / "here")
    assert done.status == 0 and (tmp_path / "here" / "food_shapes.py").is_file()


def test_scaffold_needs_no_torch(tmp_path):
    code = f"import sys; from pytorch_course.scaffold import scaffold; scaffold({str(tmp_path / 'new')!r})"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
