"A second day with data: what surprised a person who repairs, adds and renames images between two commands."

import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib import font_manager, get_data_path
from PIL import Image

from pytorch_course import plots
from pytorch_course.checkpoints import _compare_facts
from pytorch_course.command_line import user_message
from pytorch_course.data import create_dataloaders, find_parts
from pytorch_course.get_data import get_data
from pytorch_course.going_modular import main
from pytorch_course.images import ImageTransform
from pytorch_course.runs import open_parts, read_config
from pytorch_course.scaffold import scaffold

FAST = ("train", "--image_size", 16, "--batch_size", 8, "--epochs")


def make_photos(folder, classes=("cat", "dog"), per_class=6):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            color = 40 + 90 * number + 5 * i, 60, len(folder.name)
            Image.new("RGB", (20, 20), color).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        try:
            status = main([*map(str, words)])
        except SystemExit as exit:
            status = exit.code
        return SimpleNamespace(status=status, **capfd.readouterr()._asdict())

    return run


def test_01_files_in_an_unpacked_folder_are_never_deleted(command, tmp_path):
    make_photos(tmp_path / "z")
    shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path, "z")
    assert "unpacked to data/z" in command("doctor", "--data", "z.zip").err
    added = tmp_path / "data" / "z" / "z" / "cat" / "mine.png"
    Image.new("RGB", (20, 20), "blue").save(added)
    make_photos(tmp_path / "more" / "z", per_class=7)
    shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path / "more", "z")
    done = command(*FAST, 1, "--data", "z.zip", "--out", "run")
    assert done.status == 0 and "unpacked to data/z-2; data/z, made from something else, stays" in done.err
    assert added.is_file() and read_config("run")["train_dir"] == str(tmp_path / "data" / "z-2" / "z")
    assert "unpacked" not in command("doctor", "--data", "z.zip").err


def test_21_a_zip_of_the_same_name_from_another_folder(tmp_path):
    folders = []
    for place in ("first", "second"):
        make_photos(tmp_path / place / "photos")
        archive = shutil.make_archive(str(tmp_path / place / "photos"), "zip", tmp_path / place, "photos")
        folders += [get_data(archive, tmp_path / "data"), get_data(archive, tmp_path / "data")]
    assert [folder.name for folder in folders] == ["photos", "photos", "photos-2", "photos-2"]
    shutil.rmtree(folders[0])
    assert get_data(archive, tmp_path / "data") == folders[2], "the one that this file made"


def test_07_doctor_says_what_would_stop_training(command, tmp_path):
    make_photos(tmp_path / "sick" / "Train")
    make_photos(tmp_path / "sick" / "Validation", ("cat", "dog", "owl"))
    make_photos(tmp_path / "one", ("cat",))
    for name, message in (("sick", "classes differ: ['owl'] only in"), ("one", "has a single class, 'cat'")):
        done = command("doctor", "--data", name)
        assert done.status == 1 and message in done.out and "would fail here: parts" in done.out
        assert message in command(*FAST, 1, "--data", name).err
    make_photos(tmp_path / "copies" / "train")
    shutil.copytree(tmp_path / "copies" / "train", tmp_path / "copies" / "test")
    shutil.rmtree(tmp_path / "copies" / "test" / "dog")
    done = command("doctor", "--data", "copies")
    assert done.status == 0 and "6 test images are training images" in done.out and "no images of dog in" in done.out


@pytest.mark.parametrize("flags", [(), ("--test_share", 0.3)])
def test_08_a_class_that_the_test_part_lacks(command, tmp_path, flags):
    make_photos(tmp_path / "photos" / "Train", ("ant", "cat", "dog"))
    make_photos(tmp_path / "photos" / "Validation", ("cat", "dog"))
    for path in sorted((tmp_path / "photos" / "Train" / "ant").iterdir())[1:]:
        path.unlink()
    done = command(*FAST, 1, "--data", "photos", *flags, "--out", "run")
    assert done.status == 0 and "no images of ant in" in done.err and "classes differ" not in done.err
    parts = open_parts(read_config("run"))
    part = parts.valid or parts.test
    assert {os.path.basename(os.path.dirname(path)): index for path, index in part.samples} == {"cat": 1, "dog": 2}
    with pytest.raises(ValueError, match="classes differ"):  # the function in Python stays strict
        create_dataloaders(tmp_path / "photos" / "Train", tmp_path / "photos" / "Validation", ImageTransform(16), 8)


def test_13_two_levels_and_loose_images(command, tmp_path):
    make_photos(tmp_path / "X" / "animals", ("frogs", "toads"))
    make_photos(tmp_path / "X" / "insects", ("bees",))
    (tmp_path / "X" / "a text").mkdir()  # comes first, and is no data set
    (tmp_path / "X" / "a text" / "notes.txt").touch()
    error = command(*FAST, 1, "--data", "X").err
    assert "found folders in animals, insects: frogs, toads, bees; give one data set, such as" in error
    assert f"one data set, such as {os.path.join('X', 'animals')}" in error and find_parts(tmp_path / "X" / "animals")
    make_photos(tmp_path / "loose", ("cat",))
    shutil.make_archive(str(tmp_path / "loose"), "zip", tmp_path / "loose" / "cat")
    assert "found images without class folders" in command(*FAST, 1, "--data", "loose.zip").err


def test_14_and_15_resumed_after_an_image_was_replaced(command, tmp_path):
    make_photos(tmp_path / "photos" / "train")
    make_photos(tmp_path / "photos" / "test")
    assert command(*FAST, 1, "--data", "photos", "--out", "run").status == 0
    cat = tmp_path / "photos" / "train" / "cat"
    (cat / "0.png").rename(cat / "repaired.png")
    done = command("train", "--resume", "run", "--epochs", 2)
    assert done.status == 0 and "samples 12, now 12, file names have changed" in done.err, done.err
    assert "warning: the data have changed since" in done.err


def test_14_in_the_middle_of_an_epoch():
    data = {"samples": 12, "batch size": 8, "file names": 1808386461, "classes": ["cat", "dog"]}
    extra = {"data": data, "trainer": {"batch_index": 1}, "machine": {}}
    with pytest.raises(ValueError, match="file names have changed; .*add --changed_data") as caught:
        _compare_facts(Path("step-1.pt"), extra, {"data": data | {"file names": 680143381}, "machine": {}}, True)
    assert "1808386461" not in user_message(caught.value)


@pytest.mark.parametrize("fonts", [[], ["NotoSansCJK-Regular.ttc"]])
def test_22_chinese_class_names(tmp_path, monkeypatch, fonts):
    letters = os.path.join(get_data_path(), "fonts", "ttf", "DejaVuSerif.ttf")  # plays the part of the font
    copies = [str(shutil.copy(letters, tmp_path / name)) for name in fonts]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: copies)
    plots._cjk_fonts.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            figure = plots.plot_images([Image.new("L", (8, 8))], ["熊猫和狗"])
            figure.savefig(tmp_path / "a.png")
    plots._cjk_fonts.cache_clear()
    assert figure.axes[0].title.get_family() == ["sans-serif", *(["DejaVu Serif"] if fonts else [])]
    assert len(caught) == (not fonts) and all("fonts-noto-cjk" in str(warning.message) for warning in caught)


def test_27_the_scripts_check_the_images_first(tmp_path):
    scaffold(tmp_path / "scripts")
    data = tmp_path / "scripts" / "data"
    make_photos(data / "train")
    make_photos(data / "test")
    shutil.copy(data / "train" / "cat" / "0.png", data / "test" / "cat" / "copy.png")
    damaged = [data / "train" / "cat" / "1.png", data / "test" / "dog" / "2.png"]
    whole = damaged[0].read_bytes()
    for path in damaged:
        path.write_bytes(whole[:50])

    def run(*words):
        return subprocess.run([sys.executable, *words], cwd=tmp_path / "scripts", capture_output=True, text=True)

    flags = ("train.py", "--num_epochs", "1", "--image_size", "16", "--device", "cpu")
    error = run(*flags).stderr
    assert "2 damaged images" in error and all(str(path) in error for path in damaged), error
    for path in damaged:
        path.unlink()
    assert "13 test images" not in (out := run(*flags).stdout) and "(1 in both)" in out
    assert run("predict.py", "nosuch.png").stderr.endswith("cannot read nosuch.png: No such file or directory\n")


class Unmarked(zipfile.ZipInfo):
    "As `zip` on Linux and the Finder of macOS write names: UTF-8, without the mark that says so."
    def _encodeFilenameFlags(self):
        return self.filename.encode(), self.flag_bits & ~0x800


def test_names_in_a_zip_without_a_mark(command, tmp_path):
    photos = make_photos(tmp_path / "photos", classes=("\u732b", "f\u00f6hn"))
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.png")):
            archive.writestr(Unmarked(path.relative_to(photos).as_posix()), path.read_bytes())
    assert zipfile.ZipFile("photos.zip").infolist()[0].flag_bits & 0x800 == 0
    done = command("get-data", "photos.zip")
    assert done.status == 0, done.err
    names = {path.name for path in (tmp_path / "data" / "photos").iterdir() if path.is_dir()}
    assert names == {"\u732b", "f\u00f6hn"}
