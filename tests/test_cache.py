"""The store of decoded pictures with several processes: workers, two programs at once, one that is killed; and exact resume with it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset, default_collate, random_split

from pytorch_course import image_cache
from pytorch_course.image_cache import (
    ImageCache,
    RandomFlipCrop,
    available_memory,
    collate_batch,
    derive_seeds,
    cpu_count,
)
from pytorch_course.data import CachedImageFolder, ImageFolder, create_dataloaders
from pytorch_course.images import ImageError, ImageTransform
from pytorch_course.reproducibility import SeededIndices, SeededDataLoader, derive_seed
from pytorch_course.training import Callback, Trainer

TRANSFORM = ImageTransform(image_size=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
STORE = ".train-3x16x16.pictures"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    "90 + 30 pictures in three classes, of three kinds."
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
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
def pictures(original, tmp_path):
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


@pytest.mark.parametrize("transform", [TRANSFORM, ImageTransform(image_size=20, channels=1), ImageTransform(image_size=7, mean=(0,), std=(0.3,))], ids=repr)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_batches_are_those_without_it(original, transform, num_workers):
    def loaders(cache):
        return create_dataloaders(
            original / "train", original / "test", transform, 16, num_workers, seed=1, cache=cache
        )[:2]

    for cached, plain in zip(loaders(True), loaders(False)):
        assert cached.dataset.cache.filled is not None and plain.dataset.cache.filled is None
        for _ in range(3):
            assert_same(batches(cached), batches(plain))


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("budget_bytes", [None, 0])
def test_workers_fill_one_store(pictures, context, budget_bytes):
    cached = CachedImageFolder(pictures / "train", TRANSFORM, budget_bytes=budget_bytes)
    loader = DataLoader(cached, 9, num_workers=2, multiprocessing_context=context, collate_fn=collate_batch)
    plain = batches(DataLoader(ImageFolder(pictures / "train", TRANSFORM), 9))
    assert_same(batches(loader), plain)
    assert cached.cache.filled.all()  # seen from here
    for path in paths_of(pictures / "train"):
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
def test_broken_pictures_are_named(pictures, num_workers):
    broken = pictures / "train" / "dog" / "04.png"
    broken.write_bytes(b"nothing")
    loaders = [
        create_dataloaders(pictures / "train", pictures / "test", TRANSFORM, 16, num_workers, cache=cache)[0]
        for cache in (True, False)
    ]
    messages = []
    for loader in loaders:
        with pytest.raises(ImageError) as caught:
            batches(loader)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] == f"cannot read {broken}: not a picture in a format that Pillow knows"


def test_only_image_transforms_are_kept(original):
    loader, _, _ = create_dataloaders(original / "train", original / "test", TRANSFORM.__call__, 16)
    assert type(loader.dataset) is ImageFolder
    with pytest.raises(ValueError, match="augment needs an ImageTransform"):
        create_dataloaders(original / "train", original / "test", TRANSFORM.__call__, 16, augment=RandomFlipCrop())


# ---- the file

def in_a_file(pictures, **kwargs):
    return CachedImageFolder(pictures / "train", TRANSFORM, **{"budget_bytes": 0, **kwargs}).cache


def hidden(folder):
    return sorted(path.name for path in folder.glob(".*"))


def test_budget_chooses_and_says(pictures, capsys):
    size = 90 * 3 * 16 * 16
    assert CachedImageFolder(pictures / "train", TRANSFORM, budget_bytes=size).cache.path is None
    assert capsys.readouterr() == ("", "")
    cache = CachedImageFolder(pictures / "train", TRANSFORM, budget_bytes=size - 1).cache
    assert cache.path == pictures / STORE
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"kept in the file {pictures / STORE}" in err
    cache.fill()
    in_a_file(pictures)
    assert f"taken from the file {pictures / STORE}" in capsys.readouterr().err


def test_second_program_decodes_nothing(pictures, monkeypatch):
    pixels = in_a_file(pictures).fill().take(range(90))
    assert hidden(pictures) == [STORE]
    monkeypatch.setattr("pytorch_course.image_cache.open_image", None)
    again = in_a_file(pictures)
    assert again.complete and torch.equal(again.take(range(90)), pixels)


@pytest.mark.parametrize("change", ["content", "time", "removed", "added", "renamed", "damaged", "cut", "empty"])
def test_changed_files_invalidate(pictures, change):
    in_a_file(pictures).fill()
    file, store = pictures / "train" / "cat" / "00.jpg", pictures / STORE
    if change == "content":
        shutil.copyfile(pictures / "train" / "dog" / "03.jpg", file)
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
    cache = in_a_file(pictures)
    assert not cache.complete
    expected = torch.stack([TRANSFORM.resize(Image.open(path).convert("RGB")) for path in paths_of(pictures / "train")])
    assert torch.equal(cache.fill().take(range(len(cache))), expected)
    assert in_a_file(pictures).complete and hidden(pictures) == [STORE]


def test_moved_data_stay_decoded(pictures):
    in_a_file(pictures).fill()
    assert in_a_file(pictures.rename(pictures.with_name("moved"))).complete


def test_changed_while_it_is_filled_is_not_kept(pictures):
    cache = in_a_file(pictures)
    os.utime(pictures / "train" / "cat" / "00.jpg")
    cache.fill()
    del cache
    assert hidden(pictures) == []


def test_cache_dir_keeps_data_sets_apart(pictures, tmp_path):
    for split in ("train", "test"):
        CachedImageFolder(pictures / split, TRANSFORM, cache=tmp_path / "store").cache.fill()
    other = shutil.copytree(pictures, tmp_path / "other")
    CachedImageFolder(other / "train", TRANSFORM, cache=tmp_path / "store").cache.fill()
    assert len(hidden(tmp_path / "store")) == 3 and hidden(pictures) == []
    assert all(
        CachedImageFolder(f, TRANSFORM, cache=tmp_path / "store").cache.complete
        for f in (pictures / "train", pictures / "test", other / "train")
    )


def test_without_a_place_it_decodes_each_time(pictures, capsys, monkeypatch):
    (pictures / "file").touch()
    cache = in_a_file(pictures, cache=pictures / "file" / "store")
    assert "decoded anew each time, since the file" in capsys.readouterr().err
    assert torch.equal(cache.take([3, 1]), in_a_file(pictures).take([3, 1]))

    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", full)
    for name in hidden(pictures):
        (pictures / name).unlink()
    in_a_file(pictures).take([0])
    assert "No space left on device" in capsys.readouterr().err and hidden(pictures) == []


PROGRAM = """
import hashlib, sys, time
from pytorch_course import image_cache
from pytorch_course.data import CachedImageFolder
from pytorch_course.images import ImageTransform
slowly, read = float(sys.argv[2]), cache.open_image
def open_image(path, draft=None):
    time.sleep(slowly)
    return read(path)
cache.open_image = open_image
store = CachedImageFolder(sys.argv[1], ImageTransform(image_size=16), budget_bytes=0).cache
print("begin", store.complete, flush=True)
print(hashlib.md5(store.fill().take(range(len(store))).numpy().tobytes()).hexdigest(), flush=True)
"""


def start(pictures, slowly):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", PROGRAM, str(pictures / "train"), str(slowly)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_two_programs_at_once(pictures):
    running = [start(pictures, 0.01) for _ in range(2)]
    found = [process.communicate(timeout=120)[0].split() for process in running]
    assert [words[1] for words in found] == ["False", "False"] and found[0][2] == found[1][2]
    assert hidden(pictures) == [STORE] and start(pictures, 0).communicate()[0].split() == ["begin", "True", found[0][2]]


@pytest.mark.parametrize("after", [0.0, 0.3, 0.8])
def test_killed_while_filling(pictures, after):
    process = start(pictures, 0.02)
    assert process.stdout.readline() == "begin False\n"
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = hidden(pictures)
    assert len(left) == 1 and left[0].endswith(f".{process.pid}.part")
    cache = in_a_file(pictures)
    assert not cache.complete and len(hidden(pictures)) == 1 and hidden(pictures) != left  # swept
    assert torch.equal(
        cache.fill().take(range(90)), CachedImageFolder(pictures / "train", TRANSFORM).cache.take(range(90))
    )
    assert hidden(pictures) == [STORE]


def test_ended_by_an_error_leaves_nothing(pictures):
    (pictures / "train" / "eel" / "09.jpg").write_bytes(b"")
    process = start(pictures, 0)
    assert "it is empty" in process.communicate(timeout=60)[1] and process.returncode == 1 and hidden(pictures) == []


# ---- memory

MEMORY = """
import sys
from pytorch_course.image_cache import ImageCache
from pytorch_course.images import ImageTransform
def now(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
path, number = sys.argv[1], 100
store = ImageCache([path] * 2, ImageTransform(224), "/nowhere")
store.fill()  # Pillow's and PyTorch's own
before = now("VmRSS")
store = ImageCache([path] * 400, ImageTransform(224), "/nowhere")
assert now("VmRSS") - before < 2**20, "nothing is taken before it is needed"
for _ in range(2):
    for i in range(0, 400, 20): store.take(range(i, i + 20))
print(now("VmHWM") - before - store.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_memory_is_that_of_the_pixels(pictures):
    image = pictures / "train" / "cat" / "00.jpg"
    more = int(
        subprocess.run([sys.executable, "-c", MEMORY, str(image)], capture_output=True, text=True, check=True).stdout
    )
    assert more < 20 * 2**20


def test_available_memory_knows_limits():
    assert 0 < available_memory() < 2**45


# ---- chance

def test_mix_seeds_is_mix_seed():
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
        replay = SeededDataLoader(loader, 5)
        return [batches(replay.start(epoch, first)) for epoch in range(3)]

    expected = epochs(0, 16)
    for num_workers in (1, 2):
        assert all(assert_same(*pair) is None for pair in zip(epochs(num_workers, 16), expected))
    for found, whole in zip(epochs(0, 16, first=2), expected):
        assert_same(found, whole[2:])
    assert torch.equal(
        torch.cat([X for X, _ in epochs(0, 11)[1]]), torch.cat([X for X, _ in expected[1]])
    )  # other batches, same pictures
    plain = DataLoader(
        CachedImageFolder(original / "train", TRANSFORM, augment=RandomFlipCrop(2), cache=False),
        16,
        shuffle=True,
        collate_fn=collate_batch,
    )
    assert_same(batches(SeededDataLoader(plain, 5).start(1)), expected[1])


class Stop(Exception):
    pass


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def after_batch(self, trainer):
        if trainer.steps == self.step: raise Stop


def train(pictures, folder, num_workers=0, stop=None, resume=False, **kwargs):
    train_loader, test_loader, _ = create_dataloaders(
        pictures / "train", pictures / "test", TRANSFORM, 16, num_workers, augment=RandomFlipCrop(2), **kwargs
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(),
        torch.optim.AdamW(model.parameters(), lr=0.01),
        callbacks=[StopAt(stop)] if stop else [],
        progress=False,
    )
    trainer.fit(3, train_loader, test_loader, checkpoint_dir=folder, seed=3, resume=resume)
    return [p.tolist() for p in model.state_dict().values()], trainer.history


@pytest.fixture(scope="module")
def uninterrupted(original, tmp_path_factory):
    return train(original, tmp_path_factory.mktemp("run") / "run", cache=False)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_is_the_same_with_and_without(original, uninterrupted, tmp_path, num_workers):
    assert train(original, tmp_path / "run", num_workers) == uninterrupted


@pytest.mark.parametrize("before, after, stop", [(0, 2, 4), (2, 0, 9), (0, 0, 13)])
def test_exact_resume_in_the_middle_of_an_epoch(pictures, uninterrupted, tmp_path, before, after, stop):
    from pytorch_course.checkpoints import CheckpointManager
    with pytest.raises(Stop):
        train(pictures, CheckpointManager(tmp_path / "run", every_steps=1), before, stop)
    assert train(pictures, tmp_path / "run", after, resume=True, cache=tmp_path / "store") == uninterrupted


# ---- speed

def test_flip_and_crop_are_fast():
    X, seeds, augment = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8), np.arange(64), RandomFlipCrop()
    times = []
    for _ in range(200):
        start = time.perf_counter()
        augment(X, seeds)
        times.append(time.perf_counter() - start)
    assert min(times) / 64 < 10e-6  # 2.5 on a machine that does nothing else


def test_ctrl_c_leaves_no_decoding_process(monkeypatch):
    parent, forked, fork = os.getpid(), [], os.fork
    monkeypatch.setattr(os, "fork", lambda: forked.append(fork()) or forked[-1])

    def work(number):
        if os.getpid() == parent: raise KeyboardInterrupt
        time.sleep(60)

    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        cache._in_forks(work, list(range(8)), processes=3)
    assert time.perf_counter() - start < 20
    assert len(forked) == 2
    for child in forked:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_decoding_looks_ahead_by_what_was_asked_for(pictures):
    store = ImageCache(paths_of(pictures / "train"), TRANSFORM, pictures / "train")
    filled = []
    for numbers in ([0, 1], [2], [3, 4], [88, 89]):
        store.take(numbers)
        filled.append(int(store.filled.sum()))
    assert filled[:2] == [2, 3]  # the first batch, and a single picture: nothing else
    assert filled[2] == 3 + 2 + (4 * 5 if cpu_count() > 1 else 0)
    assert store.filled[[88, 89]].all()
