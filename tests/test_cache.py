"""The cache of decoded images with several processes: workers, two programs at once, a killed one; exact resume."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset, default_collate, random_split

from pytorch_course import decoding
from pytorch_course.augmentation import RandomFlipCrop
from pytorch_course.checkpoints import CheckpointManager, Checkpoints
from pytorch_course.data import ImageFolder
from pytorch_course.image_cache import CachedImageFolder, ImageCache, collate_batch, create_cached_dataloaders
from pytorch_course.images import ImageError, ImageTransform
from pytorch_course.reproducibility import Reproducible, SeededDataLoader, SeededIndices
from pytorch_course.seeds import derive_seed, derive_seeds
from pytorch_course.system import available_memory
from pytorch_course.trainer import Callback, Trainer

TRANSFORM = ImageTransform(image_size=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CACHE_FILE = ".train-3x16x16.images"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    "90 + 30 images in three classes, of three kinds."
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, number in (("train", 30), ("test", 10)):
        for name in ("cat", "dog", "eel"):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                image = Image.fromarray(rng.integers(0, 256, (9 + i % 3, 12, 3), dtype=np.uint8))
                image.convert(("RGB", "L", "P")[i % 3]).save(
                    root / split / name / f"{i:02d}.{('jpg', 'png', 'bmp')[i % 3]}"
                )
    return root


@pytest.fixture
def images(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "data"))


def paths_of(folder):
    return [path for path, _ in ImageFolder(folder).samples]


def batches(loader):
    return [(X.clone(), y.clone()) for X, y in loader]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for (X, y), (X_expected, y_expected) in zip(found, expected):
        assert (
            torch.equal(X, X_expected)
            and X.dtype == X_expected.dtype
            and torch.equal(y, y_expected)
            and y.dtype == y_expected.dtype
        )


TRANSFORMS = [TRANSFORM, ImageTransform(image_size=20, channels=1), ImageTransform(image_size=7, mean=(0,), std=(0.3,))]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_batches_are_those_without_it(original, transform, num_workers):
    def loaders(cache):
        return create_cached_dataloaders(
            original / "train", original / "test", transform, 16, num_workers, seed=1, cache=cache
        )[:2]

    for cached, plain in zip(loaders(True), loaders(False)):
        assert cached.dataset.cache.pixels is not None and plain.dataset.cache.pixels is None
        for _ in range(3):
            assert_same(batches(cached), batches(plain))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking is the wish of this test
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("budget_bytes", [None, 0])
def test_workers_fill_one_store(images, context, budget_bytes):
    cached = CachedImageFolder(images / "train", TRANSFORM, budget_bytes=budget_bytes)
    loader = DataLoader(cached, 9, num_workers=2, multiprocessing_context=context, collate_fn=collate_batch)
    plain = batches(DataLoader(ImageFolder(images / "train", TRANSFORM), 9))
    assert_same(batches(loader), plain)
    assert cached.cache.decoded.all()  # seen from here
    for path in paths_of(images / "train"):
        os.truncate(path, 0)
    assert_same(batches(loader), plain)  # other workers, and nothing to decode any more
    assert torch.equal(cached[3][0], plain[0][0][3])


def test_ten_random_halves_and_samples(original):
    cached, plain = CachedImageFolder(original / "train", TRANSFORM), ImageFolder(original / "train", TRANSFORM)
    for seed in range(10):
        half = random_split(cached, [0.5, 0.5], torch.Generator().manual_seed(seed))[0]
        expected = batches(DataLoader(Subset(plain, half.indices), 8))
        for collate in (None, collate_batch, default_collate):
            assert_same(batches(DataLoader(half, 8, collate_fn=collate)), expected)
    for i in (0, 5, -1):
        assert torch.equal(cached[i][0], plain[i][0]) and cached[i][1] == plain[i][1] and type(cached[i][1]) is int
    for i in (90, -91):
        with pytest.raises(IndexError):
            cached[i]
    assert (
        cached.classes == plain.classes
        and cached.class_to_idx == plain.class_to_idx
        and cached.targets == plain.targets
    )


def test_target_transform_and_another_transform(original):
    cached = CachedImageFolder(original / "train", TRANSFORM, lambda number: torch.eye(3)[number])
    X, y = next(iter(DataLoader(cached, 4, collate_fn=collate_batch)))
    assert torch.equal(y, torch.eye(3)[[0] * 4])
    cached.transform = ImageTransform(image_size=5)
    assert next(iter(DataLoader(cached, 4, collate_fn=collate_batch)))[0].shape == (4, 3, 5, 5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_images_are_named(images, num_workers):
    broken = images / "train" / "dog" / "04.png"
    broken.write_bytes(b"nothing")
    messages = []
    for cache in (True, False):
        dataset = CachedImageFolder(images / "train", TRANSFORM, cache=cache)
        with pytest.raises(ImageError) as caught:
            batches(DataLoader(dataset, 16, num_workers=num_workers, collate_fn=collate_batch))
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and messages[0].startswith(f"cannot read {broken}: not ")


def test_only_image_transforms_are_kept(original):
    arguments = original / "train", original / "test", TRANSFORM.__call__, 16
    assert type(create_cached_dataloaders(*arguments)[0].dataset) is ImageFolder
    with pytest.raises(ValueError, match="augment and draft need an ImageTransform"):
        create_cached_dataloaders(*arguments, augment=RandomFlipCrop())


# ---- the file

def in_a_file(images, **kwargs):
    return CachedImageFolder(images / "train", TRANSFORM, **{"budget_bytes": 0, **kwargs}).cache


def hidden(folder):
    return sorted(path.name for path in folder.glob(".*"))


def test_budget_chooses_and_says(images, capsys):
    size = 90 * 3 * 16 * 16
    assert CachedImageFolder(images / "train", TRANSFORM, budget_bytes=size).cache.path is None
    assert capsys.readouterr() == ("", "")
    cache = CachedImageFolder(images / "train", TRANSFORM, budget_bytes=size - 1).cache
    assert cache.path == images / CACHE_FILE
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"kept in the file {images / CACHE_FILE}" in err
    cache.get(range(len(cache)))
    in_a_file(images)
    assert f"taken from the file {images / CACHE_FILE}" in capsys.readouterr().err


def test_second_program_decodes_nothing(images, monkeypatch):
    pixels = in_a_file(images).get(range(90))
    assert hidden(images) == [CACHE_FILE]
    monkeypatch.setattr("pytorch_course.decoding.open_image", None)
    again = in_a_file(images)
    assert again.is_complete and torch.equal(again.get(range(90)), pixels)


@pytest.mark.parametrize("change", ["content", "time", "removed", "added", "renamed", "damaged", "cut", "empty"])
def test_changed_files_invalidate(images, change):
    in_a_file(images).get(range(90))
    file, store = images / "train" / "cat" / "00.jpg", images / CACHE_FILE
    if change == "content":
        shutil.copyfile(images / "train" / "dog" / "03.jpg", file)
    if change == "time":
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    if change == "removed":
        file.unlink()
    if change == "added":
        shutil.copy(file, file.with_name("0.jpg"))
    if change == "renamed":
        file.rename(file.with_name("99.jpg"))
    if change == "damaged":
        store.write_bytes(b"x" + store.read_bytes()[1:])
    if change == "cut":
        os.truncate(store, store.stat().st_size - 1)
    if change == "empty":
        store.write_bytes(b"")
    cache = in_a_file(images)
    assert not cache.is_complete
    expected = torch.stack([TRANSFORM.resize(Image.open(path).convert("RGB")) for path in paths_of(images / "train")])
    assert torch.equal(cache.get(range(len(cache))), expected)
    assert in_a_file(images).is_complete and hidden(images) == [CACHE_FILE]


def test_moved_data_stay_decoded(images):
    in_a_file(images).get(range(90))
    assert in_a_file(images.rename(images.with_name("moved"))).is_complete


def test_changed_while_it_is_filled_is_not_kept(images):
    cache = in_a_file(images)
    os.utime(images / "train" / "cat" / "00.jpg")
    cache.get(range(len(cache)))
    del cache
    assert hidden(images) == []


def test_cache_dir_keeps_data_sets_apart(images, tmp_path):
    for split in ("train", "test"):
        CachedImageFolder(images / split, TRANSFORM, cache=tmp_path / "store").fill_cache()
    other = shutil.copytree(images, tmp_path / "other")
    CachedImageFolder(other / "train", TRANSFORM, cache=tmp_path / "store").fill_cache()
    assert len(hidden(tmp_path / "store")) == 3 and hidden(images) == []
    assert all(
        CachedImageFolder(f, TRANSFORM, cache=tmp_path / "store").cache.is_complete
        for f in (images / "train", images / "test", other / "train")
    )


def test_without_a_place_it_decodes_each_time(images, capsys, monkeypatch):
    (images / "file").touch()
    cache = in_a_file(images, cache=images / "file" / "store")
    assert "decoded each time, because the file" in capsys.readouterr().err
    assert torch.equal(cache.get([3, 1]), in_a_file(images).get([3, 1]))

    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", full)
    for name in hidden(images):
        (images / name).unlink()
    in_a_file(images).get([0])
    assert "No space left on device" in capsys.readouterr().err and hidden(images) == []


PROGRAM = """
import hashlib, sys, time
from pytorch_course import decoding, image_cache
from pytorch_course.images import ImageTransform
seconds, read = float(sys.argv[2]), decoding.open_image
def open_image(*arguments):
    time.sleep(seconds)
    return read(*arguments)
decoding.open_image = open_image
cache = image_cache.CachedImageFolder(sys.argv[1], ImageTransform(image_size=16), budget_bytes=0).cache
print("begin", cache.is_complete, flush=True)
sys.stdin.readline()
print(hashlib.md5(cache.get(range(len(cache))).numpy().tobytes()).hexdigest(), flush=True)
"""


def start(images, seconds=0.0):
    "A program that opens the cache, says so, and decodes everything when it gets a line."
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", PROGRAM, str(images / "train"), str(seconds)]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


def test_two_programs_at_once(images):
    running = [start(images, 0.01) for _ in range(2)]
    assert [process.stdout.readline() for process in running] == ["begin False\n"] * 2
    found = [process.communicate("go\n", timeout=120)[0] for process in running]
    assert found[0] == found[1] and hidden(images) == [CACHE_FILE]
    assert start(images).communicate("go\n")[0] == "begin True\n" + found[0]


@pytest.mark.parametrize("after", [0.0, 0.3, 0.8])
def test_killed_while_filling(images, after):
    process = start(images, 0.1)  # 90 images: nine seconds at least
    assert process.stdout.readline() == "begin False\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = hidden(images)
    assert len(left) == 1 and left[0].endswith(f".{process.pid}.part")
    cache = in_a_file(images)
    assert not cache.is_complete and len(hidden(images)) == 1 and hidden(images) != left  # removed
    in_memory = CachedImageFolder(images / "train", TRANSFORM).cache
    assert torch.equal(cache.get(range(90)), in_memory.get(range(90)))
    assert hidden(images) == [CACHE_FILE]


def test_ended_by_an_error_leaves_nothing(images):
    (images / "train" / "eel" / "09.jpg").write_bytes(b"")
    process = start(images)
    assert "it is empty" in process.communicate("go\n", timeout=120)[1]
    assert process.returncode == 1 and hidden(images) == []


# ---- memory

MEMORY = """
import sys
from pytorch_course.image_cache import ImageCache
from pytorch_course.images import ImageTransform
def now(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
path = sys.argv[1]
ImageCache([path] * 2, ImageTransform(224), "/nowhere").get([0, 1])  # Pillow's and PyTorch's own
before = now("VmRSS")
cache = ImageCache([path] * 400, ImageTransform(224), "/nowhere")
assert now("VmRSS") - before < 2**20, "nothing is taken before it is needed"
for _ in range(2):
    for i in range(0, 400, 20): cache.get(range(i, i + 20))
print(now("VmHWM") - before - cache.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_memory_is_that_of_the_pixels(images):
    image = images / "train" / "cat" / "00.jpg"
    line = [sys.executable, "-c", MEMORY, str(image)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20 * 2**20


def test_available_memory_knows_limits():
    assert 0 < available_memory() < 2**45


# ---- chance

def test_derive_seeds_is_derive_seed():
    rng = np.random.default_rng(0)
    for seed in [0, 1, 2**32 - 1, 2**63 + 11, *map(int, rng.integers(0, 2**63, 20))]:
        numbers = np.array([0, 1, 5, 2**31, 2**40, *rng.integers(0, 2**62, 50)])
        assert derive_seeds(seed, numbers).tolist() == [derive_seed(seed, int(number)) for number in numbers]
        assert derive_seeds(seed, numbers, 3).tolist() == [derive_seed(seed, int(number), 3) for number in numbers]


def test_augmentation_is_a_function_of_seed_epoch_and_number(original):
    dataset = CachedImageFolder(original / "train", TRANSFORM, augment=RandomFlipCrop(2))
    def chosen(seed, numbers):
        indices = SeededIndices(numbers)
        indices.seed = seed
        return collate_batch(dataset.__getitems__(indices))[0]
    assert torch.equal(chosen(7, [3, 50, 8]), chosen(7, [8, 3, 9, 50])[[1, 3, 0]])
    assert not torch.equal(chosen(7, [3, 50, 8]), chosen(8, [3, 50, 8]))

    def epochs(num_workers, batch_size, first=0, **kwargs):
        loader = DataLoader(
            dataset, batch_size, shuffle=True, num_workers=num_workers, collate_fn=collate_batch, **kwargs
        )
        seeded = SeededDataLoader(loader, 5)
        return [batches(seeded.set_position(epoch, first)) for epoch in range(3)]

    expected = epochs(0, 16)
    for num_workers in (1, 2):
        assert all(assert_same(*pair) is None for pair in zip(epochs(num_workers, 16), expected))
    for found, whole in zip(epochs(0, 16, first=2), expected):
        assert_same(found, whole[2:])
    assert torch.equal(
        torch.cat([X for X, _ in epochs(0, 11)[1]]), torch.cat([X for X, _ in expected[1]])
    )  # other batches, same images
    plain = DataLoader(
        CachedImageFolder(original / "train", TRANSFORM, augment=RandomFlipCrop(2), cache=False),
        16,
        shuffle=True,
        collate_fn=collate_batch,
    )
    assert_same(batches(SeededDataLoader(plain, 5).set_position(1)), expected[1])


class Stop(Exception):
    pass


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def after_batch(self, trainer):
        if trainer.steps == self.step: raise Stop


def train(images, folder, num_workers=0, stop=None, resume=False, **kwargs):
    train_loader, test_loader, _ = create_cached_dataloaders(
        images / "train", images / "test", TRANSFORM, 16, num_workers, augment=RandomFlipCrop(2), **kwargs
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    callbacks = [Reproducible(3), Checkpoints(folder, resume=resume)] + ([StopAt(stop)] if stop else [])
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, progress=False)
    trainer.fit(3, train_loader, test_loader)
    return [p.tolist() for p in model.state_dict().values()], trainer.history


@pytest.fixture(scope="module")
def uninterrupted(original, tmp_path_factory):
    return train(original, tmp_path_factory.mktemp("run") / "run", cache=False)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_is_the_same_with_and_without(original, uninterrupted, tmp_path, num_workers):
    assert train(original, tmp_path / "run", num_workers) == uninterrupted


@pytest.mark.parametrize("before, after, stop", [(0, 2, 4), (2, 0, 9), (0, 0, 13)])
def test_exact_resume_in_the_middle_of_an_epoch(images, uninterrupted, tmp_path, before, after, stop):
    with pytest.raises(Stop):
        train(images, CheckpointManager(tmp_path / "run", every_steps=1), before, stop)
    assert train(images, tmp_path / "run", after, resume=True, cache=tmp_path / "cache") == uninterrupted


# ---- speed, threads, no processes

def best_time(function):
    times = []
    for _ in range(50):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def test_flip_and_crop_are_fast():
    X = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    seeds, augment = np.arange(64), RandomFlipCrop()

    def one_by_one():
        for x in X:
            nn.functional.pad(x.flip(-1), [4] * 4)[:, 3:35, 5:37].clone()

    assert best_time(lambda: augment(X, seeds)) < best_time(one_by_one) / 2  # about an eighth


@pytest.fixture
def photos(tmp_path):
    "Eight large JPEGs."
    paths = [tmp_path / "photos" / f"{i}.jpg" for i in range(8)]
    paths[0].parent.mkdir()
    for seed, path in enumerate(paths):
        noise = np.random.default_rng(seed).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        assert path.stat().st_size > decoding._LARGE_FILE
    return paths


def test_no_process_is_started_and_no_thread_stays(photos, images, monkeypatch):
    def refuse():
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(decoding, "cpu_count", lambda: 4)
    used, read = set(), decoding.open_image
    monkeypatch.setattr(decoding, "open_image", lambda *args: used.add(threading.get_ident()) or read(*args))
    ImageCache(paths_of(images / "train"), TRANSFORM, images / "train").get(range(90))
    assert used == {threading.get_ident()}
    threads = threading.active_count()
    pixels = ImageCache(photos, TRANSFORM, photos[0].parent).get(range(8))
    assert torch.equal(pixels, torch.stack([TRANSFORM.resize(read(path)) for path in photos]))
    assert len(used) > 1 and threading.active_count() == threads


def test_a_broken_photo_is_named_and_the_others_are_decoded(photos, monkeypatch):
    monkeypatch.setattr(decoding, "cpu_count", lambda: 2)
    photos[5].write_bytes(b"nothing")
    cache = ImageCache(photos, TRANSFORM, photos[0].parent)
    with pytest.raises(ImageError, match="5.jpg"):
        cache.get(range(8))
    assert cache.decoded.tolist() == [1, 1, 1, 1, 1, 0, 1, 1] and not cache.is_complete


def test_only_what_is_asked_for_is_decoded(images):
    cache = ImageCache(paths_of(images / "train"), TRANSFORM, images / "train")
    counts = []
    for indices in ([0, 1], [2], [2, 3, 4], [88, 89]):
        cache.get(indices)
        counts.append(int(cache.decoded.sum()))
    assert counts == [2, 3, 5, 7]
