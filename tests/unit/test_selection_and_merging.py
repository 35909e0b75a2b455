"""Steps 4 and 5: which mask is kept, and how labels are merged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_run import make_workspace
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sesam.artifacts.component_records import Candidate, Component, Outcome, Selected
from sesam.artifacts.image_io import read_label
from sesam.artifacts.sources import CONFIDENT, NONE, SAM, WEAK
from sesam.geometry.rle import mask_to_rle
from sesam.merging import merge_labels
from sesam.params import SelectionParams
from sesam.selection import Coverage, select_candidate, weak_masks_by_class
from stages.merge_labels import merge_image

SHAPE = (4, 10)
UNLABELED = np.full(SHAPE, 255, np.uint8)
GRAY = np.full((*SHAPE, 3), 128, np.uint8)
SELECTION = SelectionParams(min_mask_precision=0.3, min_coverage=0.7)


def columns(*numbers: int) -> np.ndarray:
    return np.ones(SHAPE, bool) & np.isin(np.arange(SHAPE[1]), numbers)


def component(mask: np.ndarray) -> Component:
    return Component(4, 1, mask_to_rle(mask))


def candidates(*pairs: tuple[np.ndarray, float]) -> list[Candidate]:
    return [Candidate(predicted_iou, mask_to_rle(mask)) for mask, predicted_iou in pairs]


def selected(c: Component, masks: list[Candidate], weak: np.ndarray, **changes: float) -> Selected:
    return select_candidate(c, masks, weak_masks_by_class(weak), SELECTION.model_copy(update=changes))[0]


def kept(mask: np.ndarray, class_id: int, score: float = 0.9) -> Selected:
    return Selected(4, class_id, 0, score, mask_to_rle(mask), Outcome.KEPT)


def test_without_weak_labels_the_fitting_mask_of_highest_score_is_kept() -> None:
    c = component(columns(0, 1, 2))
    masks = candidates(
        (columns(*range(10)), 0.9),  # |M∩C|/|M| = 0.3: just fits
        (columns(0, 1), 0.99),  # |M∩C|/|C| = 0.67: does not
        (columns(0, 1, 2, 3), 0.8),
        (columns(0, 1, 2), 0.8),  # of equal ones the first
    )
    assert selected(c, masks, UNLABELED).candidate_index == 0
    assert selected(c, masks, UNLABELED, min_mask_precision=0.31) == Selected(4, 1, 2, 0.8, masks[2].rle, Outcome.KEPT)
    oversized = Selected(4, 1, None, None, c.rle, Outcome.OVERSIZED)
    assert selected(c, masks[:1], UNLABELED, min_mask_precision=0.31) == oversized


def test_each_candidate_is_evaluated() -> None:
    weak = UNLABELED.copy()
    weak[1, 2:6] = 1
    weak[3, 9] = 2
    masks = candidates((columns(*range(3, 10)), 0.9), (columns(2, 3, 4, 5), 0.6), (columns(2), 0.99))
    best, scored = select_candidate(component(weak == 1), masks, weak_masks_by_class(weak), SELECTION)
    assert best == Selected(4, 1, 1, 0.6, masks[1].rle, Outcome.KEPT)  # 0.9 · 0.75² is less
    assert [candidate.rejection for candidate in scored] == [None, None, Outcome.LOW_COVERAGE]
    assert [candidate.score for candidate in scored] == pytest.approx([0.50625, 0.6, 0.061875], abs=1e-5)
    assert scored[0].coverage == Coverage(True, 3, 4, 28)


def test_a_stroke_does_not_limit_the_masks_size() -> None:
    weak = UNLABELED.copy()
    weak[1, 2:5], weak[3, 9] = 1, 2
    assert selected(component(weak == 1), candidates((columns(*range(10)), 0.9)), weak).kept


def test_of_a_component_with_weak_labels_only_these_must_be_covered() -> None:
    weak = UNLABELED.copy()
    weak[0, :4] = 1
    c = component(columns(*range(8)))  # grown by confident predictions
    half, quarter = candidates((columns(0, 1, 2), 0.9)), candidates((columns(0, 4, 5, 6, 7), 0.9))
    assert selected(c, half, weak).kept  # 3 of 4 weak labels, though only 3 of 8 columns
    assert selected(c, quarter, weak).outcome == Outcome.LOW_COVERAGE  # 1 of 4, though 5 of 8 columns
    assert selected(c, half, UNLABELED).outcome == Outcome.LOW_COVERAGE
    for min_coverage, fits in ((0.75, True), (0.76, False)):  # 3 of 4 are a share of 0.75: just enough
        assert selected(c, half, weak, min_coverage=min_coverage).kept == fits


def test_without_a_fitting_mask_the_component_stays_with_the_best_candidates_reason() -> None:
    c = component(columns(0, 1, 2))
    masks = candidates((columns(8, 9), 0.9), (columns(), 0.95), (columns(*range(10)), 0.1))
    assert selected(c, masks, UNLABELED).candidate_index == 2
    assert selected(c, masks[:2], UNLABELED) == Selected(4, 1, None, None, c.rle, Outcome.LOW_COVERAGE)
    everything_fits = {"min_mask_precision": 0, "min_coverage": 0}
    assert not selected(c, masks[1:2], UNLABELED, **everything_fits).kept  # but for an empty mask
    assert selected(c, candidates((columns(2, 3, 4), 0.9)), UNLABELED, **everything_fits).kept


def test_merge_by_hand() -> None:
    weak = UNLABELED.copy()
    weak[1, 0], weak[1, 4], weak[0, 9] = 1, 2, 3
    confident = np.where(columns(8, 9), np.uint8(4), UNLABELED)
    components = [Component(k, k, mask_to_rle(weak == k)) for k in (1, 2)] + [Component(3, 5, mask_to_rle(columns(6)))]
    chosen = [
        kept(columns(0, 1, 2, 3, 4), 1),
        kept(columns(1, 2, 3, 4, 5), 2),
        Selected(3, 5, None, None, mask_to_rle(columns(6)), Outcome.LOW_COVERAGE),  # not kept: adds nothing
    ]
    labels, sources = merge_labels(GRAY, weak, confident, components, chosen)
    assert labels[1].tolist() == [1, 1, 1, 2, 2, 2, 255, 255, 4, 4]  # the nearer stroke's; of equally near, the first's
    assert sources[1].tolist() == [WEAK] + [SAM] * 3 + [WEAK, SAM] + [NONE] * 2 + [CONFIDENT] * 2
    assert labels[0, 9] == 3 and sources[0, 9] == WEAK
    assert merge_labels(GRAY, weak, UNLABELED, components, chosen)[0][2, 6:].tolist() == [255] * 4
    # twice the score wins while 1 + distance is less than four times the other's
    doubled = [chosen[0], kept(columns(1, 2, 3, 4, 5), 2, 1.8), chosen[2]]
    assert merge_labels(GRAY, weak, confident, components, doubled)[0][1, :4].tolist() == [1, 2, 2, 2]


def test_a_mask_inside_another_keeps_its_pixels() -> None:
    """A window in a building: where both masks hold a pixel, the nearer stroke decides, whatever the masks' order."""
    weak = UNLABELED.copy()
    weak[1, 1], weak[1, 5] = 0, 1
    components = [Component(k + 1, k, mask_to_rle(weak == k)) for k in (0, 1)]
    building, window = kept(columns(*range(10)), 0), kept(columns(4, 5, 6), 1)
    for order in (slice(None), slice(None, None, -1)):
        labels, _ = merge_labels(GRAY, weak, UNLABELED, components[order], [building, window][order])
        assert labels[2].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("scale", [1, 130])  # 1,300 pixels wide: distances are measured at a third of the size
def test_an_edge_separates_two_masks_that_spill(scale: int) -> None:
    """The border is where the color changes, not midway between the strokes."""
    image = np.kron(np.where(columns(0, 1, 2, 3), np.uint8(0), np.uint8(255)), np.ones((1, scale), np.uint8))
    weak = np.full(image.shape, 255, np.uint8)
    weak[:, 0], weak[:, -1] = 0, 1
    components = [Component(k + 1, k, mask_to_rle(weak == k)) for k in (0, 1)]
    everywhere = [kept(np.ones(weak.shape, bool), k) for k in (0, 1)]
    for gray, expected in ((image, 4 * scale), (np.zeros_like(image), 5 * scale)):
        labels, _ = merge_labels(np.dstack([gray] * 3), weak, weak, components, everywhere)
        assert np.abs((labels == 0).sum(1) - expected).max() <= (6 if scale > 1 else 0)
        assert set(np.unique(labels)) == {0, 1}


def test_a_part_of_a_mask_without_the_component_claims_least() -> None:
    weak = UNLABELED.copy()
    weak[:, 0], weak[:, 9] = 0, 1
    components = [Component(k + 1, k, mask_to_rle(weak == k)) for k in (0, 1)]
    parted, whole = kept(columns(0, 1, 5, 6), 0), kept(columns(6, 7, 8, 9), 1, 0.1)
    labels, _ = merge_labels(GRAY, weak, UNLABELED, components, [parted, whole])
    assert labels[0].tolist() == [0, 0, 255, 255, 255, 0, 1, 1, 1, 1]


def test_annotators_strokes_claim_more_than_confident_predictions() -> None:
    """A teacher that does not know persons predicts road around and between their strokes, with confidence."""
    weak = UNLABELED.copy()
    weak[1, 0], weak[1, 5] = 0, 1
    person = Component(2, 1, mask_to_rle(weak == 1))
    grown = Component(1, 0, mask_to_rle(columns(0, 1, 2, 3, 4) & (weak != 1)))  # road's stroke and predictions
    predicted = Component(3, 0, mask_to_rle(columns(7, 8)))
    chosen = [kept(columns(0, 1, 2, 3, 4), 0), kept(columns(4, 5, 6, 7, 8), 1), kept(columns(7, 8, 9), 0)]
    labels, _ = merge_labels(GRAY, weak, UNLABELED, [grown, person, predicted], chosen)
    assert labels[1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]  # 4 is nearer to the person's stroke
    drawn = replace(predicted, drawn_box=True)  # a box is an annotator's
    assert merge_labels(GRAY, weak, UNLABELED, [grown, person, drawn], chosen)[0][1, 7:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("fill", [True, False])
def test_only_a_round_with_fill_confident_takes_predictions(tmp_path: Path, monkeypatch, fill: bool) -> None:
    monkeypatch.chdir(tmp_path)
    data, params = make_workspace()
    rounds = {"r1": params.rounds["r1"].model_copy(update={"fill_confident": fill})}
    merge_image(
        (data.train[0], "scribble"),
        Path("labels"),
        Path("sources"),
        "r1",
        params.model_copy(update={"rounds": rounds}),
        data,
    )
    assert (CONFIDENT in read_label(Path(f"sources/{data.train[0].id}.png"))) == fill


MAPS = arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 1, 255]))


@given(MAPS, MAPS, arrays(bool, SHAPE))
def test_labels_and_sources_agree(weak, confident, mask) -> None:
    labels, sources = merge_labels(GRAY, weak, confident, [component(mask)], [kept(mask, 1)])
    assert ((labels == 255) == (sources == NONE)).all()
    assert ((sources == WEAK) == (weak != 255)).all() and (labels[weak != 255] == weak[weak != 255]).all()
    assert (labels[sources == SAM] == 1).all() and (labels != 255)[confident != 255].all()


def test_a_mask_is_cut_to_the_box_that_annotators_drew_and_must_fill_it() -> None:
    box = columns(2, 3, 4, 5, 6)
    c = replace(component(box), box=(2, 0, 7, 4), drawn_box=True)
    wide, narrow, hollow = columns(*range(10)), columns(3, 4), columns(2, 6)
    masks = candidates((narrow, 0.99), (wide, 0.9), (hollow, 0.95))
    best, scored = select_candidate(c, masks, weak_masks_by_class(UNLABELED), SELECTION)
    assert best == Selected(4, 1, 2, 0.95, mask_to_rle(hollow), Outcome.KEPT)  # it reaches the box's sides
    assert [candidate.rejection for candidate in scored] == [Outcome.LOW_COVERAGE, None, None]
    assert scored[1].candidate.rle == c.rle and scored[1].coverage == Coverage(False, 20, 20, 20, fills_box=True)
    weak = UNLABELED.copy()
    weak[1, 3:6] = 1  # a stroke that the hollow mask leaves out
    assert selected(c, masks, weak).candidate_index == 1
    assert not selected(c, candidates((columns(0, 1), 0.9)), UNLABELED).kept
