"""What the notebooks of the data lessons cannot show: imports in a fresh process, and how workers start."""

import subprocess
import sys

import pytest
from torch.utils.data import DataLoader

from pytorch_course.data import create_dataloaders, find_splits, write_digits
from pytorch_course.images import ImageTransform

MODULES = ["data", "image_cache", "augmentation", "text", "custom_datasets"]


@pytest.mark.parametrize("module", MODULES)
def test_torchvision_is_not_imported(module):
    code = f"import sys, pytorch_course.{module}; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.mark.filterwarnings("error")
def test_workers_start_without_a_warning(digits):
    transform = ImageTransform(image_size=8, channels=1)
    folders = digits / "train", digits / "test"
    with_workers = create_dataloaders(*folders, transform, 200, num_workers=2)[1]
    X, y = next(iter(with_workers))
    assert X.shape == (200, 1, 8, 8) and y.tolist() == with_workers.dataset.targets[:200]


def test_a_folder_of_several_data_sets_is_not_guessed(tmp_path):
    for name in ("apple", "zebra"):
        for split in ("train", "test"):
            (tmp_path / name / split).mkdir(parents=True)
    with pytest.raises(ValueError, match="several data sets in .*: apple, zebra; give the folder of one of them"):
        find_splits(tmp_path)
    assert find_splits(tmp_path / "zebra") == (tmp_path / "zebra" / "train", tmp_path / "zebra" / "test")


def test_another_data_set_class_and_collate_function(digits):
    class Names:
        classes, root = ["a", "b"], ""

        def __init__(self, folder, transform):
            self.names = [f"{folder.name}{i}" for i in range(3)]

        def __len__(self):
            return len(self.names)

        def __getitem__(self, i):
            return self.names[i]

    loaders = create_dataloaders(digits / "train", digits / "test", str, 2, dataset_class=Names, collate_fn="+".join)
    assert type(loaders[1]) is DataLoader and list(loaders[1]) == ["test0+test1", "test2"]
    assert loaders[2] == ["a", "b"]
