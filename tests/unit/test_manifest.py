"""The manifest comes by `dvc pull` too: what it names cannot lead anywhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sesam.artifacts.atomic_io import sha256
from sesam.artifacts.manifest import Dataset, ImageRecord, load_image
from sesam.errors import SesamError

HASH = "0123456789abcdef" * 4
DATA = Dataset(
    "streets",
    ("a", "b"),
    ((0, 0, 0), (9, 9, 9)),
    (ImageRecord("1", "raw/1.png", 4, 6, HASH), ImageRecord("city/2", "/elsewhere/2.png", 4, 6, HASH, fine=False)),
    (),
)


def test_a_manifest_is_read_back(tmp_path: Path) -> None:
    DATA.save(tmp_path)
    assert Dataset.load(tmp_path) == DATA


ITEMS = [
    {"id": name}
    for name in (
        "../up",
        "/root/up",
        "a/../../up",
        "a//b",
        "",
        ".",
        "..",
        ".hidden",
        "a\\b",
        "line\nbreak",
        "nul\0",
        7,
        None,
    )
]
ITEMS += [{"sha256": value} for value in ("../../x", HASH.upper(), HASH[:-1], "", None)]
ITEMS += [{"height": value} for value in (0, -1, 10**9, "4", 4.5, None)]
ITEMS += [{"fine": "yes"}, {"command": "touch ran"}, {"image": None}, {"image": ""}, {"image": "raw/1.png\0"}]


@pytest.mark.parametrize("change", ITEMS, ids=str)
def test_an_image_that_leads_elsewhere_is_refused(change: dict, tmp_path: Path) -> None:
    DATA.save(tmp_path)
    items = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps([items[0], items[1] | change]))
    with pytest.raises(SesamError, match=r"train\.json is damaged \(1\."):
        Dataset.load(tmp_path)


@pytest.mark.parametrize("value", [None, {}, 3, "text", [3], [[]], [{}], [{"id": "1"}]], ids=str)
def test_a_split_that_is_no_list_of_images(value: object, tmp_path: Path) -> None:
    DATA.save(tmp_path)
    (tmp_path / "val.json").write_text(json.dumps(value))
    with pytest.raises(SesamError, match=r"val\.json is damaged"):
        Dataset.load(tmp_path)


def test_two_images_of_one_id(tmp_path: Path) -> None:
    DATA.save(tmp_path)
    items = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps([items[0], items[0]]))
    with pytest.raises(SesamError, match=r"train\.json has two images of one id"):
        Dataset.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["a"]},
        {"classes": "ab"},
        {"palette": [[0, 0]]},
        {"palette": [[0, 0, 300]]},
        {"palette": [[0, 0, 0]]},
        {"more": 1},
        {"kind": 1},
    ],
    ids=str,
)
def test_classes_that_are_none(change: dict, tmp_path: Path) -> None:
    DATA.save(tmp_path)
    classes = json.loads((tmp_path / "classes.json").read_text())
    (tmp_path / "classes.json").write_text(json.dumps(classes | change))
    with pytest.raises(SesamError, match=r"classes\.json is damaged"):
        Dataset.load(tmp_path)


def test_an_image_that_is_another_than_prepare_saw(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (6, 4)).save(path)
    item = ImageRecord("a", str(path), 4, 6, sha256(path))
    assert load_image(item).shape == (4, 6, 3)
    with pytest.raises(SesamError, match=r"a\.png has changed since `prepare` saw it"):
        load_image(replace(item, width=7))  # a manifest that was
    Image.new("RGB", (6, 4), "white").save(path)
    with pytest.raises(SesamError, match=r"a\.png has changed since `prepare` saw it"):
        load_image(item)
    path.unlink()
    with pytest.raises(SesamError, match=r"a\.png is missing"):
        load_image(item)
