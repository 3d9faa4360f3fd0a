"""`predict` and `evaluate` with many files, some of them broken, and with data as they lie on a disk."""
import csv
import json
import math
import shutil
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from pytorch_course import runs
from pytorch_course.evaluation import evaluate_model, plot_confusion_matrix
from pytorch_course.going_modular import main
from pytorch_course.images import ImageTransform
from pytorch_course.model import build_model
from pytorch_course.save_load import ModelInfo, save_model

CLASSES = ["ant", "bee", "cat", "dog"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command(*words):
    "Exit status, output, errors."
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            status = main([*map(str, words)])
        except SystemExit as stopped:
            status = stopped.code
    return status, out.getvalue(), err.getvalue()


def refused(*words):
    "The one line of an error."
    status, out, err = command(*words)
    assert (status, out, err.count("\n")) == (2, "", 1), (status, out, err)
    return err


def write_images(folder, names):
    for i, name in enumerate(names):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (i * 37 % 256, i * 101 % 256, 60)).save(path, "png")
    return [str(Path(folder, name)) for name in names]


def make_model(folder, class_names=tuple(CLASSES)):
    "An untrained model; what it answers is not the point here."
    torch.manual_seed(0)
    kwargs = dict(input_shape=3, hidden_units=2, output_shape=len(class_names), image_size=16)
    transform = ImageTransform(image_size=16)
    info = ModelInfo("tinyvgg", kwargs, [*class_names], transform)
    return save_model(build_model("tinyvgg", **kwargs), folder, "model.pt", info)


@pytest.fixture
def run(tmp_path):
    "A finished run on `pets`, with its config and a checkpoint."
    for split in ("train", "test"):
        write_images(f"pets/{split}", [f"{name}/{i}.png" for name in CLASSES for i in range(3)])
    run = Path("runs/pets-tinyvgg")
    make_model(run)
    runs.write_config(run, {"train_dir": "pets/train", "test_dir": "pets/test", "name": "pets"})
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-00000047.pt").touch()
    return run


# --- C10: all or nothing; folders; many files ---


def test_predict_prints_what_it_can(run):
    good = write_images("photos", [f"{i}.png" for i in range(70)])
    for number in (0, 33, 69):
        Path(good[number]).write_text("not an image")
    status, out, err = command("predict", run, *good, "missing.png")
    assert status == 1
    assert [line.split("  ")[0] for line in out.splitlines()] == [good[i] for i in range(70) if i not in (0, 33, 69)]
    lines = err.splitlines()
    assert len(lines) == 4 and all(name in line for name, line in zip(["0.png", "33.png", "69.png", "missing"], lines))
    status, out, err = command("predict", run, *good, "--json")
    results = json.loads(out)
    assert (status, [entry["path"] for entry in results], err.count("\n")) == (1, good, 3)
    assert [i for i, entry in enumerate(results) if {*entry} == {"path", "error"}] == [0, 33, 69]
    results = results[1:]
    assert {*results[0]} == {"path", "predictions"} and {*results[0]["predictions"][0]} == {"class", "probability"}
    assert command("predict", run, good[0], "--json")[0] == 1


def test_predict_takes_folders(run):
    names = ["b.png", "a/z.PNG", "a/y.png", ".hidden.png", ".cache/x.png"]
    files = write_images("photos", names)
    (Path("photos") / "notes.txt").write_text("no image")
    status, out, err = command("predict", run, "photos", files[0])
    assert (status, err) == (0, "pytorch-course predict: skipped *.txt (1), .cache/ (1), .hidden.png (1)\n")
    found = [Path(line.split("  ")[0]).relative_to("photos").as_posix() for line in out.splitlines()]
    assert found == ["a/y.png", "a/z.PNG", "b.png", "b.png"]
    Path("empty").mkdir()
    assert "no images in empty" in refused("predict", run, "empty")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_predict_prints_each_answer_as_it_comes(run, flags, monkeypatch):
    "The first answers are out before the last files are opened."
    from pytorch_course import save_load
    files = write_images("photos", [f"{i:03}.png" for i in range(100)])
    printed, open_image = [], save_load.open_image
    out = StringIO()

    def watch(path, *args, **kwargs):
        if str(path).endswith("099.png"):
            printed.append(out.getvalue().count("probability" if flags else "%"))
        return open_image(path, *args, **kwargs)

    monkeypatch.setattr(save_load, "open_image", watch)
    with redirect_stdout(out):
        assert main(["predict", str(run), *files, *flags]) == 0
    assert printed and printed[0] >= 64
    assert out.getvalue().count("probability" if flags else "%") == 100


def test_predict_memory_does_not_grow(run):
    "Only a batch of images is in memory: the tensors of all would be 12 MB."
    import tracemalloc
    files = write_images("photos", [f"{i}.png" for i in range(50)])

    def peak(paths):
        tracemalloc.start()
        assert command("predict", run, *paths)[0] == 0
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(files)  # imports
    assert peak(files * 40) - peak(files) < 2000 * 700  # output and paths


def test_plot_never_replaces_a_given_image(run):
    good, other = write_images("photos", ["a.png", "b.png"])
    before = Path(good).read_bytes()
    for images in ([good, other], ["photos"]):
        assert "would replace the image photos/a.png" in refused("predict", run, *images, "--plot", good)
    (Path("link.png")).symlink_to(good)
    assert "would replace" in refused("predict", run, good, "--plot", "link.png")
    assert Path(good).read_bytes() == before
    assert "choose a name that ends in" in refused("predict", run, good, "--plot", "figure.txt")
    assert "cannot write" in refused("predict", run, good, "--plot", "nowhere/figure.png")
    many = write_images("many", [f"{i}.png" for i in range(120)])
    assert command("predict", run, *many, "--plot", "figure.png")[0] == 0
    assert math.prod(Image.open("figure.png").size) < 5e6  # 40 images of 120


# --- C9: a message for each thing that is no model ---


def test_what_is_no_model(run):
    (photo,) = write_images("photos", ["a.png"])
    assert "download the file first" in refused("predict", "https://x.org/model.pt", photo)
    checkpoint = run / "checkpoints" / "step-00000047.pt"
    assert f"not a model file; use {run / 'model.pt'}" in refused("predict", checkpoint, photo)
    make_model("runs/second")
    line = refused("predict", "runs", photo)
    assert str(run) in line and str(Path("runs/second")) in line
    (run / "model.pt").unlink()
    for name in (checkpoint, run):
        assert f"pytorch-course train --resume {run}" in refused("predict", name, photo)
    assert "no model file at photos/model.pt" in refused("predict", "photos", photo)
    make_model("checkpoints")  # a folder may be called so
    assert command("predict", "checkpoints/model.pt", photo)[0] == 0


# --- C12: which test images ---


def test_evaluate_uses_the_data_of_the_run(run):
    for model in (run, run / "model.pt"):
        status, out, err = command("evaluate", model)
        assert (status, err) == (0, "") and "of 12 correct" in out and "pets" in out
    assert not Path("data").exists()


def test_evaluate_without_a_run_says_what_is_missing(run):
    make_model("alone")
    assert "give --data or --test_dir" in refused("evaluate", "alone/model.pt")
    assert not Path("data").exists()
    shutil.rmtree("pets/test")
    assert "no folder" in refused("evaluate", run)


@pytest.mark.parametrize("data", ["pets", "pets/test"])
def test_evaluate_takes_the_test_folder_itself(run, data):
    status, out, _ = command("evaluate", run, "--data", data, "--json")
    assert status == 0 and [row["support"] for row in json.loads(out)["classes"]] == [3, 3, 3, 3]


def test_evaluate_on_some_of_the_classes(run):
    for name in ("bee", "dog"):
        shutil.copytree(f"pets/test/{name}", f"some/{name}")
    status, out, _ = command("evaluate", run, "--test_dir", "some", "--json", "--num_workers", 1)
    found = json.loads(out)
    assert (status, [row["support"] for row in found["classes"]]) == (0, [0, 3, 0, 3])
    assert [sum(row) for row in found["confusion_matrix"]] == [0, 3, 0, 3]
    Path("some/bee").rename("some/wasp")
    assert "does not know: ['wasp']" in refused("evaluate", run, "--test_dir", "some")


@pytest.mark.parametrize("data", [[], ["--data", "photos"]])
def test_evaluate_never_measures_on_images_that_were_trained_on(data):
    "A run that has split a folder itself: only its test part is measured, also when the folder is named."
    write_images("photos", [f"{name}/{i}.png" for name in CLASSES for i in range(10)])
    status, _, err = command(
        "train", "--data", "photos", "--epochs", 1, "--image_size", 16, "--hidden_units", 2, "--out", "mine"
    )
    assert (status, err) == (0, "")
    status, out, _ = command("evaluate", "mine", *data, "--json")
    assert status == 0 and [row["support"] for row in json.loads(out)["classes"]] == [2, 2, 2, 2]
    reported = json.loads(Path("mine/config.json").read_text())["model_info"]["metrics"]
    assert any(json.loads(out)["accuracy"] == pytest.approx(value) for value in reported.values())


# --- C2: numbers first, a bad place before the work ---


def test_evaluate_knows_a_bad_place_before_the_work(run, monkeypatch):
    from pytorch_course import evaluation

    def work(*_):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(evaluation, "evaluate_model", work)
    assert "choose a name that ends in" in refused("evaluate", run, "--plot", "x.txt")
    assert "choose another place" in refused("evaluate", run, "--plot", "nowhere/x.png")


def test_evaluate_never_loses_the_numbers(run, monkeypatch):
    from pytorch_course import evaluation

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device", "x.png")

    monkeypatch.setattr(evaluation, "plot_confusion_matrix", full_disk)
    for flags, expected in (([], 0), (["--plot", "x.png"], 2)):  # a warning, unless the place was asked for
        status, out, err = command("evaluate", run, *flags)
        assert status == expected and "of 12 correct" in out and "No space left" in err


# --- C1: many classes ---


def result_of(num_classes, n=20_000):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(num_classes, (n,), generator=generator)
    logits = torch.randn(n, num_classes, generator=generator)
    logits[torch.arange(n), y] += 3
    names = [f"class {i}" for i in range(num_classes)]
    return evaluate_model(torch.nn.Identity(), DataLoader(TensorDataset(logits, y), 1000), names)


@pytest.mark.parametrize("num_classes", [200, 1000])
def test_many_classes(num_classes, tmp_path):
    plot_confusion_matrix(torch.eye(2), ["a", "b"]).savefig(tmp_path / "warm_up.png")  # imports Matplotlib
    result = result_of(num_classes)
    start = time.process_time()
    figure = plot_confusion_matrix(result.matrix, [str(name) for name in result.report.index])
    figure.savefig(tmp_path / "plain.png")
    assert time.process_time() - start < 2  # measured: 0.4 s
    assert math.prod(Image.open(tmp_path / "plain.png").size) < 1e6
    assert f"the 30 most confused of {num_classes:,} classes" in figure.axes[0].get_title()
    result.save_matrix(tmp_path / "confusion_matrix.png")
    assert math.prod(Image.open(tmp_path / "confusion_matrix.png").size) < 1e6
    with (tmp_path / "confusion_matrix.csv").open() as table:
        rows = list(csv.reader(table))
    assert rows[0][1:] == list(result.report.index) == [row[0] for row in rows[1:]]
    assert [[int(number) for number in row[1:]] for row in rows[1:]] == result.matrix.tolist()
    assert len(repr(result).splitlines()) < 80


def test_the_most_confused_classes_are_shown():
    matrix = torch.eye(300, dtype=torch.long) * 50
    matrix[250, 7], matrix[3, 299] = 40, 30
    labels = [f"class {i}" for i in range(300)]
    shown = [label.get_text() for label in plot_confusion_matrix(matrix, labels).axes[0].get_yticklabels()]
    assert len(shown) == 30 and {"class 3", "class 7", "class 250", "class 299"} <= {*shown}
    assert shown == sorted(shown, key=labels.index)


# --- the start is quick ---


def test_predict_imports_little(run):
    import subprocess
    import sys
    (photo,) = write_images("photos", ["a.png"])
    code = "import sys; from pytorch_course.going_modular import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "predict", str(run), photo], capture_output=True, text=True)
    loaded = {*done.stdout.split()}
    assert "torch" in loaded and not {"torchvision", "pandas", "matplotlib", "sklearn"} & loaded
