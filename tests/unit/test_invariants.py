"""What a stage has written is looked at again: labels that do not fit stop the DAG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sesam.artifacts.invariants import check_classes, check_complete, check_merged
from sesam.artifacts.label_png import write_label
from sesam.artifacts.manifest import ImageRecord
from sesam.artifacts.sources import CONFIDENT, NONE, SAM, WEAK
from sesam.errors import SesamError
from sesam.geometry.rle import mask_to_rle
from sesam.merging import merge

SHAPE = (5, 7)
ITEM = ImageRecord("street/a", "a.png", *SHAPE, "0" * 64)
PALETTE = ((0, 0, 0), (1, 1, 1), (2, 2, 2))


def write(folder: Path, values: np.ndarray) -> Path:
    write_label(folder / f"{ITEM.id}.png", values, PALETTE)
    return folder


maps = arrays(np.uint8, SHAPE, elements=st.sampled_from((0, 1, 2, 255, 255)))
kept = st.lists(st.tuples(st.integers(0, 2), arrays(bool, SHAPE)), max_size=4)


@given(weak=maps, filling=maps, masks=kept)
def test_whatever_is_merged_holds(tmp_path_factory, weak, filling, masks) -> None:
    folder = tmp_path_factory.mktemp("merged")
    selected = [
        {"class": k, "candidate": 0, "iou": 1.0, "rle": mask_to_rle(mask), "refused": None} for k, mask in masks
    ]
    labels, sources = merge(weak, filling, selected)
    check_merged(write(folder / "labels", labels), write(folder / "sources", sources), ITEM, 3, weak, filling)
    check_complete(folder / "labels", [ITEM])


WEAK_MAP = np.full(SHAPE, 255, np.uint8)
WEAK_MAP[0, :3] = 1
FILLING = np.full(SHAPE, 255, np.uint8)
FILLING[4] = 2


@pytest.mark.parametrize(
    ("pixel", "label", "source", "said"),
    [
        ((0, 0), 2, WEAK, "a weak label that was changed"),
        ((0, 0), 1, SAM, "a weak label without its source"),
        ((2, 2), 1, WEAK, "or the source without one"),
        ((2, 2), 1, NONE, "a label without a source"),
        ((2, 2), 255, SAM, "a source without a label"),
        ((2, 2), 7, SAM, "class 7 of 3"),
        ((2, 2), 0, 9, "a source that is none"),
        ((4, 0), 0, CONFIDENT, "a confident prediction that is none"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, pixel, label: int, source: int, said: str) -> None:
    labels, sources = merge(WEAK_MAP, FILLING, [])
    labels[pixel], sources[pixel] = label, source
    folders = write(tmp_path / "labels", labels), write(tmp_path / "sources", sources)
    with pytest.raises(SesamError, match=said):
        check_merged(*folders, ITEM, 3, WEAK_MAP, FILLING)


def test_a_label_of_another_size_one_missing_and_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(SesamError, match=r"street/a\.png: it is missing"):
        check_complete(tmp_path, [ITEM])
    write(tmp_path, np.zeros((5, 8), np.uint8))
    with pytest.raises(SesamError, match="8x5 pixels, its image 7x5"):
        check_classes(tmp_path, ITEM, 3)
    with pytest.raises(SesamError, match=r"street/a\.png: no image is called so"):
        check_complete(tmp_path, [])
