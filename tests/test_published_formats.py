"""`get_data("fashion_mnist")` and `get_data("cifar10")` against small files in the published formats, on 127.0.0.1.

The real code runs, ours and torchvision's; only the checksums are those of the small files.
"""
import functools
import gzip
import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pytorch_course.data import find_splits
from pytorch_course.get_data import DownloadError, get_data

torchvision_datasets = pytest.importorskip("torchvision.datasets")
FashionMNIST, CIFAR10 = torchvision_datasets.FashionMNIST, torchvision_datasets.CIFAR10

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FASHION_FOLDERS = [  # "T-shirt/top" cannot be a folder's name
    "T-shirt-top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
]


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def random_pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Published:
    "A folder of published files, the server that offers it, and a list of what was asked for."

    def __init__(self, folder: Path):
        self.folder, self.requested = folder, []
        folder.mkdir()
        published = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                published.requested.append(self.path)
                super().do_GET()

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def write(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return md5(content)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def published(tmp_path, monkeypatch):
    published = Published(tmp_path / "published")
    monkeypatch.setenv("PYTORCH_COURSE_MIRROR", published.address)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield published
    published.close()


def idx(array: np.ndarray) -> bytes:
    "The IDX format of MNIST: two zero bytes, type 8 (unsigned byte), number of dimensions, sizes, values."
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(published, monkeypatch):
    "Twenty training and ten test images as FashionMNIST's four files; split -> images."
    images, resources = {}, []
    for split, prefix, count in (("train", "train", 20), ("test", "t10k", 10)):
        images[split] = random_pixels(count, count, 28, 28)
        for kind, array in (("images-idx3", images[split]), ("labels-idx1", np.arange(count) % 10)):
            name = f"{prefix}-{kind}-ubyte.gz"
            resources.append((name, published.write(name, gzip.compress(idx(array), mtime=0))))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    return images


@pytest.fixture
def cifar(published, monkeypatch):
    "Fifty training images in five batches and ten test images as CIFAR-10's archive; split -> images (N, 32, 32, 3)."
    batches = {f"data_batch_{i}": random_pixels(i, 10, 3, 32, 32) for i in range(1, 6)} | {
        "test_batch": random_pixels(6, 10, 3, 32, 32)
    }
    members = {name: {"data": pixels.reshape(10, -1), "labels": list(range(10))} for name, pixels in batches.items()}
    members["batches.meta"] = {"label_names": CIFAR_CLASSES}
    packed = {name: pickle.dumps(content, protocol=2) for name, content in members.items()}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in packed.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(CIFAR10, "tgz_md5", published.write("cifar-10-python.tar.gz", file.getvalue()))
    monkeypatch.setattr(
        CIFAR10, "train_list", [[f"data_batch_{i}", md5(packed[f"data_batch_{i}"])] for i in range(1, 6)]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(packed["test_batch"])]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(packed["batches.meta"])})
    images = {name: pixels.transpose(0, 2, 3, 1) for name, pixels in batches.items()}
    return {"train": np.concatenate([images[f"data_batch_{i}"] for i in range(1, 6)]), "test": images["test_batch"]}


def check_folders(folder: Path, images: dict[str, np.ndarray], class_names: list[str], mode: str):
    "Every image is in its class folder, pixel by pixel, and nothing else is there."
    assert find_splits(folder) == (folder / "train", folder / "test")
    for split, arrays in images.items():
        files = {file.name: file for file in (folder / split).rglob("*.png")}
        assert sorted(files) == [f"{i:05d}.png" for i in range(len(arrays))]
        assert sorted(path.name for path in (folder / split).iterdir()) == sorted(class_names)
        for i, array in enumerate(arrays):
            with Image.open(files[f"{i:05d}.png"]) as image:
                assert image.mode == mode
                np.testing.assert_array_equal(np.asarray(image), array)
            assert files[f"{i:05d}.png"].parent.name == class_names[i % 10]


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_fashion_mnist_becomes_image_folders(fashion, published, tmp_path):
    folder = get_data("fashion_mnist", tmp_path / "data")
    check_folders(folder, fashion, FASHION_FOLDERS, mode="L")
    assert sorted(published.requested) == sorted(f"/{name}" for name, _ in FashionMNIST.resources)
    assert contents(tmp_path / "data") == ["fashion_mnist"]  # the packed files are not kept twice


def test_cifar10_becomes_image_folders(cifar, published, tmp_path):
    folder = get_data("cifar10", tmp_path / "data")
    check_folders(folder, cifar, CIFAR_CLASSES, mode="RGB")
    assert published.requested == ["/cifar-10-python.tar.gz"]
    assert contents(tmp_path / "data") == ["cifar10"]


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_batches_come_out(name, fashion, cifar, tmp_path):
    from pytorch_course.data import create_dataloaders
    from pytorch_course.images import ImageTransform

    splits = find_splits(get_data(name, tmp_path / "data"))
    train_dataloader, test_dataloader, class_names = create_dataloaders(
        *splits, ImageTransform(image_size=32), batch_size=10
    )
    X, y = next(iter(train_dataloader))
    assert X.shape == (10, 3, 32, 32) and len(class_names) == 10
    assert sorted(int(label) for _, labels in test_dataloader for label in labels) == list(range(10))


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_complete_data_is_not_asked_for_again(name, fashion, cifar, published, tmp_path):
    folder = get_data(name, tmp_path / "data")
    published.requested.clear()
    published.close()  # no network from here on
    assert get_data(name, tmp_path / "data") == folder
    assert published.requested == []


@pytest.mark.parametrize(
    "name, file", [("fashion_mnist", "t10k-labels-idx1-ubyte.gz"), ("cifar10", "cifar-10-python.tar.gz")]
)
def test_wrong_file_is_refused_and_the_next_try_succeeds(name, file, fashion, cifar, published, tmp_path):
    right = (published.folder / file).read_bytes()
    (published.folder / file).write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    with pytest.raises(DownloadError, match="md5 is .* expected"):
        get_data(name, tmp_path / "data")
    assert name not in contents(tmp_path / "data")  # nothing that looks complete
    assert not [path for path in (tmp_path / "data").rglob("*") if path.name.endswith(".part")]
    (published.folder / file).write_bytes(right)
    published.requested.clear()
    get_data(name, tmp_path / "data")
    assert published.requested == [f"/{file}"]  # what was right the first time was kept
    assert contents(tmp_path / "data") == [name]


def test_missing_file_is_named(fashion, published, tmp_path):
    (published.folder / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DownloadError, match="train-images-idx3-ubyte.gz: the server answered 404"):
        get_data("fashion_mnist", tmp_path / "data")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
