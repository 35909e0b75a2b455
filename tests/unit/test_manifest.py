"""The manifest comes by `sesam pull` too: its ids and paths cannot lead out of an artifact's folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sesam.artifacts.atomic_io import sha256
from sesam.artifacts.manifest import ImageRecord, Manifest, load_image
from sesam.errors import SesamError

HASH = "0123456789abcdef" * 4
DATA = Manifest(
    "streets",
    ("a", "b"),
    ((0, 0, 0), (9, 9, 9)),
    (
        ImageRecord("1", "raw/1.png", 4, 6, HASH),
        ImageRecord("city/2", "/elsewhere/2.png", 4, 6, HASH, has_fine_label=False),
    ),
    (),
)
BAD_IDS = ("../up", "/root/up", "a/../../up", "a//b", "", ".", "..", ".hidden", "a\\b", "line\nbreak", "nul\0", 7, None)
BAD_RECORDS = [
    *({"id": value} for value in BAD_IDS),
    *({"sha256": value} for value in ("../../x", HASH.upper(), HASH[:-1], "", None)),
    *({"height": value} for value in (0, -1, 10**9, "4", 4.5, None)),
    *({"image": value} for value in (None, "", "raw/1.png\0")),
    *({"fine": "yes"}, {"command": "touch ran"}),
]
BAD_CLASSES = [
    *({"classes": value} for value in (["a"], "ab")),
    *({"palette": value} for value in ([[0, 0]], [[0, 0, 300]], [[0, 0, 0]])),
    *({"more": 1}, {"kind": 1}),
]


def refuse(folder: Path, file: str, value: object, message: str) -> None:
    (folder / file).write_text(json.dumps(value))
    with pytest.raises(SesamError, match=rf"{file} is damaged \({message}"):
        Manifest.load(folder)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    DATA.save(tmp_path)
    return tmp_path


def test_manifest_is_read_back(manifest: Path) -> None:
    assert Manifest.load(manifest) == DATA


@pytest.mark.parametrize("change", BAD_RECORDS, ids=str)
def test_bad_records_are_refused(change: dict, manifest: Path) -> None:
    first, second = json.loads((manifest / "train.json").read_text())
    refuse(manifest, "train.json", [first, second | change], r"1\.")


@pytest.mark.parametrize("value", [None, {}, 3, "text", [3], [[]], [{}], [{"id": "1"}]], ids=str)
def test_a_split_that_is_not_a_list_of_records_is_refused(value: object, manifest: Path) -> None:
    refuse(manifest, "val.json", value, "")


@pytest.mark.parametrize("change", BAD_CLASSES, ids=str)
def test_bad_classes_and_repeated_ids_are_refused(change: dict, manifest: Path) -> None:
    refuse(manifest, "classes.json", json.loads((manifest / "classes.json").read_text()) | change, "")
    DATA.save(manifest)
    refuse(manifest, "train.json", json.loads((manifest / "train.json").read_text())[:1] * 2, "two images have one id")


def test_an_image_that_changed_since_prepare_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (6, 4)).save(path)
    record = ImageRecord("a", str(path), 4, 6, sha256(path))
    assert load_image(record).shape == (4, 6, 3)
    Image.new("RGB", (6, 4), "white").save(path)
    for changed in (record, replace(record, width=7)):  # the image, the manifest
        with pytest.raises(SesamError, match=r"a\.png has changed since `prepare` read it"):
            load_image(changed)
    path.unlink()
    with pytest.raises(SesamError, match=r"a\.png is missing"):
        load_image(record)
