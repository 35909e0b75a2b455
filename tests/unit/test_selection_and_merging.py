"""Steps 4 and 5: which mask is kept, and how labels are merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_run import make_workspace
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sesam.artifacts.label_png import read_label
from sesam.artifacts.sources import CONFIDENT, NONE, SAM, WEAK
from sesam.geometry.rle import mask_to_rle
from sesam.merging import merge
from sesam.params import SelectionParams
from sesam.selection import CONFLICT, MISSED, SPILLED, select_candidate, weak_rles
from stages.merge_labels import process

SHAPE = (4, 10)
NOBODY = np.full(SHAPE, 255, np.uint8)
SELECTION = SelectionParams(tau_mask=0.3, tau_weak=0.7, max_conflict=0.05)


def columns(*numbers: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[:, list(numbers)] = True
    return mask


def component(mask: np.ndarray, k: int = 1) -> dict:
    return {"number": 4, "class": k, "rle": mask_to_rle(mask)}


def offered(*pairs: tuple[np.ndarray, float]) -> list[dict]:
    return [{"rle": mask_to_rle(mask), "iou": iou} for mask, iou in pairs]


def selected(c: dict, masks: list[dict], weak: np.ndarray, selection: SelectionParams = SELECTION) -> dict:
    return select_candidate(c, masks, weak_rles(weak), selection)


def test_without_weak_labels_the_surest_of_the_fitting_masks_is_kept() -> None:
    c = component(columns(0, 1, 2))
    masks = offered(
        (columns(*range(10)), 0.9),  # |M∩C|/|M| = 0.3: just fits
        (columns(0, 1), 0.99),  # |M∩C|/|C| = 0.67: does not
        (columns(0, 1, 2, 3), 0.8),
    )
    assert selected(c, masks, NOBODY)["candidate"] == 0
    strict = SELECTION.model_copy(update={"tau_mask": 0.31})
    kept = {"number": 4, "class": 1, "candidate": 2, "iou": 0.8, "rle": masks[2]["rle"], "refused": None}
    assert selected(c, masks, NOBODY, strict) == kept
    refused = selected(c, masks[:1], NOBODY, strict)
    assert refused == {"number": 4, "class": 1, "candidate": None, "iou": None, "rle": c["rle"], "refused": SPILLED}


def test_a_stroke_is_no_measure_of_the_masks_size() -> None:
    """A mask that holds the stroke may be as large as it likes, as long as it holds no other class's labels."""
    weak = NOBODY.copy()
    weak[1, 2:5] = 1
    c, everything = component(weak == 1), offered((columns(*range(10)), 0.9))
    assert selected(c, everything, weak)["candidate"] == 0
    weak[3, 9] = 2
    assert selected(c, everything, weak)["refused"] == CONFLICT
    assert selected(c, everything, weak, SELECTION.model_copy(update={"max_conflict": 0.25}))["candidate"] == 0


def test_of_a_component_with_weak_labels_only_these_must_be_held() -> None:
    weak = NOBODY.copy()
    weak[0, :4] = 1
    c = component(columns(*range(8)))  # grown by confident predictions
    half, quarter = offered((columns(0, 1, 2), 0.9)), offered((columns(0, 4, 5, 6, 7), 0.9))
    assert selected(c, half, weak)["candidate"] == 0  # 3 of 4 weak labels, though only 3 of 8 columns
    assert selected(c, quarter, weak)["refused"] == MISSED  # 1 of 4, though 5 of 8 columns
    assert selected(c, half, NOBODY)["refused"] == MISSED
    for tau_weak, kept in ((0.75, 0), (0.76, None)):  # 3 of 4 are a share of 0.75: just enough
        assert selected(c, half, weak, SELECTION.model_copy(update={"tau_weak": tau_weak}))["candidate"] == kept


def test_without_a_fitting_mask_the_component_stays_and_the_surest_masks_fault_is_told() -> None:
    c = component(columns(0, 1, 2))
    kept = selected(c, offered((columns(8, 9), 0.9), (columns(), 0.95), (columns(*range(10)), 0.1)), NOBODY)
    assert kept["candidate"] == 2
    kept = selected(c, offered((columns(8, 9), 0.9), (columns(), 0.95)), NOBODY)
    assert kept["candidate"] is None and kept["rle"] == c["rle"] and kept["refused"] == MISSED
    open_door = SelectionParams(tau_mask=0, tau_weak=0, max_conflict=1)
    assert selected(c, offered((columns(), 0.9)), NOBODY, open_door)["candidate"] is None
    assert selected(c, offered((columns(2, 3, 4), 0.9)), NOBODY, open_door)["candidate"] == 0


def test_merge_by_hand() -> None:
    weak = NOBODY.copy()
    weak[0, 0] = 3
    confident = np.where(columns(8, 9), np.uint8(4), NOBODY)
    chosen = [
        component(columns(1, 2), 1) | {"candidate": 2},  # small, given first
        component(columns(0, 1, 2, 3, 4), 2) | {"candidate": 0},
        component(columns(5, 9), 5) | {"candidate": None},  # not kept: adds nothing
    ]
    labels, sources = merge(weak, confident, chosen)
    assert labels[1].tolist() == [2, 1, 1, 2, 2, 255, 255, 255, 4, 4]
    assert sources[1].tolist() == [SAM] * 5 + [NONE] * 3 + [CONFIDENT] * 2
    assert labels[0, 0] == 3 and sources[0, 0] == WEAK
    labels, _ = merge(weak, NOBODY, chosen)
    assert labels[1, 5:].tolist() == [255] * 5


def test_only_a_round_with_labels_takes_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, params = make_workspace()
    (item, *_), name = data.train, "r1"
    for labels in (True, False):
        rounds = {name: params.rounds[name].model_copy(update={"labels": labels})}
        out = [tmp_path / f"{labels}/{part}" for part in ("labels", "sources")]
        process(item, *out, name, params.model_copy(update={"rounds": rounds}), data.palette)
        assert (CONFIDENT in read_label(out[1] / f"{item.id}.png")) == labels


MAPS = arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 1, 255]))


@given(MAPS, MAPS, arrays(bool, SHAPE))
def test_labels_and_sources_agree(weak, confident, mask) -> None:
    labels, sources = merge(weak, confident, [component(mask, 1) | {"candidate": 0}])
    assert ((labels == 255) == (sources == NONE)).all()
    assert ((sources == WEAK) == (weak != 255)).all() and (labels[weak != 255] == weak[weak != 255]).all()
    assert (labels[sources == SAM] == 1).all() and (labels != 255)[confident != 255].all()
