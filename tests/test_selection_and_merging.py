"""Steps 4 and 5: which mask is kept, and how labels are merged."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.common.params import Merging, Selection
from stages.common.regions import encode_mask
from stages.common.sources import CONFIDENT, NONE, SAM, WEAK
from stages.merge_labels import merge
from stages.select_masks import conflict, select

SHAPE = (4, 10)
NOBODY = np.full(SHAPE, 255, np.uint8)
PAINT = Merging(sam=True)
HOW = Selection(tau_mask=0.3, tau_weak=0.7, max_conflict=None)


def columns(*numbers: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[:, list(numbers)] = True
    return mask


def component(mask: np.ndarray, k: int = 1) -> dict:
    return {"class": k, "rle": encode_mask(mask)}


def offered(*pairs: tuple[np.ndarray, float]) -> list[dict]:
    return [{"rle": encode_mask(mask), "iou": iou} for mask, iou in pairs]


def test_the_surest_of_the_fitting_masks_is_kept() -> None:
    c = component(columns(0, 1, 2))
    masks = offered(
        (columns(*range(10)), 0.9),  # |M∩C|/|M| = 0.3: just fits
        (columns(0, 1), 0.99),  # |M∩C|/|C| = 0.67: does not
        (columns(0, 1, 2, 3), 0.8),
    )
    assert select(c, masks, NOBODY, HOW)["candidate"] == 0
    strict = HOW.model_copy(update={"tau_mask": 0.31})
    assert select(c, masks, NOBODY, strict) == {"class": 1, "candidate": 2, "iou": 0.8, "rle": masks[2]["rle"]}


def test_without_a_fitting_mask_the_component_stays() -> None:
    c = component(columns(0, 1, 2))
    kept = select(c, offered((columns(8, 9), 0.9), (columns(), 0.9)), NOBODY, HOW)
    assert kept["candidate"] is None and kept["rle"] == c["rle"]
    open_door = Selection(tau_mask=0, tau_weak=0, max_conflict=None)
    assert select(c, offered((columns(), 0.9)), NOBODY, open_door)["candidate"] is None


def test_the_guard_counts_weak_labels_of_other_classes() -> None:
    weak = NOBODY.copy()
    weak[0, 0:3] = 1
    weak[1, 3] = 2
    assert conflict(columns(0, 1, 2, 3), 1, weak) == 0.25
    assert conflict(columns(8), 1, weak) == 0
    c, masks = component(columns(0, 1, 2)), offered((columns(0, 1, 2, 3), 0.9), (columns(0, 1, 2), 0.5))
    guarded = HOW.model_copy(update={"max_conflict": 0.2})
    assert select(c, masks, weak, HOW)["candidate"] == 0
    assert select(c, masks, weak, guarded)["candidate"] == 1


def test_merge_by_hand() -> None:
    weak = NOBODY.copy()
    weak[0, 0] = 3
    predicted, confident = np.full(SHAPE, 4, np.uint8), columns(8, 9)
    selected = [
        component(columns(1, 2), 1) | {"candidate": 2},  # small, given first
        component(columns(0, 1, 2, 3, 4), 2) | {"candidate": 0},
        component(columns(9), 5) | {"candidate": None},
    ]
    labels, sources = merge(weak, predicted, confident, selected, PAINT)
    assert labels[1].tolist() == [2, 1, 1, 2, 2, 255, 255, 255, 4, 5]
    assert sources[1].tolist() == [SAM] * 5 + [NONE] * 3 + [CONFIDENT] * 2
    assert labels[0, 0] == 3 and sources[0, 0] == WEAK
    labels, _ = merge(weak, predicted, confident, selected, PAINT.model_copy(update={"rejected": "drop"}))
    assert labels[1, 8:].tolist() == [4, 4]
    labels, _ = merge(weak, predicted, confident, selected, PAINT.model_copy(update={"fill": False}))
    assert labels[1, 8:].tolist() == [255, 5]


def test_by_iou_the_surest_mask_ends_on_top() -> None:
    nothing = np.zeros(SHAPE, bool)
    selected = [
        component(columns(1, 2), 1) | {"candidate": 2, "iou": 0.5},
        component(columns(0, 1, 2, 3, 4), 2) | {"candidate": 0, "iou": 0.9},
        component(columns(4, 5), 3) | {"candidate": None, "iou": None},
    ]
    labels, _ = merge(NOBODY, NOBODY, nothing, selected, Merging(sam=True, order="iou"))
    assert labels[1].tolist() == [2] * 5 + [3] + [255] * 4


MAPS = arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 1, 255]))


@given(MAPS, arrays(np.uint8, SHAPE, elements=st.integers(0, 1)), arrays(bool, SHAPE), arrays(bool, SHAPE))
def test_labels_and_sources_agree(weak, predicted, confident, mask) -> None:
    labels, sources = merge(weak, predicted, confident, [component(mask, 1) | {"candidate": 0}], PAINT)
    assert ((labels == 255) == (sources == NONE)).all()
    assert ((sources == WEAK) == (weak != 255)).all() and (labels[weak != 255] == weak[weak != 255]).all()
    assert (labels[sources == SAM] == 1).all() and (labels != 255)[confident].all()
