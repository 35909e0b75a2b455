"""Merged labels go out to each tool and come back: untouched the same, corrected with the correction winning."""

from __future__ import annotations

import json
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_params, run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sesam.artifacts.label_png import read_label, write_gray, write_label
from sesam.artifacts.manifest import Dataset, ImageRecord, load_fine_label, load_predictions
from sesam.artifacts.sources import SAM, WEAK, load_pseudo_label
from sesam.cli.export import EXPORTERS, ImageRegions, labeled_regions
from sesam.datasets.annotations.reading import find_annotations, read_annotation
from sesam.datasets.label_maps import label_map_for
from sesam.errors import SesamError

CLASSES = ("road", "car", "tree & bush")
FILES = {"cvat": "annotations.xml", "label-studio": "tasks.json", "labelme": "city/7.json", "coco": "instances.json"}
SIZES = st.tuples(st.integers(1, 14), st.integers(1, 14))


@pytest.mark.parametrize("form", EXPORTERS)
@given(
    labels=arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.sampled_from((0, 1, 2, 255)))
)
def test_what_goes_out_comes_back(tmp_path_factory, form: str, labels: np.ndarray) -> None:
    out = tmp_path_factory.mktemp("out")
    item = ImageRecord("city/7", "x/city/7.jpg", *labels.shape, "0" * 64)
    found = labeled_regions(labels, np.full_like(labels, SAM), np.full_like(labels, 204), CLASSES)
    assert all(piece.about == {"source": "SAM", "confidence": 0.8} for piece in found)
    EXPORTERS[form]([ImageRegions(item, "city/7.jpg", found)], CLASSES, out)
    if form == "label-studio" and not found:
        return  # it has no size of an image in which nothing is drawn
    (annotation,) = find_annotations(out / FILES[form], "folder", {"city/7", "8"}).values()
    back = read_annotation(annotation, labels.shape, CLASSES, label_map_for("folder", 3, [9]), 3, 1)
    assert np.array_equal(back, labels)


def test_labelme_finds_the_file_of_an_image(tmp_path: Path) -> None:
    """It opens the JSON of the image's own name, which may be longer than the id."""
    name = "aachen_000000_000019_leftImg8bit"
    item = ImageRecord("aachen_000000_000019", f"x/aachen/{name}.png", 2, 2, "0" * 64)
    EXPORTERS["labelme"]([ImageRegions(item, f"{name}.png", [])], CLASSES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.json"]
    assert list(find_annotations(tmp_path, "cityscapes", {item.id})) == [item.id]


def test_a_piece_tells_of_its_own_pixels_alone() -> None:
    """Not of others in the window around it."""
    labels, confidence = np.array([[0, 1], [0, 0]], np.uint8), np.array([[255, 0], [255, 255]], np.uint8)
    sources = np.where(labels == 0, np.uint8(SAM), np.uint8(WEAK))
    found = labeled_regions(labels, sources, confidence, CLASSES)
    assert [piece.about for piece in found] == [
        {"source": "SAM", "confidence": 1.0},
        {"source": "weak label", "confidence": 0.0},
    ]


@pytest.mark.parametrize("form", ("cvat", "label-studio"))
def test_an_image_is_written_before_the_next_is_read(tmp_path: Path, form: str) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (96, 96)).astype(np.uint8)
    item = ImageRecord("7", "7.jpg", *labels.shape, "0" * 64)
    found = labeled_regions(labels, np.full_like(labels, SAM), None, CLASSES)

    def peak(images: int) -> int:
        tracemalloc.start()
        EXPORTERS[form]((ImageRegions(item, "7.jpg", found) for _ in range(images)), CLASSES, tmp_path)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)
    assert peak(12) < 2 * peak(2)


@pytest.fixture
def merged(folder_dataset: Path) -> Path:
    """A workspace with merged labels of a round, made without a network."""
    edit_params(folder_dataset, runtime__num_workers=1)
    for stage in ("prepare", "weak_labels"):
        done = run(f"stages.{stage}", cwd=folder_dataset)
        assert done.returncode == 0, done.stderr
    for k in range(3):
        weak = read_label(folder_dataset / f"data/weak/{k}.png")
        labels = np.where(weak == 255, 0, weak).astype(np.uint8)
        labels[10:20, 40:50] = 1
        sources = np.where(weak == 255, SAM, WEAK).astype(np.uint8)
        for part, values in (("labels", labels), ("sources", sources)):
            write_label(folder_dataset / f"data/pseudo_labels/r1/{part}/{k}.png", values, ((0, 0, 0), (9, 9, 9)))
        write_label(folder_dataset / f"data/rounds/r1/predictions/labels/{k}.png", labels, ((0, 0, 0), (9, 9, 9)))
        write_gray(folder_dataset / f"data/rounds/r1/predictions/confidence/{k}.png", np.full(labels.shape, 128))
    return folder_dataset


def test_values_that_are_none_are_told_with_the_file_that_has_them(
    merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(merged)
    item = Dataset.load().train[1]
    for part, wrong, expected, read in (
        ("rounds/r1/predictions/labels", 9, "0 to 1, and 255 for none", partial(load_predictions, "r1")),
        ("fine/train", 9, "0 to 1, and 255 for none", partial(load_fine_label, "train")),
        ("pseudo_labels/r1/labels", 9, "0 to 1, and 255 for none", partial(load_pseudo_label, "r1")),
        ("pseudo_labels/r1/sources", 255, "0 to 3", partial(load_pseudo_label, "r1")),
    ):
        path = Path(f"data/{part}/1.png")
        before = read_label(path)
        write_label(path, np.where(before == 1, wrong, before), ((0, 0, 0), (9, 9, 9)))
        with pytest.raises(SesamError, match=rf"{part}/1\.png holds {wrong}; expected are {expected}. Delete it"):
            read(item, 2)
        write_label(path, before, ((0, 0, 0), (9, 9, 9)))
    write_label(Path("data/weak/1.png"), np.full((40, 60), 2), ((0, 0, 0), (9, 9, 9)))
    done = run("stages.prompts", "r1", cwd=merged)
    assert done.returncode == 1 and "data/weak/1.png holds 2; expected are 0 to 1" in done.stderr


def correct(path: Path, form: str) -> None:
    """One correction, as a person makes it: the first piece is of the other class."""
    if form == "cvat":
        text = path.read_text()
        first = text.index('label="')
        other = 'label="right"' if text[first:].startswith('label="left"') else 'label="left"'
        path.write_text(text[:first] + other + text[text.index('"', first + 7) + 1 :])
        return
    value = json.loads(path.read_text())
    if form == "label-studio":
        labels = value[0]["annotations"][0]["result"][0]["value"]["brushlabels"]
        labels[0] = {"left": "right", "right": "left"}[labels[0]]
    elif form == "labelme":
        value["shapes"][0]["label"] = {"left": "right", "right": "left"}[value["shapes"][0]["label"]]
    else:
        value["annotations"][0]["category_id"] = {1: 2, 2: 1}[value["annotations"][0]["category_id"]]
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("form", EXPORTERS)
def test_round_and_round(merged: Path, form: str) -> None:
    done = run("sesam.cli.export", "r1", "--to", form, "--out", "to_do", "--images", "1", "2", cwd=merged)
    assert done.returncode == 0, done.stderr
    assert "export: 2 images in to_do" in done.stdout
    files = {**FILES, "labelme": "1.json"}
    correct(merged / "to_do" / files[form], form)
    before = [read_label(merged / f"data/weak/{k}.png") for k in range(3)]
    sent = [read_label(merged / f"data/pseudo_labels/r1/labels/{k}.png") for k in range(3)]
    (merged / "data/corrections").mkdir(parents=True)
    for path in (merged / "to_do").iterdir():
        if path.name != "labels.xml":  # Label Studio's labeling interface
            path.rename(merged / "data/corrections" / path.name)
    done = run("stages.weak_labels", cwd=merged)
    assert done.returncode == 0, done.stderr
    after = [read_label(merged / f"data/weak/{k}.png") for k in range(3)]
    assert np.array_equal(after[0], before[0]) and np.array_equal(after[2], sent[2])
    changed = after[1] != sent[1]
    assert changed.any() and not changed.all() and (after[1] != 255).all()
    assert len(np.unique(sent[1][changed])) == len(np.unique(after[1][changed])) == 1


def test_the_worst_go_out_first(merged: Path) -> None:
    ranking = merged / "data/pseudo_labels/r1/ranking.csv"
    ranking.write_text("id,score\n2,0.9\n0,0.5\n1,0.1\n")
    done = run("sesam.cli.export", "r1", "--to", "coco", "--out", "to_do", "--worst", "2", cwd=merged)
    assert done.returncode == 0, done.stderr
    images = json.loads((merged / "to_do/instances.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["2.png", "0.png"]
    ranking.write_bytes(b"\xff\xfe")
    done = run("sesam.cli.export", "r1", "--to", "coco", "--out", "to_do", "--worst", "2", cwd=merged)
    assert done.returncode == 1 and "ranking.csv is not a ranking" in done.stderr


def test_what_cannot_be_exported_is_told(merged: Path) -> None:
    done = run("sesam.cli.export", "r9", "--to", "coco", "--out", "to_do", cwd=merged)
    assert done.returncode == 1 and "rounds has no entry 'r9'" in done.stderr
    done = run("sesam.cli.export", "r1", "--to", "coco", "--out", "to_do", "--images", "nobody", cwd=merged)
    assert done.returncode == 1 and "nobody: no such training image" in done.stderr
    assert not (merged / "to_do").exists()


def test_a_correction_with_a_fault_changes_nothing(merged: Path) -> None:
    (merged / "data/corrections").mkdir(parents=True)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(merged / "data/corrections/1.png")
    before = (merged / "data/weak/1.png").read_bytes()
    done = run("stages.weak_labels", cwd=merged)
    assert done.returncode == 1 and "data/corrections has 1 fault" in done.stderr and "1.png is 5x5" in done.stderr
    assert (merged / "data/weak/1.png").read_bytes() == before
