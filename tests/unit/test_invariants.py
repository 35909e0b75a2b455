"""Labels are checked before they are written: labels that do not fit stop the DAG."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sesam.artifacts.component_records import Component, Outcome, Selected
from sesam.artifacts.invariants import check_complete, check_labels, check_pseudo_label
from sesam.artifacts.manifest import ImageRecord
from sesam.artifacts.sources import CONFIDENT, NONE, SAM, WEAK
from sesam.errors import SesamError
from sesam.geometry.rle import mask_to_rle
from sesam.merging import merge_labels

SHAPE = (5, 7)
RECORD = ImageRecord("street/a", "a.png", *SHAPE, "0" * 64)
WEAK_MAP, PREDICTED = np.full(SHAPE, 255, np.uint8), np.full(SHAPE, 255, np.uint8)
WEAK_MAP[0, :3] = 1
PREDICTED[4] = 2
GRAY = np.full((*SHAPE, 3), 128, np.uint8)

maps = arrays(np.uint8, SHAPE, elements=st.sampled_from((0, 1, 2, 255, 255)))


@given(maps, maps, st.lists(st.tuples(st.integers(0, 2), arrays(bool, SHAPE)), max_size=4))
def test_merged_labels_pass(weak, confident, masks) -> None:
    components = [Component(1, k, mask_to_rle(mask.T.reshape(SHAPE))) for k, mask in masks]
    selected = [Selected(1, k, 0, 1.0, mask_to_rle(mask), Outcome.KEPT) for k, mask in masks]
    check_pseudo_label(*merge_labels(GRAY, weak, confident, components, selected), weak, confident, RECORD, 3)


@pytest.mark.parametrize(
    ("pixel", "label", "source", "message"),
    [
        ((0, 0), 2, WEAK, "a weak label that was changed"),
        ((0, 0), 1, SAM, "a weak label without its source"),
        ((2, 2), 1, WEAK, "or the source without one"),
        ((2, 2), 1, NONE, "a label without a source"),
        ((2, 2), 255, SAM, "a source without a label"),
        ((2, 2), 7, SAM, "street/a: class 7 of 3"),
        ((2, 2), 0, 9, "an unknown source"),
        ((4, 0), 0, CONFIDENT, "a confident prediction that was not predicted"),
    ],
)
def test_inconsistent_labels_are_refused(pixel, label: int, source: int, message: str) -> None:
    labels, sources = merge_labels(GRAY, WEAK_MAP, PREDICTED, [], [])
    labels[pixel], sources[pixel] = label, source
    with pytest.raises(SesamError, match=message):
        check_pseudo_label(labels, sources, WEAK_MAP, PREDICTED, RECORD, 3)


@pytest.mark.parametrize("labels", [np.zeros((5, 8), np.uint8), np.zeros(SHAPE, np.int64)], ids=["size", "dtype"])
def test_labels_of_another_size_or_type_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(SesamError, match=r"street/a: labels are \(5, .\) .*int.*, expected \(5, 7\) uint8"):
        check_labels(labels, RECORD, 3)


def test_missing_and_unexpected_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SesamError, match=r"street/a\.png: it is missing"):
        check_complete(tmp_path, [RECORD])
    (tmp_path / "street").mkdir()
    (tmp_path / "street/a.png").touch()
    check_complete(tmp_path, [RECORD])
    with pytest.raises(SesamError, match=r"street/a\.png: no image has this id"):
        check_complete(tmp_path, [])
