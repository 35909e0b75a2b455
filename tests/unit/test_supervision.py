"""What annotators gave each image: simulated as a mix, told by their files, or nothing."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import edit_params, write_params
from dataset_factories import halves, photo, save
from hypothesis import given
from hypothesis import strategies as st

from sesam.artifacts.atomic_io import read_json
from sesam.artifacts.image_io import read_label
from sesam.artifacts.manifest import Manifest
from sesam.artifacts.sources import SAM
from sesam.artifacts.supervision import load_supervision
from sesam.artifacts.thresholds import load_confident, load_threshold
from sesam.errors import SesamError
from sesam.labels import IGNORE_INDEX
from sesam.params import KINDS, MixParams, Params, WeakLabelParams
from sesam.reporting.layout import Step, draw_step
from sesam.segmentation.data import TrainingDataset, TrainingTask
from sesam.simulation import mix_kinds
from stages import prepare, prompts, weak_labels

SHAPE = (40, 60)
SUPERVISION = Path("data/supervision.json")


def with_mix(**shares: float) -> WeakLabelParams:
    return WeakLabelParams(mix=MixParams(**shares))


shares = st.tuples(*[st.floats(0, 1 / 6)] * 6)


@given(shares=shares, larger=st.tuples(st.sampled_from(KINDS), st.floats(0, 1)), count=st.integers(1, 60))
def test_a_larger_share_holds_the_smaller_one(shares: tuple[float, ...], larger: tuple, count: int) -> None:
    ids = [f"town/{k}" for k in range(count)]
    before = mix_kinds(ids, with_mix(**dict(zip(KINDS, shares, strict=True))))
    counts = Counter(before.values())
    for kind, share in zip(KINDS, shares, strict=True):
        assert counts[kind] >= int(share * count) and (kind == "scribble" or counts[kind] <= share * count + 1e-6)
    kind, part = larger
    more = dict(zip(KINDS, shares, strict=True))
    more[kind] += part * (1 - sum(shares))
    after = mix_kinds(ids, with_mix(**more))
    if kind != "scribble":  # the kind of all others
        assert {k for k in ids if before[k] == kind} <= {k for k in ids if after[k] == kind}
    costlier = KINDS[: KINDS.index(kind)]
    assert all(before[k] == after[k] for k in ids if before[k] in costlier and before[k] != "scribble")
    assert mix_kinds(ids[::-1], with_mix(**more)) == after


def test_shares_beyond_all_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"add up to 1\.2; they must not exceed 1"):
        MixParams(fine=0.5, none=0.7)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images 0 and 1 with a fine label, 2 to 7 without, u in images/unlabeled; annotators' files in `drawn`."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    for k in range(8):
        save(Path(f"raw/images/train/{k}.png"), photo(k))
    save(Path("raw/images/unlabeled/u.png"), photo(20))
    save(Path("raw/images/val/v.png"), photo(30))
    for path in ("train/0", "train/1", "val/v"):
        save(Path(f"raw/labels/{path}.png"), halves(0, 1))
    write = json.dumps
    shapes = {
        "3": [{"label": "left", "shape_type": "line", "points": [[2, 2], [30, 30]]}],
        "4": [{"label": "left", "shape_type": "point", "points": [[9, 9]]}],
        "5": [{"label": "right", "shape_type": "rectangle", "points": [[5, 5], [20, 20]]}],
        "6": [{"label": "left", "shape_type": "polygon", "points": [[2, 2], [30, 2], [30, 30]]}],
    }
    height, width = photo(0).shape[:2]
    for name, drawn in shapes.items():
        Path("drawn").mkdir(exist_ok=True)
        text = write({"imagePath": f"{name}.png", "imageHeight": height, "imageWidth": width, "shapes": drawn})
        Path(f"drawn/{name}.json").write_text(text)
    stroke = np.full((height, width), 255, np.uint8)
    stroke[5:8, 5:20] = 1
    save(Path("drawn/2.png"), stroke)
    save(Path("drawn/7.png"), halves(0, 1))
    edit_params(
        tmp_path,
        demo={},
        dataset__root="raw",
        dataset__format="folder",
        dataset__classes=["left", "right"],
        dataset__palette=None,
        weak_labels__path="drawn",
        weak_labels__unannotated="use",
        runtime__num_workers=1,
    )
    return tmp_path


KINDS_OF_LAB = ("fine", "fine", "scribble", "scribble", "point", "box", "coarse", "fine", "none")
EXPECTED = dict(zip("01234567u", KINDS_OF_LAB, strict=True))


def run() -> dict[str, str]:
    prepare.main()
    weak_labels.main()
    return load_supervision(Manifest.load().train)


def test_kinds_are_told_by_the_files(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == EXPECTED
    assert "images by annotation: 3 fine, 1 coarse, 2 scribble, 1 point, 1 box, 1 none" in capsys.readouterr().out
    assert np.array_equal(read_label(Path("data/weak/0.png")), halves(0, 1))
    assert (read_label(Path("data/weak/u.png")) == 255).all()
    Path("drawn/kinds.csv").write_text("image,kind\n7,coarse\n2,point\n0,none\n")
    assert run() == EXPECTED | {"7": "coarse", "2": "point", "0": "none"}
    assert (read_label(Path("data/weak/0.png")) == 255).all()


def test_an_image_that_a_tool_lists_without_a_shape_has_no_annotation(lab: Path) -> None:
    image = '<image id="{0}" name="{1}.png" width="48" height="32">{2}</image>'
    polygon = '<polygon label="left" points="2,2;30,2;30,30"/>'
    images = [image.format(0, 0, ""), image.format(1, 2, ""), image.format(2, 7, polygon)]
    for path in Path("drawn").iterdir():
        path.unlink()
    Path("drawn/annotations.xml").write_text(f"<annotations>{''.join(images)}</annotations>")
    kinds = run()
    assert kinds["0"] == "fine" and kinds["2"] == "none" and kinds["7"] == "coarse"
    edit_params(lab, weak_labels__unannotated="refuse")
    with pytest.raises(SesamError, match=r"images without annotation: 7"):
        run()


@pytest.mark.parametrize("row", ["7,masks", "9,fine", "7", "7,fine,1", "7,fine\n7,none"])
def test_a_wrong_list_is_refused(lab: Path, row: str) -> None:
    Path("drawn/kinds.csv").write_text(row)
    with pytest.raises(SesamError, match=r"drawn/kinds\.csv, line \d.*Correct the line"):
        run()


def test_a_list_that_leaves_no_annotation_is_refused(lab: Path) -> None:
    Path("drawn/kinds.csv").write_text("".join(f"{k},none\n" for k in range(8)))
    with pytest.raises(SesamError, match="labels no pixel of any training image"):
        run()


def test_images_without_annotation_are_refused_by_default(lab: Path) -> None:
    edit_params(lab, weak_labels__unannotated="refuse")
    with pytest.raises(SesamError, match=r"images without annotation: 2.*weak_labels\.unannotated: use") as problem:
        run()
    assert "    u\n" not in f"{problem.value}\n"  # images/unlabeled says that it needs none


def test_images_of_another_run_are_refused(lab: Path) -> None:
    run()
    for content in ("{}", '{"0": "fine"}', "[]", '{"0": "mask"}'):
        SUPERVISION.write_text(content)
        with pytest.raises(SesamError, match=r"supervision\.json is damaged, or of other training images"):
            load_supervision(Manifest.load().train)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5])
def test_samples_come_from_images_that_hold_a_label(lab: Path, params: Params, ratio: float) -> None:
    run()
    task = TrainingTask("m", Path("x"), params.schedule, params.student.loss_weights, "r1", unannotated_ratio=ratio)
    dataset = TrainingDataset(task, Manifest.load(), 0)
    drawn = [dataset.record(t).id for t in range(96)]
    counts = Counter(drawn)
    assert counts["u"] == 96 * ratio
    each = 12 * (1 - ratio)
    assert all(int(each) <= counts[name] <= each + 1 for name in EXPECTED if name != "u")
    assert [dataset.record(t).id for t in reversed(range(96))] == drawn[::-1]
    assert read_json(SUPERVISION) == EXPECTED


def test_images_without_annotation_use_a_share_of_each_class_predicted(
    lab: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    manifest, folder = Manifest.load(), Path("data/rounds/r1")
    for record in manifest.train:
        predicted = halves(0, 1, edge=1)
        save(folder / f"teacher_predictions/labels/{record.id}.png", predicted)
        save(folder / f"teacher_predictions/confidence/{record.id}.png", np.where(predicted, 100, 250).astype(np.uint8))
    monkeypatch.setattr("sys.argv", ["prompts", "r1"])
    prompts.main()
    limits = read_json(folder / "thresholds.json")
    assert limits["left"] == params.teacher.confidence_threshold and 99 / 255 < limits["right"] < 100 / 255
    used = {
        kind: load_confident("r1", manifest.train[0], kind, manifest.classes, params.teacher)[0]
        for kind in ("none", "point")
    }
    assert (used["none"] == predicted).all()
    assert (used["point"] == np.where(predicted, 255, 0)).all()
    for kind, faded in {"none": np.zeros_like(predicted), "point": predicted}.items():
        confidence = np.where(predicted, 100, 250).astype(np.uint8)
        gamma = load_threshold("r1", kind, manifest.classes, params.teacher)
        shown = draw_step(Step("teacher", "classes", predicted, confidence, gamma), [(0, 0, 0)] * 2)
        assert ((shown > 0).all(-1) == faded).all()
    for damaged in ("{}", '{"left": 0.5, "right": 2}', '{"right": 0.5, "left": 0.5}', "[1"):
        Path(folder, "thresholds.json").write_text(damaged)
        load_threshold("r1", "point", manifest.classes, params.teacher)
        with pytest.raises(SesamError, match=r"thresholds\.json is damaged, or of other classes"):
            load_threshold("r1", "none", manifest.classes, params.teacher)


def test_images_without_annotation_are_seen_gray_blurred_and_with_holes(lab: Path, params: Params) -> None:
    run()
    manifest = Manifest.load()
    for record in manifest.train:
        for folder, value in {"labels": 0, "sources": SAM}.items():
            save(Path(folder, f"{record.id}.png"), np.full((record.height, record.width), value, np.uint8))
    task = TrainingTask(
        "m", Path("labels"), params.schedule, params.student.loss_weights, "r1", Path("sources"), 1, 0.5
    )
    dataset = TrainingDataset(task, manifest, 0)
    seen = Counter[str]()
    for t in range(64):
        sample = dataset[t]
        image, (classes, sources) = sample["inputs"], sample["data_samples"].gt_sem_seg.data
        assert torch.equal(image, dataset[t]["inputs"])
        hole = classes == IGNORE_INDEX
        assert torch.equal(hole, sources == IGNORE_INDEX) and not image[:, hole].any()
        kind = "unannotated" if dataset.record(t).id == "u" else "annotated"
        seen[f"{kind} with a hole"] += bool(hole.any())
        seen[f"{kind} in gray"] += torch.equal(image[0], image[1]) and torch.equal(image[1], image[2])
    assert 8 <= seen["unannotated with a hole"] <= 24 and 2 <= seen["unannotated in gray"] <= 16
    assert not seen["annotated with a hole"] and not seen["annotated in gray"]
