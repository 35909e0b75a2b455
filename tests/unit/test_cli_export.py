"""Pseudo-labels are exported to each tool and imported again: the same without changes, with corrections on top."""

import argparse
import json
import re
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_params, run
from dataset_factories import image_names, make_label_map
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sesam.artifacts.image_io import read_label, write_gray, write_label
from sesam.artifacts.manifest import ImageRecord, Manifest, load_fine_label, load_predictions
from sesam.artifacts.sources import SAM, WEAK, load_pseudo_label
from sesam.cli import export
from sesam.cli.export import labeled_regions
from sesam.datasets.annotation_importer import import_annotations
from sesam.datasets.annotations.common import ImageRegions, LabelSpec
from sesam.datasets.annotations.registry import EXPORTERS, find_annotations, read_annotation
from sesam.datasets.exported_labels import drop_unchanged, load_exported, save_exported
from sesam.errors import SesamError
from sesam.params import load_params
from sesam.paths import CORRECTIONS
from stages import prepare, weak_labels

CLASSES, COLORS = ("road", "car", "tree & bush"), ((0, 0, 0), (9, 9, 9))
FILES = {"cvat": "annotations.xml", "label-studio": "tasks.json", "labelme": "city/7.json", "coco": "instances.json"}


@pytest.mark.parametrize("tool", EXPORTERS)
@settings(deadline=None)
@given(
    labels=arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.sampled_from((0, 1, 2, 255)))
)
def test_an_export_without_changes_gives_the_same_label(tmp_path_factory, tool: str, labels: np.ndarray) -> None:
    out = tmp_path_factory.mktemp("out")
    record = ImageRecord("city/7", "x/city/7.jpg", *labels.shape, "0" * 64)
    regions = labeled_regions(labels, np.full_like(labels, SAM), np.full_like(labels, 204), CLASSES)
    assert all(region.attributes == {"source": "SAM", "confidence": 0.8} for region in regions)
    EXPORTERS[tool]([ImageRegions(record, "city/7.jpg", regions)], CLASSES, out)
    (annotation,) = find_annotations(out / FILES[tool], "folder", image_names("city/7", "8")).values()
    spec = LabelSpec(labels.shape, CLASSES, make_label_map("folder", 3, [9]), 3, 1)
    assert np.array_equal(read_annotation(annotation, spec).labels, labels)


def test_labelme_finds_the_file_of_an_image(tmp_path: Path) -> None:
    """It opens the JSON with the image's file name, which may be longer than the id."""
    name = "aachen_000000_000019_leftImg8bit"
    record = ImageRecord("aachen_000000_000019", f"x/aachen/{name}.png", 2, 2, "0" * 64)
    EXPORTERS["labelme"]([ImageRegions(record, f"{name}.png", [])], CLASSES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.json"]
    assert list(find_annotations(tmp_path, "cityscapes", image_names(record.id))) == [record.id]


def test_attributes_of_a_region_are_of_its_pixels_alone() -> None:
    labels, confidence = np.array([[0, 1], [0, 0]], np.uint8), np.array([[255, 0], [255, 255]], np.uint8)
    sources = np.where(labels == 0, np.uint8(SAM), np.uint8(WEAK))
    regions = labeled_regions(labels, sources, confidence, CLASSES)
    assert [region.attributes for region in regions] == [
        {"source": "SAM", "confidence": 1.0},
        {"source": "weak label", "confidence": 0.0},
    ]


@pytest.mark.parametrize("tool", ("cvat", "label-studio"))
def test_an_image_is_written_before_the_next_is_read(tmp_path: Path, tool: str) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (48, 48)).astype(np.uint8)
    record = ImageRecord("7", "7.jpg", *labels.shape, "0" * 64)
    regions = labeled_regions(labels, np.full_like(labels, SAM), None, CLASSES)

    def peak(images: int) -> int:
        tracemalloc.start()
        EXPORTERS[tool]((ImageRegions(record, "7.jpg", regions) for _ in range(images)), CLASSES, tmp_path)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)
    assert peak(12) < 2 * peak(2)


def run_export(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    export.run(parser.parse_args(["r1", "--out", "to_do", *arguments]))


@pytest.fixture
def merged(folder_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace, the working folder, with pseudo-labels of a round, made without a network."""
    monkeypatch.chdir(folder_dataset)
    edit_params(folder_dataset, runtime__num_workers=1)
    prepare.main()
    weak_labels.main()
    for k in range(3):
        weak = read_label(Path(f"data/weak/{k}.png"))
        labels = np.where(weak == 255, 0, weak).astype(np.uint8)
        labels[10:20, 40:50] = 1
        sources = np.where(weak == 255, SAM, WEAK)
        write_label(Path(f"data/pseudo_labels/r1/sources/{k}.png"), sources, COLORS)
        for folder in ("pseudo_labels/r1", "rounds/r1/teacher_predictions"):
            write_label(Path(f"data/{folder}/labels/{k}.png"), labels, COLORS)
        write_gray(Path(f"data/rounds/r1/teacher_predictions/confidence/{k}.png"), np.full(labels.shape, 128))
    return folder_dataset


def test_unknown_values_are_reported_with_their_file(merged: Path) -> None:
    record = Manifest.load().train[1]
    for part, wrong, expected, read in (
        ("rounds/r1/teacher_predictions/labels", 9, "0 to 1, and 255.*", partial(load_predictions, "r1")),
        ("fine/train", 9, "0 to 1, and 255 for none", partial(load_fine_label, "train")),
        ("pseudo_labels/r1/labels", 9, "0 to 1, and 255 for none", partial(load_pseudo_label, "r1")),
        ("pseudo_labels/r1/sources", 255, "0 to 4", partial(load_pseudo_label, "r1")),
    ):
        path = Path(f"data/{part}/1.png")
        before = read_label(path)
        write_label(path, np.where(before == 1, wrong, before), COLORS)
        with pytest.raises(SesamError, match=rf"{part}/1\.png holds {wrong}; expected are {expected}. Delete it"):
            read(record, 2)
        write_label(path, before, COLORS)
    write_label(Path("data/weak/1.png"), np.full((40, 60), 2), COLORS)
    done = run("stages.prompts", "r1", cwd=merged)
    assert done.returncode == 1 and "data/weak/1.png holds 2; expected are 0 to 1" in done.stderr


def all_labels(folder: str) -> list[np.ndarray]:
    return [read_label(Path(f"data/{folder}/{k}.png")) for k in range(3)]


def correct(path: Path, tool: str) -> None:
    """Give the first region the other class."""
    label = {
        "cvat": 'label="(left|right)"',
        "label-studio": r'"brushlabels": \["(left|right)"',
        "labelme": '"label": "(left|right)"',
        "coco": '"category_id": ([12])',
    }[tool]
    other = {"left": "right", "right": "left", "1": "2", "2": "1"}
    text = path.read_text()
    start, end = re.search(label, text).span(1)
    path.write_text(text[:start] + other[text[start:end]] + text[end:])


@pytest.mark.parametrize("tool", EXPORTERS)
def test_a_corrected_export_overrides_weak_labels(merged: Path, tool: str, capsys) -> None:
    run_export("--format", tool, "--images", "1", "2")
    assert "export: 2 images in to_do" in capsys.readouterr().out
    files = {**FILES, "labelme": "1.json"}
    correct(merged / "to_do" / files[tool], tool)
    before, exported = all_labels("weak"), all_labels("pseudo_labels/r1/labels")
    for path in (merged / "to_do").iterdir():
        if path.name != "labels.xml":  # Label Studio's labeling interface
            path.rename(merged / "data/corrections" / path.name)
    weak_labels.main()
    after, printed = all_labels("weak"), capsys.readouterr().out
    assert np.array_equal(after[0], before[0]) and np.array_equal(after[2], before[2])  # 2 came back as it was exported
    changed = after[1] != before[1]
    assert changed.any() and not changed.all() and "changed or new, " in printed
    assert len(np.unique(exported[1][changed])) == len(np.unique(after[1][changed])) == 1


ALL, RECORD = np.full((4, 6), 1, np.uint8), ImageRecord("1", "x/1.png", 4, 6, "0" * 64)


def imported(labels: np.ndarray, weak: np.ndarray | None = None) -> np.ndarray:
    """What corrects an image's weak label."""
    weak = np.full_like(labels, 255) if weak is None else weak
    return drop_unchanged(labels, load_exported(RECORD, 3), weak)[0]


def export_labels(round_name: str, labels: np.ndarray, sources: np.ndarray | None = None) -> None:
    made = labels if sources is None else np.where(sources == WEAK, np.uint8(255), labels)
    save_exported(round_name, RECORD, made, ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


def test_a_correction_is_compared_with_its_own_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    later, corrected = ALL.copy(), ALL.copy()
    later[:, :3], corrected[0, 0] = 2, 0
    export_labels("r1", ALL)
    export_labels("r1", later)  # only to look
    export_labels("r1", ALL)
    assert sorted(path.as_posix() for path in Path("data/corrections/.exported").iterdir())[1:] == [
        "data/corrections/.exported/r1.2"
    ]
    expected = np.full_like(ALL, 255)
    expected[0, 0] = 0
    assert np.array_equal(imported(corrected), expected)  # nothing of what SAM said before becomes a weak label
    back = later.copy()
    back[0, :2] = 1  # the later export is corrected to what the first one had
    assert (imported(back) == 1).sum() == 2 and (imported(later) == 255).all()


def test_an_earlier_correction_survives_a_second_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export_labels("r1", ALL)
    corrected = ALL.copy()
    corrected[0] = 0
    sources = np.where(corrected == 0, np.uint8(WEAK), np.uint8(SAM))
    export_labels("r1", corrected, sources)
    twice = corrected.copy()
    twice[3] = 2
    found = imported(twice)
    assert (found[0] == 0).all() and (found[3] == 2).all() and (found[1:3] == 255).all()
    assert (imported(twice, weak=corrected)[0] == 255).all()  # annotators' own


def test_an_image_whose_correction_changes_little_is_not_finely_labeled(merged: Path) -> None:
    run_export("--format", "coco", "--images", "1", "2")
    correct(merged / "to_do/instances.json", "coco")
    (merged / "to_do/instances.json").rename(merged / "data/corrections/instances.json")
    kinds = import_annotations(Manifest.load(), CORRECTIONS, Path("data/weak"), load_params(), Counter())
    assert kinds["2"] == "none" and kinds["1"] == "scribble"


def test_top_ranked_images_are_exported_first(merged: Path) -> None:
    ranking = merged / "data/pseudo_labels/r1/ranking.csv"
    ranking.write_text("id,score\n2,0.9\n0,0.5\n1,0.1\n")
    run_export("--format", "coco", "--top", "2")
    images = json.loads((merged / "to_do/instances.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["2.png", "0.png"]
    ranking.write_bytes(b"\xff\xfe")
    with pytest.raises(SesamError, match=r"ranking\.csv is no"):
        run_export("--format", "coco", "--top", "2")


def test_other_files_are_not_overwritten(merged: Path) -> None:
    (merged / "to_do").mkdir()
    (merged / "to_do/instances.json").write_text("mine")
    with pytest.raises(SesamError, match="to_do has files that sesam export did not write"):
        run_export("--format", "coco")
    assert (merged / "to_do/instances.json").read_text() == "mine"
    (merged / "to_do/instances.json").unlink()
    run_export("--format", "coco")
    run_export("--format", "coco")  # its own


def test_an_unknown_image_is_reported(merged: Path) -> None:
    with pytest.raises(SesamError, match=r"nobody is not a training image id \(example: 0\)"):
        run_export("--format", "coco", "--images", "nobody")
    assert not (merged / "to_do").exists()


def test_a_correction_with_an_issue_changes_nothing(merged: Path) -> None:
    (merged / "data/corrections").mkdir(parents=True)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(merged / "data/corrections/1.png")
    before = (merged / "data/weak/1.png").read_bytes()
    with pytest.raises(SesamError, match=r"data/corrections has 1 issue(.|\n)*1\.png is 5x5"):
        weak_labels.main()
    assert (merged / "data/weak/1.png").read_bytes() == before
