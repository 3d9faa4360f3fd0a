"""`save_model` takes wrapped models, and refuses a description that does not fit the model, before it writes."""
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pytorch_course.images import ImageTransform
from pytorch_course.model import TinyVGG
from pytorch_course.save_load import ModelInfo, load_model, save_model

ARGUMENTS = dict(input_shape=3, hidden_units=2, output_shape=3, image_size=16)
INFO = ModelInfo("tinyvgg", ARGUMENTS, ["ant", "bee", "cat"], ImageTransform(16, 3))


def same(model, other):
    X = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        return torch.equal(model.eval()(X), other.eval()(X))


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "wrap",
    [torch.compile, nn.DataParallel, AveragedModel, lambda model: AveragedModel(torch.compile(model))],
    ids=["compile", "DataParallel", "AveragedModel", "both"],
)
def test_wrapped_models_are_saved_under_their_plain_names(tmp_path, wrap, ending):
    model = TinyVGG(**ARGUMENTS)
    path = save_model(wrap(model), tmp_path, f"model.{ending}", INFO)
    assert same(load_model(path)[0], model)
    bare = save_model(wrap(model), tmp_path, "bare.pth")
    assert list(torch.load(bare, weights_only=True)) == list(model.state_dict())


def test_a_part_that_is_compiled(tmp_path):
    model = TinyVGG(**ARGUMENTS)
    whole = TinyVGG(**ARGUMENTS)
    whole.load_state_dict(model.state_dict())
    model.conv_block_1 = torch.compile(model.conv_block_1)
    assert same(load_model(save_model(model, tmp_path, "model.pt", INFO))[0], whole)


def test_a_model_that_calls_its_own_part_module_keeps_its_names(tmp_path):
    model = nn.ModuleDict({"module": nn.Linear(2, 1)})
    path = save_model(model, tmp_path, "own.pth")
    assert list(torch.load(path, weights_only=True)) == ["module.weight", "module.bias"]


DISTRIBUTED = """
import sys, torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.device_mesh import init_device_mesh
from pytorch_course.images import ImageTransform
from pytorch_course.model import TinyVGG
from pytorch_course.save_load import ModelInfo, load_model, save_model

folder = sys.argv[1]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
kwargs = dict(input_shape=3, hidden_units=2, output_shape=3, image_size=16)
info = ModelInfo("tinyvgg", kwargs, ["ant", "bee", "cat"], ImageTransform(16, 3))
model = TinyVGG(**kwargs)
path = save_model(nn.parallel.DistributedDataParallel(model), folder, "ddp.pt", info)
for name, tensor in load_model(path)[0].state_dict().items():
    assert torch.equal(tensor, model.state_dict()[name]), name
print("ddp ok")
fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
for description in (None, info):
    try:
        save_model(model, folder, "fsdp.pt", description)
    except ValueError as error:
        print(error)
distributed.destroy_process_group()
"""


def test_ddp_is_saved_by_plain_names_and_a_shard_is_refused(tmp_path):
    line = [sys.executable, "-c", DISTRIBUTED, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ddp ok" in done.stdout
    assert done.stdout.count("get_model_state_dict") == 2  # what to do with the parts of FSDP
    assert not (tmp_path / "fsdp.pt").exists()


def changed(**values):
    return ModelInfo(**{**vars(INFO), **values})


WRONG = {
    "hidden units": (changed(model_kwargs={**ARGUMENTS, "hidden_units": 5}), "size mismatch"),
    "class names": (changed(class_names=["ant", "bee"]), "gives (1, 3) for one image, but there are 2 class names"),
    "image size": (changed(transform=ImageTransform(32, 3)), "shapes cannot be multiplied"),
    "channels": (changed(transform=ImageTransform(16, 1)), "to have 3 channels, but got 1"),
    "transform": (changed(transform=None), "transform is None"),
    "architecture": (changed(architecture="resnet18"), "unknown model 'resnet18'"),
    "argument": (changed(model_kwargs={**ARGUMENTS, "depth": 3}), "unexpected keyword argument 'depth'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_description_is_refused_and_the_old_file_stays(tmp_path, name):
    info, expected = WRONG[name]
    (tmp_path / "model.pt").write_text("old")
    with pytest.raises(ValueError, match="model.pt: info does not fit the model: ") as caught:
        save_model(TinyVGG(**ARGUMENTS), tmp_path, "model.pt", info)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "model.pt").read_text() == "old"


def test_saving_does_not_change_the_model(tmp_path):
    model = TinyVGG(**ARGUMENTS).half()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path, "model.pt", INFO)
    assert model.training
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
