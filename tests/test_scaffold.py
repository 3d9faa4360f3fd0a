"""The scripts that `scaffold` writes, in a Python that has torch, torchvision and tqdm but none of these packages."""

import importlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from shutil import copytree

import pytest
import torch
from torch import nn

from pytorch_course import training
from pytorch_course.food_shapes import write_food_shapes
from pytorch_course.save_load import load_model
from pytorch_course.scaffold import scaffold

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
        optimizer=torch.optim.Adam(network.parameters(), lr=0.001), epochs=5, device="cpu")
    utils.save_model(model=network, target_dir=target, model_name="tinyvgg_model.pth")
    print(json.dumps(history))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    "Run Python without those packages, from a folder that holds nothing else of interest."
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def run(*words, cwd=folder):
        env = {**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
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
    assert "225 training and 75 test images" in done.stdout
    return folder


@pytest.fixture
def modules(scripts, monkeypatch):
    "The scaffolded modules, imported under their own names."
    names = [path.stem for path in scripts.glob("*.py") if path.stem not in ("train", "predict", "get_data")]
    monkeypatch.syspath_prepend(scripts)
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    loaded = {name: importlib.import_module(name) for name in names}
    yield loaded
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", WITHOUT)
def test_these_packages_are_really_out_of_reach(python, name):
    assert f"No module named '{name}'" in python("-c", f"import {name}").stderr


def test_get_data_draws_what_the_library_draws_and_leaves_what_is_there(scripts, python, tmp_path):
    drawn = scripts / "data" / "food_shapes"
    expected = write_food_shapes(tmp_path / "food_shapes")
    files = sorted(path.relative_to(expected) for path in expected.rglob("*.jpg"))
    assert files == sorted(path.relative_to(drawn) for path in drawn.rglob("*.jpg"))
    assert all((drawn / file).read_bytes() == (expected / file).read_bytes() for file in files)
    before = {path: path.stat().st_mtime_ns for path in scripts.rglob("*") if "__pycache__" not in path.parts}
    done = python(scripts / "get_data.py")
    assert done.returncode == 0 and "225 training and 75 test images" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in scripts.rglob("*") if "__pycache__" not in path.parts} == before
    assert sorted(path.name for path in (scripts / "data").iterdir()) == ["food_shapes"], "no temporary folder is left"


def test_train_and_predict_on_food_shapes(scripts, python):
    flags = "--model tinyvgg --batch_size 32 --lr 0.001 --num_epochs 2 --device cpu"
    done = python(scripts / "train.py", *flags.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert "epoch 2/2" in done.stdout and (scripts / "models" / "tinyvgg.pth").is_file()
    done = python(
        scripts / "predict.py",
        "steak/0000.jpg",
        "sushi/0000.jpg",
        "--topk",
        3,
        cwd=scripts / "data" / "food_shapes" / "test",
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["steak/0000.jpg", "sushi/0000.jpg"]
    for line in lines:
        assert sorted(line.split()[1::2]) == ["pizza", "steak", "sushi"]
    _, info = load_model(scripts / "models" / "tinyvgg.pth")
    assert info.class_names == ["pizza", "steak", "sushi"] and info.transform.image_size == 64
    assert info.model_kwargs == {"input_shape": 3, "hidden_units": 10, "output_shape": 3, "image_size": 64}


@pytest.mark.parametrize("model", ["cifar10net", "neuralnetwork", "tinyvgg"])
def test_every_model_and_flag_on_a_folder_of_jpegs(scripts, python, tmp_path, model):
    folder = tmp_path / "my photos"
    for split, names in (("train", ("0000", "0001", "0002")), ("test", ("0003",))):
        for kind in ("pizza", "sushi"):
            (folder / split / f"a {kind}").mkdir(parents=True)
            for name in names:
                data = (scripts / "data" / "food_shapes" / "train" / kind / f"{name}.jpg").read_bytes()
                (folder / split / f"a {kind}" / f"{name}.JPEG").write_bytes(data)
    flags = f"--model {model} --epochs 1 --learning_rate 0.01 --batch_size 4 --hidden_units 6 --image_size 32"
    flags += " --seed 1 --num_workers 1 --device cpu"
    elsewhere = copytree(scripts, tmp_path / "scripts", ignore=lambda *_: ["data", "models", "__pycache__"])
    done = python(
        elsewhere / "train.py",
        "--train_dir",
        "my photos/train",
        "--test_dir",
        "my photos/test",
        *flags.split(),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (elsewhere / "models").iterdir()) == [f"{model}.csv", f"{model}.pth"]
    done = python(elsewhere / "predict.py", "a pizza/0003.JPEG", cwd=folder / "test")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(("a pizza/0003.JPEG  a pizza ", "a pizza/0003.JPEG  a sushi "))
    assert load_model(elsewhere / "models" / f"{model}.pth")[1].class_names == ["a pizza", "a sushi"]


def test_same_seed_same_model(scripts, python, tmp_path):
    weights = []
    for n, seed in enumerate((1, 1, 2)):
        folder = copytree(scripts, tmp_path / str(n), ignore=lambda *_: ["models", "__pycache__"])
        assert (
            python(folder / "train.py", "--epochs", 1, "--image_size", 16, "--seed", seed, "--device", "cpu").returncode
            == 0
        )
        weights.append(load_model(folder / "models" / "tinyvgg.pth")[0].state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_mistakes_end_in_one_line(python, tmp_path):
    scaffold(tmp_path / "scripts")
    (tmp_path / "notes.jpeg").write_text("no image")
    before = sorted(tmp_path.rglob("*"))
    for line, message in {
        "train.py": "run get_data.py first",
        "train.py --train_dir here --test_dir there": "no folder here",
        "train.py --epochs 0": "invalid whole_number value",
        "predict.py x.jpeg": "run train.py first",
        "predict.py x.jpeg --model_file ../notes.jpeg": "not a model file",
    }.items():
        script, *words = line.split()
        done = python("-B", tmp_path / "scripts" / script, *words, cwd=tmp_path / "scripts")
        assert done.returncode in (1, 2) and done.stdout == "", line
        assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done.stderr
    assert sorted(tmp_path.rglob("*")) == before, "nothing was left behind"


def test_the_teaching_script_runs_unchanged(scripts, python, tmp_path):
    folder = copytree(scripts, tmp_path / "scripts", ignore=lambda *_: ["models", "__pycache__"])
    (folder / "teaching.py").write_text(TEACHING_SCRIPT)
    done = python(folder / "teaching.py", folder / "data" / "food_shapes", tmp_path / "models")
    assert (done.returncode, done.stderr) == (0, "")
    history = json.loads(done.stdout.splitlines()[-1])
    assert list(history) == ["train_loss", "train_acc", "test_loss", "test_acc"]
    assert all(
        len(numbers) == 5 and all(isinstance(number, float) for number in numbers) for numbers in history.values()
    )
    assert history["train_loss"][-1] < history["train_loss"][0]
    weights = torch.load(tmp_path / "models" / "tinyvgg_model.pth", weights_only=True)
    assert weights["classifier.1.weight"].shape == (3, 10 * 13 * 13)


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


def test_losses_are_those_of_a_plain_loop(scripts, modules):
    data = scripts / "data" / "food_shapes"
    transform = modules["images"].ImageTransform(image_size=64)
    loaders = modules["data_setup"].create_dataloaders(
        train_dir=data / "train", test_dir=data / "test", transform=transform, batch_size=32, seed=0
    )
    batches, test_batches = list(loaders[0]), list(loaders[1])  # one fixed order; the last batches are smaller
    assert len(batches[-1][1]) == 225 % 32 and len(test_batches[-1][1]) == 75 % 32
    torch.manual_seed(0)
    model = modules["model_builder"].TinyVGG(input_shape=3, hidden_units=10, output_shape=3)
    twin = modules["model_builder"].TinyVGG(input_shape=3, hidden_units=10, output_shape=3)
    twin.load_state_dict(model.state_dict())
    history = modules["engine"].train(
        model=model, train_dataloader=batches, test_dataloader=test_batches, loss_fn=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=0.001), epochs=3, device="cpu",
    )
    expected = plain_loop(twin, batches, test_batches, epochs=3)
    for name, numbers in expected.items():
        torch.testing.assert_close(torch.tensor(history[name]), torch.tensor(numbers), rtol=1e-5, atol=1e-6)
    assert history["train_loss"][-1] < history["train_loss"][0]


def small_training(train, lr=0.1, epochs=2, samples=40, **options):
    "A tiny network with dropout, always the same one on the same batches; the last one is smaller."
    torch.manual_seed(0)
    X, y = torch.randn(samples, 6), torch.randint(3, (samples,))
    batches = list(zip(X.split(16), y.split(16), strict=True)) if samples else []
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    results = train(
        model,
        batches,
        batches[:2],
        torch.optim.SGD(model.parameters(), lr=lr),
        nn.CrossEntropyLoss(),
        epochs,
        "cpu",
        **options,
    )
    return results, [weights.tolist() for weights in model.state_dict().values()]


def test_engine_is_the_library_s_training(modules, capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    ours = small_training(modules["engine"].train, epochs=3)
    out, err = capfd.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert err == "", "no bar outside of a terminal"
    assert ours == small_training(training.train, epochs=3, progress=False)
    without_time = [line.rsplit("  ", 1)[0] for line in out.splitlines()]
    small_training(training.train, epochs=3)
    assert [line.rsplit("  ", 1)[0] for line in capfd.readouterr().out.splitlines()] == without_time


def test_the_bar_is_there_in_a_terminal_and_leaves_no_trace(modules, capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(modules["engine"], "tqdm", partial(modules["engine"].tqdm, mininterval=0))
    small_training(modules["engine"].train, epochs=1)
    err = capfd.readouterr().err
    assert "epoch 1/1:" in err and "\n" not in err and err.split("\r")[-2].strip() == ""


def test_mistakes_in_a_call_of_train(modules):
    train = modules["engine"].train
    assert small_training(train, epochs=0)[0] == {"train_loss": [], "train_acc": [], "test_loss": [], "test_acc": []}
    with pytest.raises(ValueError, match="epochs must be 0 or more, not -1"):
        small_training(train, epochs=-1)
    with pytest.raises(ValueError, match="loss became (nan|inf) in epoch 1/2; lower the learning rate"):
        small_training(train, lr=1e30)
    with pytest.raises(ValueError, match="no batch"):
        small_training(train, samples=0)


HEAVY = {"engine.py": ("Trainer", "heckpoint", "signal", "Stream"), "data_setup.py": ("Cache", "mmap")}


@pytest.mark.parametrize("script, heavy", HEAVY.items())
def test_the_scripts_stay_light(scripts, script, heavy):
    text = (scripts / script).read_text()
    assert len(text.splitlines()) <= 300 and not any(name in text for name in heavy)


def test_a_second_model_does_not_replace_the_first(scripts, python, tmp_path):
    folder = copytree(scripts, tmp_path / "scripts", ignore=lambda *_: ["models", "__pycache__"])
    for lr in ("0.001", "0.01"):
        done = python(folder / "train.py", "--epochs", 1, "--image_size", 16, "--lr", lr, "--device", "cpu")
        assert (done.returncode, done.stderr) == (0, "")
        if lr == "0.001":
            before = (folder / "models" / "tinyvgg.pth").read_bytes()
    assert done.stdout.endswith("tinyvgg-2.pth\n")
    names = [f"tinyvgg{number}.{ending}" for number in ("-2", "") for ending in ("csv", "pth")]
    assert sorted(path.name for path in (folder / "models").iterdir()) == names
    assert (folder / "models" / "tinyvgg.pth").read_bytes() == before
    table = (folder / "models" / "tinyvgg-2.csv").read_text().splitlines()
    assert table[0] == "epoch,train_loss,train_acc,test_loss,test_acc" and len(table) == 2


def test_nothing_is_written_when_something_fails(tmp_path, monkeypatch):
    write, written = Path.write_text, []

    def full_disk(self, *args, **kwargs):
        written.append(self)
        if len(written) == 5: raise OSError(28, "No space left on device")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError):
        scaffold(tmp_path / "deep" / "scripts")
    assert len(written) == 5 and list(tmp_path.iterdir()) == []


def test_the_command(command, tmp_path):
    done = command("scaffold", "my scripts")
    assert (done.status, done.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "my scripts").iterdir()) == sorted(
        ["README.md", "requirements.txt", "get_data.py", "train.py", "predict.py", "utils.py", "data_setup.py",
         "model_builder.py", "engine.py", "files.py", "food_shapes.py", "images.py", "save_load.py",
         "tensors.py", "weights_files.py"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.py")}
    done = command("scaffold", "my scripts")
    assert done.status == 2 and done.err.count("\n") == 1 and "is not an empty folder" in done.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.py")} == before
    (tmp_path / "here").mkdir()
    done = command("scaffold", ".", cwd=tmp_path / "here")  # the shell must not stand in a folder that was replaced
    assert done.status == 0 and (tmp_path / "here" / "train.py").is_file()


def test_scaffold_needs_no_torch(tmp_path):
    code = f"import sys; from pytorch_course.scaffold import scaffold; scaffold({str(tmp_path / 'new')!r})"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
