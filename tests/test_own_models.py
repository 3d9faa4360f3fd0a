"""Own models, models of torchvision and pretrained weights at the command. Nothing here uses the network."""
import contextlib
import functools
import hashlib
import http.server
import io
import json
import threading
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from pytorch_course.going_modular import main
from pytorch_course.images import ImageTransform
from pytorch_course.model import build_model, register_model
from pytorch_course.save_load import ModelInfo, load_model, save_model
from pytorch_course.transfer_weights import find_head, freeze, load_weights

CODE = '''
from pathlib import Path
from torch import nn
import parts

Path(__file__).with_name("was_run").touch()

class Small(nn.Module):
    def __init__(self, channels, num_classes, hidden_units=4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, hidden_units, 3), nn.BatchNorm2d(hidden_units), parts.activation(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(hidden_units, num_classes)
        self.register_buffer("scale", self.head.weight.new_ones(()), persistent=False)
    def forward(self, x):
        return self.head(self.features(x)) * self.scale

class Segment(nn.Module):
    def __init__(self, channels):
        super().__init__()
'''


def run(*words):
    "A command in this process: exit status, what it printed, its error line."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A folder with a Python file of models, and images of two colors."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models.py").write_text(CODE)
    (tmp_path / "parts.py").write_text("from torch.nn import ReLU as activation\n")
    for split in ("train", "test"):
        for number, name in enumerate(("blue", "red")):
            folder = tmp_path / "colors" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40), (200 * number, 10 * i, 200 - 200 * number)).save(folder / f"{i}.png")
    return tmp_path


def train(*words):
    done = run("train", "--data", "colors", "--epochs", 1, "--batch_size", 4, "--image_size", 32, *words)
    assert done.status == 0, done.err
    return done


def test_a_class_of_ones_own_file_is_trained_saved_and_used(project):
    done = train("--model", "my_models.py:Small", "--hidden_units", 5)
    folder = project / "runs" / "colors-Small"
    assert (folder / "model.pt").is_file(), done.out
    info = json.loads((folder / "config.json").read_text())["model_info"]
    assert info["architecture"] == "my_models.py:Small"
    assert info["model_kwargs"] == {"channels": 3, "num_classes": 2, "hidden_units": 5}
    image = project / "colors" / "test" / "red" / "0.png"
    (project / "was_run").unlink()
    refused = run("predict", folder, image)
    assert refused.status == 2 and "--model_code my_models.py" in refused.err and refused.err.count("\n") == 1
    assert not (project / "was_run").exists()  # loading runs no code that only the file names
    done = run("predict", folder, image, "--model_code", "my_models.py")
    assert done.status == 0 and "0.png" in done.out, done.err
    done = run("evaluate", folder, "--data", "colors", "--model_code", "my_models.py", "--plot", project / "cm.png")
    assert done.status == 0, done.err


def test_a_model_file_never_runs_code_by_itself(project):
    kwargs = {"channels": 3, "num_classes": 2}
    info = ModelInfo("my_models.py:Small", kwargs, ["a", "b"], ImageTransform(32, 3))
    model = build_model("my_models.py:Small", **kwargs)
    path = save_model(model, project / "sent", "model.pt", info)
    (project / "was_run").unlink()
    evil = project / "sent" / "my_models.py"  # beside the model file, where it was unpacked
    evil.write_text("raise SystemExit('the file was run')")
    with pytest.raises(ValueError, match="needs Small of my_models.py, and never runs code itself; if you trust it"):
        load_model(path)
    assert not (project / "was_run").exists()
    evil.unlink()
    again, known = load_model(path, code="my_models.py")
    assert type(again).__name__ == "Small" and known.class_names == ["a", "b"]
    X = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(X), model.eval()(X))  # with the buffer that is not saved
    with pytest.raises(ValueError, match="has no class 'Small'"):
        load_model(path, code="parts.py")
    with pytest.raises(ValueError, match="no file elsewhere.py"):
        load_model(path, code="elsewhere.py")
    (project / "my_models.py").rename(evil)
    assert load_model(path.parent, code="my_models.py")[1].class_names == ["a", "b"]  # found beside the model file


def test_a_class_that_was_registered_in_a_script(project):
    (project / "nets.py").write_text("from torch import nn\nclass MyRes(nn.Linear):\n    pass\n")
    class MyRes(torch.nn.Sequential):
        def __init__(self, num_classes):
            super().__init__(torch.nn.Flatten(), torch.nn.Linear(12, num_classes))

    register_model(MyRes)
    path = save_model(MyRes(2), project, "m.pt", ModelInfo("myres", {"num_classes": 2}, ["a", "b"], ImageTransform(2)))
    from pytorch_course import model
    del model._MODELS["myres"]  # another program
    with pytest.raises(ValueError, match="unknown model 'myres'.*FILE.py:CLASS"):
        load_model(path)
    code = "from torch import nn\nclass MyRes(nn.Sequential):\n    def __init__(self, num_classes):\n"
    (project / "nets.py").write_text(code + "        super().__init__(nn.Flatten(), nn.Linear(12, num_classes))\n")
    assert len(load_model(path, code="nets.py")[0]) == 2


def test_errors_of_own_models_are_one_line(project):
    for name, expected in {
        "my_models.py:Large": "my_models.py has no class 'Large'; it has",
        "missing.py:Small": "no file missing.py; an own model is FILE.py:CLASS",
        "my_models.py:Segment": "does not classify images: its __init__ must accept num_classes",
        "torchvision:resnet19": "torchvision has no 'resnet19'",
        "resnet18": "torchvision:resnet18",
    }.items():
        done = run("train", "--data", "colors", "--model", name)
        assert done.status == 2 and expected in done.err and done.err.count("\n") == 1, (name, done.err)
    done = run("train", "--data", "colors", "--pretrained")
    assert done.status == 2 and "no published weights for tinyvgg; name a model file" in done.err
    done = run("train", "--data", "colors", "--freeze")
    assert done.status == 2 and "--freeze" in done.err and "--pretrained" in done.err


def test_resuming_runs_own_code_only_when_asked(project):
    train("--model", "my_models.py:Small", "--out", "one")
    (project / "was_run").unlink()
    done = run("train", "--resume", "one", "--epochs", 2)
    assert done.status == 2 and "--model my_models.py:Small" in done.err
    assert not (project / "was_run").exists()
    done = run("train", "--resume", "one", "--epochs", 2, "--model", "my_models.py:Small")
    assert done.status == 0 and "epoch 2/2" in done.out, done.err


def test_torchvision_pretrained_by_ones_own_run_and_frozen(project):
    done = train("--model", "torchvision:resnet18", "--out", "first")
    assert "weights" not in done.out
    image = project / "colors" / "test" / "red" / "0.png"
    assert run("predict", "first", image).status == 0  # nothing but torchvision is needed
    (project / "colors" / "train" / "red").rename(project / "colors" / "train" / "rose")
    (project / "colors" / "test" / "red").rename(project / "colors" / "test" / "rose")
    words = ("--model", "torchvision:resnet18", "--pretrained", "first", "--out", "second")
    done = train(*words, "--freeze")
    assert "120 tensors from first" in done.out and "new: fc.weight, fc.bias" in done.out
    assert "only 1,026 parameters are trained" in done.out
    first, second = (load_model(name)[0].state_dict() for name in ("first", "second"))
    changed = [name for name in first if not torch.equal(first[name], second[name])]
    assert changed == ["fc.weight", "fc.bias"]  # not even the running averages of batch normalization
    done = run("train", "--resume", "second", "--epochs", 2)
    assert done.status == 0, done.err
    third = load_model("second")[0].state_dict()
    assert [name for name in first if not torch.equal(first[name], third[name])] == ["fc.weight", "fc.bias"]


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    "A server on this machine that has the published weights of a network; their preparation is unusual."
    import torchvision.models

    folder = tmp_path / "served"
    folder.mkdir()
    weights = torchvision.models.resnet18(weights=None, num_classes=1000).state_dict()
    torch.save(weights, folder / "resnet.pth", _use_new_zipfile_serialization=False)  # as some of theirs
    digits = hashlib.sha256((folder / "resnet.pth").read_bytes()).hexdigest()[:8]
    (folder / "resnet.pth").rename(folder / f"resnet18-{digits}.pth")
    preset = SimpleNamespace(crop_size=[48], mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    url = f"https://download.example/models/resnet18-{digits}.pth"
    published = SimpleNamespace(DEFAULT=SimpleNamespace(url=url, transforms=lambda: preset))
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: published)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PYTORCH_COURSE_MIRROR", f"http://127.0.0.1:{server.server_port}")
    yield SimpleNamespace(file=folder / f"resnet18-{digits}.pth", weights=weights)
    server.shutdown()
    server.server_close()


def test_published_weights_come_from_the_mirror_with_their_normalization(project, mirror, monkeypatch):
    words = ("--data", "colors", "--model", "torchvision:resnet18", "--pretrained", "--epochs", 1)
    good = mirror.file.read_bytes()
    mirror.file.write_bytes(good[:-1] + b"!")
    done = run("train", *words)
    assert done.status == 2 and "the server sent another file: sha256 is" in done.err, done.err
    mirror.file.write_bytes(good)
    done = run("train", *words, "--freeze", "--out", "run")
    assert done.status == 0 and "120 tensors from" in done.out, done.err
    model, info = load_model("run")
    assert info.transform == ImageTransform(48, 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert torch.equal(model.conv1.weight, mirror.weights["conv1.weight"])
    monkeypatch.setenv("PYTORCH_COURSE_MIRROR", "http://127.0.0.1:9")  # nobody answers there
    assert run("train", *words, "--out", "again").status == 0  # fetched once
    monkeypatch.setenv("TORCH_HOME", str(project / "empty"))
    done = run("train", *words)
    assert done.status == 2 and done.err.count("\n") == 1, done.err
    for part in ("cannot download", mirror.file.name, "PYTORCH_COURSE_MIRROR", str(project / "empty")):
        assert part in done.err, part


def test_the_head_is_what_depends_on_the_number_of_classes():
    heads = {"resnet18": "fc", "vgg11": "classifier.6", "densenet121": "classifier", "vit_b_16": "heads.head",
             "swin_t": "head", "convnext_tiny": "classifier.2", "squeezenet1_1": "classifier.1", "googlenet": "fc"}
    for name, head in heads.items():
        assert find_head(f"torchvision:{name}", {"output_shape": 2}) == [f"{head}.weight", f"{head}.bias"], name


def test_load_weights_says_when_frozen_layers_would_be_random(project):
    one = build_model("my_models.py:Small", channels=3, num_classes=2)
    other = build_model("my_models.py:Small", channels=3, num_classes=2, hidden_units=6)
    with pytest.raises(ValueError, match="nothing fits|not everything fits"):
        load_weights(one, other.state_dict(), strict=True)
    freeze(one, ["head.weight", "head.bias"])
    assert [name for name, p in one.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
