"""What the notebooks of the data lessons cannot show: imports in a fresh process, and how workers start."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from pytorch_course import data
from pytorch_course.data import ImageFolder, create_dataloaders, find_parts, find_splits, write_digits
from pytorch_course.get_data import get_data
from pytorch_course.going_modular import main
from pytorch_course.image_cache import CachedImageFolder
from pytorch_course.images import ImageTransform
from pytorch_course.runs import find_data, open_parts
from pytorch_course.splits import count_shared, split_samples

MODULES = ["data", "image_cache", "augmentation", "text", "custom_datasets", "splits"]


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
    with pytest.raises(ValueError, match="several data sets in .*: apple, zebra; name one of them"):
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


# --- own data as it lies on a disk ---


def make_photos(folder, classes=("cat", "dog"), per_class=10, mode="RGB", ending=".png"):
    "Class folders without a split; every image is another one."
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            color = 40 + 100 * number + 5 * i
            Image.new(mode, (20, 20), color if mode == "L" else (color, 60, 9)).save(folder / name / f"{i}{ending}")
    return folder


NAMES = [("Train", "Test"), ("training", "validation"), ("TRAIN", "Val"), ("train", "testing")]


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_names_and_depth_of_the_parts(tmp_path, names, depth):
    place = tmp_path.joinpath(*("topvö", "inner")[:depth])
    for name in names:
        make_photos(place / name, per_class=1)
    assert find_splits(tmp_path) == (place / names[0], place / names[1])


def test_zip_with_two_levels_and_without_a_split(tmp_path):
    make_photos(tmp_path / "topvö" / "inner" / "train", per_class=1)
    make_photos(tmp_path / "topvö" / "inner" / "test", per_class=1)
    shutil.make_archive(str(tmp_path / "deep"), "zip", tmp_path, "topvö")
    make_photos(tmp_path / "holiday" / "photos")
    shutil.make_archive(str(tmp_path / "flat"), "zip", tmp_path, "holiday")
    assert [path.name for path in find_splits(get_data(tmp_path / "deep.zip", tmp_path / "data"))] == ["train", "test"]
    unpacked = get_data(tmp_path / "flat.zip", tmp_path / "data")
    assert find_parts(unpacked) == {"all": unpacked / "holiday" / "photos"}


def test_what_is_no_data_set_is_not_taken_for_one(tmp_path):
    make_photos(tmp_path / "data" / "pets")
    make_photos(tmp_path / "runs" / "a")
    with pytest.raises(FileNotFoundError, match="no train and test folders"):
        find_parts(tmp_path)
    make_photos(tmp_path / "vehicles", ("bus", "car", "train"))
    assert find_parts(tmp_path / "vehicles") == {"all": tmp_path / "vehicles"}
    make_photos(tmp_path / "two" / "val")
    make_photos(tmp_path / "two" / "valid")
    with pytest.raises(ValueError, match="both are valid; rename one"):
        find_parts(tmp_path / "two")


@pytest.mark.parametrize("name", ["nosuch.zip", "nosuch/photos.zip"])
def test_a_missing_file_is_no_unknown_name(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"no file {name}"):
        get_data(name, tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder nosuch/folder"):
        get_data("nosuch/folder", tmp_path)
    with pytest.raises(ValueError, match="unknown data set ''"):
        get_data("", tmp_path)


def test_gif_jfif_and_avif_are_images(tmp_path):
    make_photos(tmp_path / "photos", ("gif", "jfif", "avif"), per_class=0)
    for kind, file_format in (("gif", "GIF"), ("jfif", "JPEG"), ("avif", "AVIF")):
        if f".{kind}" in Image.registered_extensions():
            Image.new("RGB", (20, 20), "red").save(tmp_path / "photos" / kind / f"a.{kind}", format=file_format)
        else:
            Image.new("RGB", (20, 20), "red").save(tmp_path / "photos" / kind / "a.png")
    assert [image.getpixel((0, 0))[0] > 200 for image, _ in ImageFolder(tmp_path / "photos")] == [True] * 3


def test_heic_is_counted_with_what_it_needs(tmp_path, monkeypatch):
    make_photos(tmp_path / "photos", per_class=1)
    (tmp_path / "photos" / "cat" / "IMG_1.HEIC").write_bytes(b"photo")
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"\*\.heic \(1, needs pillow-heif\)"):
        assert len(ImageFolder(tmp_path / "photos")) == 2
    monkeypatch.setattr(data, "find_spec", lambda name: object())
    assert len(ImageFolder(tmp_path / "photos")) == 3


def test_a_split_keeps_copies_together_and_no_class_is_left_out(tmp_path):
    folder = make_photos(tmp_path / "photos", per_class=10)
    for i in range(5):
        shutil.copy(folder / "cat" / f"{i}.png", folder / "cat" / f"copy of {i}.png")
        shutil.copy(folder / "cat" / f"{i}.png", folder / "dog" / f"wrong {i}.png")
    samples = ImageFolder(folder).samples
    for seed in range(20):
        parts = split_samples(samples, (0.6, 0.2, 0.2), seed)
        assert sorted(sum(parts, [])) == sorted(samples)
        assert count_shared(parts[0], parts[1] + parts[2]) == count_shared(parts[1], parts[2]) == 0
        assert all({index for _, index in part} == {0, 1} for part in parts)
    for count in range(1, 9):
        few = ImageFolder(make_photos(tmp_path / f"few{count}", ("cat",), count)).samples
        sizes = [len(part) for part in split_samples(few, (0.7, 0.2, 0.1))]
        assert sum(sizes) == count and all(sizes[: min(count, 3)])


# --- the command ---


FAST = ("train", "--epochs", 1, "--image_size", 16, "--batch_size", 8)


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    "In this process, which spares the imports of PyTorch."
    def run(*words):
        monkeypatch.chdir(tmp_path)
        try:
            status = main([*map(str, words)])
        except SystemExit as exit:
            status = exit.code
        return SimpleNamespace(status=status, **capfd.readouterr()._asdict())

    return run


def settings(folder):
    return json.loads((folder / "config.json").read_text())


def test_class_folders_are_split_and_the_run_knows_how(command, tmp_path):
    make_photos(tmp_path / "photos", mode="L", per_class=20)
    (tmp_path / "photos" / "owl").mkdir()
    Image.new("L", (20, 20), 250).save(tmp_path / "photos" / "owl" / "0.png")
    (tmp_path / "photos" / "dog" / "notes.txt").write_text("not an image")
    done = command(*FAST, "--data", "photos", "--valid_share", 0.1, "--test_share", 0.3, "--out", "run", "--seed", 7)
    assert done.status == 0, done.err
    line = done.out.splitlines()[0]
    assert line.startswith("data    photos: 25 training, 4 validation and 12 test images in 3 classes from photos, ")
    assert "split by seed 7, gray (25 looked at)" in line  # B8
    assert done.err.count("notes.txt") + done.err.count("*.txt (1)") == 1, "once, not for each time it is looked at"
    assert "too few images of owl: none of them in the test part" in done.err
    parts = open_parts(settings(tmp_path / "run"))
    assert [len(parts.train), len(parts.valid), len(parts.test)] == [25, 4, 12]
    assert count_shared(parts.train.samples, parts.valid.samples + parts.test.samples) == 0


@pytest.mark.parametrize("words", [("--data", "photos"), ("--train_dir", "photos"), ("--data", "photos.zip")])
def test_each_way_to_name_unsplit_images(command, tmp_path, words):
    make_photos(tmp_path / "photos")
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path, "photos")
    done = command(*FAST, *words, "--out", "run")
    told = f"unpacked to {Path('data/photos')}\n" if words[1].endswith("zip") else ""
    assert (done.status, done.err) == (0, told)
    assert "data    photos: 16 training and 4 test images in 2 classes" in done.out


def test_three_folders_are_three_parts(command, tmp_path):
    for part, count in (("Train", 8), ("val", 3), ("test", 2)):
        make_photos(tmp_path / "pets" / part, per_class=count)
    done = command(*FAST, "--data", "pets", "--out", "run")
    assert "16 training, 6 validation and 4 test images" in done.out
    assert "valid_acc" in (tmp_path / "run" / "history.csv").read_text()
    assert Path(settings(tmp_path / "run")["valid_dir"]) == tmp_path / "pets" / "val"
    done = command(*FAST, "--data", "pets", "--valid_share", 0.2)
    assert done.status == 2 and "--valid_share is for data without such a part, but there is pets/val" in done.err


def test_moved_data_are_found_by_the_resumed_run(command, tmp_path):
    make_photos(tmp_path / "photos")
    assert command(*FAST, "--data", "photos", "--out", "run").status == 0
    before = [(Path(path).name, i) for path, i in open_parts(settings(tmp_path / "run")).test.samples]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos").rename(tmp_path / "elsewhere" / "pictures")
    done = command("train", "--resume", "run", "--epochs", 2)
    assert done.status == 2 and "if the data were moved, add --data NEW_PLACE" in done.err
    for epochs, flag in ((2, "--data"), (3, "--train_dir")):
        done = command("train", "--resume", "run", "--epochs", epochs, flag, "elsewhere/pictures")
        assert (done.status, done.err) == (0, ""), "no warning: the files have the same names and the same split"
        assert "resumed from step-" in done.out and f"epoch {epochs}/{epochs}" in done.out
    config = settings(tmp_path / "run")
    assert (config["name"], config["train_dir"]) == ("photos", str(tmp_path / "elsewhere" / "pictures"))
    assert [(Path(path).name, i) for path, i in open_parts(config).test.samples] == before
    make_photos(tmp_path / "others", per_class=11)
    done = command("train", "--resume", "run", "--epochs", 4, "--data", "others")
    assert "the data have changed since" in done.err


def test_parts_of_one_folder_have_files_of_their_own(tmp_path):
    make_photos(tmp_path / "photos")
    parts = open_parts(find_data({"data": str(tmp_path / "photos"), "valid_share": 0.2}) | {"seed": 1})
    folders = [CachedImageFolder(part, ImageTransform(16), budget_bytes=0) for part in vars(parts).values()]
    expected = [[X.mean().item() for X, _ in ImageFolder(part, ImageTransform(16))] for part in vars(parts).values()]
    for _ in range(2):
        found = [[X.mean().item() for X, _ in CachedImageFolder(folder, ImageTransform(16), budget_bytes=0)]
                 for folder in folders]
        assert found == expected
    names = sorted(path.name for path in tmp_path.glob(".*.images"))
    assert names == [f".photos-{part}-3x16x16.images" for part in ("test", "train", "valid")]


BAD_LINES = {
    ("--data", ""): "must not be empty",
    ("--train_dir", ""): "must not be empty",
    ("--data", "nosuch.zip"): "no file nosuch.zip",
    ("--data", "nosuch/folder"): "no folder nosuch/folder",
    ("--data", "film_reviews"): "these are texts, not images",
    ("--data", "."): "no train and test folders in .",
    ("--data", "several"): "several data sets in several: apple, zebra; name one of them",
    ("--data", "single"): "too few images of each class for a test part",
    ("--test_dir", "photos"): "--train_dir, which is missing",
    ("--data", "photos", "--test_share", "1"): "must sum to less than 1",
    ("--data", "photos", "--test_share", "0"): "a number above 0 is needed",
}


@pytest.mark.parametrize("words", BAD_LINES)
def test_bad_data_is_one_line(tmp_path, command, words):
    make_photos(tmp_path / "photos" / "pets" / "photos")
    for name in ("apple", "zebra"):
        make_photos(tmp_path / "several" / name / "train", per_class=1)
        make_photos(tmp_path / "several" / name / "test", per_class=1)
    make_photos(tmp_path / "single", per_class=1)
    done = command("train", *words)
    assert (done.status, done.err.count("\n")) == (2, 1) and BAD_LINES[words] in done.err
    assert "remove" not in done.err
    assert not (tmp_path / "runs").exists()


def test_get_data_counts_what_is_not_split(command, tmp_path):
    make_photos(tmp_path / "photos")
    assert command("get-data", "photos").out == "photos: 20 unsplit files in 2 classes\n"
