"""All images are looked at before the first step; kinds of images; decoding in half the time; resume after a repair."""

import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from pytorch_course import decoding, images
from pytorch_course.checkpoints import CheckpointManager, Checkpoints
from pytorch_course.data import ImageFolder
from pytorch_course.decoding import find_damaged
from pytorch_course.going_modular import main
from pytorch_course.image_cache import CachedImageFolder, ImageCache, create_cached_dataloaders, decode_datasets
from pytorch_course.images import ImageError, ImageTransform, open_image, open_image_header
from pytorch_course.reproducibility import Reproducible
from pytorch_course.trainer import Callback, Trainer

TRANSFORM = ImageTransform(image_size=8)
DAMAGES = {"zero.png": b"", "text.png": b"nope", "cut.png": None}


@pytest.fixture
def folder(tmp_path):
    "Two classes, 12 images each for training and 3 for testing."
    rng = np.random.default_rng(0)
    for split, number in (("train", 12), ("test", 3)):
        for name in ("cat", "dog"):
            (tmp_path/split/name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path/split/name/f"{i:02d}.png")
    return tmp_path


def damage(place, names=DAMAGES):
    whole = (place/"00.png").read_bytes()
    for name in names:
        content = DAMAGES.get(name, b"nope")
        (place/name).write_bytes(whole[:60] if content is None else content)
    return [place/name for name in names]


def loaders(folder, **options):
    return create_cached_dataloaders(folder/"train", folder/"test", TRANSFORM, 4, **options)


# ---- A2, A3, C11

@pytest.mark.parametrize("cache", [True, False])
def test_all_damaged_images_are_named_at_once_before_the_first_step(folder, cache):
    damaged = damage(folder/"train"/"cat") + damage(folder/"test"/"dog")
    with pytest.raises(ImageError) as caught:
        loaders(folder, cache=cache)
    message = str(caught.value)
    assert message.startswith("cannot read 6 of 36 images: ") and "\n" not in message
    assert all(str(path) in message for path in damaged) and "--skip_damaged" in message


def test_ten_are_named_and_the_others_counted(folder):
    damage(folder/"train"/"cat", [f"bad{i:02d}.png" for i in range(13)])
    with pytest.raises(ImageError, match=r"13 of 43 images: .*bad09.png: [^;]*; \.\.\. and 3 more; replace or remove"):
        loaders(folder)


def test_other_transforms_look_at_each_image_once(folder):
    damage(folder/"test"/"dog", ["text.png"])
    with pytest.raises(ImageError, match="text.png"):
        create_cached_dataloaders(folder/"train", folder/"test", TRANSFORM.__call__, 4)


@pytest.mark.parametrize("transform", [TRANSFORM, TRANSFORM.__call__])
def test_skip_damaged_leaves_them_out_with_one_warning(folder, transform):
    whole = create_cached_dataloaders(folder/"train", folder/"test", transform, 4, seed=1)
    paths = damage(folder/"train"/"cat") + damage(folder/"test"/"dog", ["text.png"])
    with pytest.warns(UserWarning) as said:
        train, test, _ = create_cached_dataloaders(
            folder/"train", folder/"test", transform, 4, seed=1, skip_damaged=True
        )
    assert len(said) == 1 and "left out: cannot read 4 of 34 images" in str(said[0].message)
    assert all(str(path) in str(said[0].message) for path in paths)
    assert len(train.dataset) == len(train.dataset.targets) == 24 and len(test.dataset) == 6
    for (X, y), (X_whole, y_whole) in zip(train, whole[0], strict=True):
        assert torch.equal(X, X_whole) and torch.equal(y, y_whole)


def test_a_class_without_any_other_image_is_an_error(folder):
    for path in (folder/"test"/"dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ImageError, match="no image of class 'dog' can be read"):
        loaders(folder, skip_damaged=True)


def test_nothing_is_decoded_after_the_loaders_are_made(folder, monkeypatch):
    train, test, _ = loaders(folder)
    loaders(folder, cache=folder/"kept")
    monkeypatch.setattr(decoding, "open_image", None)
    assert len(list(train)) == 6 and len(list(test)) == 2
    loaders(folder, cache=folder/"kept")  # from the file


def test_find_damaged_gives_reasons_in_order(folder):
    paths = sorted((folder/"train"/"cat").iterdir())[:2] + damage(folder/"train"/"cat")
    found = find_damaged([*paths, folder/"gone.png"])
    assert list(found) == [str(path) for path in (*paths[2:], folder/"gone.png")]
    assert found[str(paths[2])] == "it is empty" and all("\n" not in reason for reason in found.values())


def test_datasets_follow_their_samples(folder):
    dataset = CachedImageFolder(folder/"train", TRANSFORM)
    dataset.samples, dataset.targets = dataset.samples[::5], dataset.targets[::5]
    damage(folder/"train"/"cat")
    decode_datasets(dataset)
    assert len(dataset.cache) == 5 and dataset.cache.is_complete


def test_the_command_finds_a_damaged_test_image_first(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    damaged = damage(folder/"test"/"cat", ["text.png"]) + damage(folder/"train"/"dog", ["zero.png"])
    assert main(["train", "--data", str(folder), "--model", "neuralnetwork", "--epochs", "1", "--out", "run"]) == 2
    said = capsys.readouterr()
    assert all(str(path) in said.err for path in damaged) and said.err.count("\n") == 1
    assert "epoch" not in said.out and not Path("run").exists()


# ---- threads

def test_an_error_or_ctrl_c_stops_all_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "cpu_count", lambda: 4)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path/"large.jpg")
    seen = []

    def interrupt(position, image):
        seen.append(position)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoding.decode_files([tmp_path/"large.jpg"] * 1000, interrupt)
    assert len(seen) < 500, "the others were cancelled"


# ---- the same pixels, in less time

def kinds(folder):
    "The same drawing in many formats, modes and positions."
    drawing = Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 14, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode, endings in (("RGB", "png jpg webp tif bmp gif"), ("L", "png jpg tif pgm"), ("P", "png gif"),
                          ("1", "png tif"), ("LA", "png"), ("RGBA", "png webp"), ("CMYK", "jpg tif")):
        for ending in endings.split():
            for turned in (False, True) if ending in ("png", "jpg", "webp", "tif") else (False,):
                path = folder/f"{mode}-{turned}.{ending}"
                drawing.convert(mode).save(path, **({"exif": exif} if turned else {}))
                yield path


@pytest.mark.parametrize("size", [9, 20])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_the_long_way(tmp_path, size, channels):
    transform = ImageTransform(size, channels)
    paths = list(kinds(tmp_path))
    pixels = ImageCache(paths, transform, tmp_path).get(range(len(paths)))
    for path, found in zip(paths, pixels):
        with open(path, "rb") as file:  # opened by its name, Pillow 13 scrambles some turned TIFF files
            image = ImageOps.exif_transpose(Image.open(file)).convert("RGB").convert("L" if channels == 1 else "RGB")
        image = image.resize((transform.image_size,) * 2, Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(image)).reshape(*image.size, -1).permute(2, 0, 1)
        assert torch.equal(found, expected), path
        assert torch.equal(transform.resize(open_image(path)), expected), path


def test_xmp_alone_turns_an_image(tmp_path):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 14, 3), dtype=np.uint8))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image.save(tmp_path/"a.webp", lossless=True, xmp=xmp)
    assert open_image(tmp_path/"a.webp").size == (9, 14)


def test_small_files_are_decoded_in_less_time_than_pillow_and_numpy_need(tmp_path):
    "28 x 28 gray PNG files, as MNIST: less than the usual lines, which do not check anything, and no RGB in between."
    rng = np.random.default_rng(0)
    paths = [tmp_path/f"{i}.png" for i in range(300)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    transform = ImageTransform(28, 1)

    def long_way():
        for path in paths:
            with open(path, "rb") as file:
                image = Image.open(file)
                ImageOps.exif_transpose(image, in_place=True)
                image = image.convert("RGB").convert("L").resize((28, 28), Image.Resampling.BILINEAR)
                torch.from_numpy(np.array(image)).reshape(28, 28, 1).permute(2, 0, 1).contiguous()

    def best(function):
        times = []
        for _ in range(10):
            start = time.process_time()
            function()
            times.append(time.process_time() - start)
        return min(times)

    assert best(lambda: ImageCache(paths, transform, tmp_path).decode(torch.arange(len(paths)))) < 0.95 * best(long_way)


def test_a_dangling_link_is_named_in_words(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    link = tmp_path / "cat" / "zz.png"
    link.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ImageError) as caught:
        decode_datasets(ImageFolder(tmp_path))
    assert str(caught.value).startswith(f"cannot read {link}: there is no such file; replace or remove")


# ---- kinds of images

def test_108_megapixels_of_a_phone_are_accepted(tmp_path):
    Image.new("1", (12_000, 9_000)).save(tmp_path/"phone.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_image_header(tmp_path/"phone.png") as image:
            assert image.width * image.height < images.MAX_PIXELS


@pytest.mark.parametrize("ending", ["gif", "webp", "avif"])
def test_first_frame_of_an_animation(tmp_path, ending):
    if f".{ending}" not in Image.registered_extensions():
        pytest.skip("not in this Pillow")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path/f"a.{ending}", save_all=True, append_images=frames[1:])
    red, green, blue = open_image(tmp_path/f"a.{ending}").getpixel((4, 4))
    assert red > 200 and green < 50 and blue < 50


@pytest.mark.parametrize("ending", ["heic", "HEIF"])
def test_heic_names_the_package(tmp_path, ending, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    (tmp_path/f"a.{ending}").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ImageError, match="pip install pillow-heif"):
        open_image(tmp_path/f"a.{ending}")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_range_say_how_to_convert(tmp_path, kind):
    Image.fromarray(np.zeros((4, 4), kind)).save(tmp_path/"a.tiff")
    with pytest.raises(ImageError, match="choose the values for black and white and save it with 8 or 16 bits"):
        open_image(tmp_path/"a.tiff")


# ---- A2: resume after a repair

class Stop(Callback):
    def after_batch(self, trainer):
        if trainer.steps == 9: raise OSError("power failure")


def train(folder, place, resume, *callbacks):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    saving = Checkpoints(CheckpointManager(place, every_steps=1), resume)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, callbacks=[Reproducible(1), saving, *callbacks],
                      progress=False)
    trainer.fit(3, *loaders(folder)[:2])
    return trainer


@pytest.mark.parametrize("repair", ["remove", "add"])
def test_resume_with_changed_data_in_the_middle_of_an_epoch(folder, tmp_path, repair):
    with pytest.raises(OSError):
        train(folder, tmp_path/"run", False, Stop())
    path = folder/"train"/"cat"/"03.png"
    if repair == "remove":
        path.unlink()
    else:
        path.rename(path.with_name("repaired.png"))
    advice = r'the data have changed .* add --changed_data \(in Python: resume="changed_data"\)'
    with pytest.raises(ValueError, match=advice):
        train(folder, tmp_path/"run", True)
    with pytest.warns(UserWarning, match="the data have changed"):
        trainer = train(folder, tmp_path/"run", "changed_data")
    assert [row["epoch"] for row in trainer.history] == [1, 2, 3]
    assert trainer.steps == 18  # nothing was trained a second time


def test_the_command_resumes_with_changed_data(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from pytorch_course import checkpoint_manager
    monkeypatch.setattr(checkpoint_manager.CheckpointManager, "should_save", lambda *arguments, **_: True)
    check, steps = checkpoint_manager.CheckpointManager.check_weights, []

    def stop(self, step, models):
        steps.append(step)
        if step == 3: raise KeyboardInterrupt
        check(self, step, models)

    monkeypatch.setattr(checkpoint_manager.CheckpointManager, "check_weights", stop)
    words = ["train", "--data", str(folder), "--model", "neuralnetwork", "--batch_size", "4", "--out", "run"]
    assert main([*words, "--epochs", "2"]) == 130
    os.remove(folder/"train"/"cat"/"05.png")
    monkeypatch.setattr(checkpoint_manager.CheckpointManager, "check_weights", check)
    assert main(["train", "--resume", "run"]) == 2
    assert "--changed_data" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--changed_data"]) == 0
    assert Path("run/model.pt").exists()
