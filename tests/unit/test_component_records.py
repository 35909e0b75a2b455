"""The JSON files between the stages are input: run lengths that do not fit are refused before pycocotools sees them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesam.artifacts.atomic_io import write_json
from sesam.artifacts.component_records import (
    Component,
    read_candidates,
    read_prompts,
    read_selected,
    write_candidates,
    write_prompts,
    write_selected,
)
from sesam.artifacts.manifest import ImageRecord
from sesam.errors import SesamError
from sesam.geometry.rle import mask_to_counts, mask_to_rle, rle_to_counts, rle_to_mask

RECORD = ImageRecord("a", "a.png", 4, 6, "0" * 64)
RLE = mask_to_rle(np.eye(4, 6, dtype=bool))
SIZE = {"id": "a", "height": 4, "width": 6}
POINTS = SIZE | {"prompt": "points", "components": [{"number": 1, "class": 1, "rle": RLE, "points": [[0, 0], [5, 3]]}]}
BOXES = SIZE | {"prompt": "box", "components": [{"number": 1, "class": 1, "rle": RLE, "box": [0, 1, 6, 4]}]}
MASKS = SIZE | {"components": [{"number": 1, "candidates": [{"predicted_iou": 0.5, "rle": RLE}] * 3}]}
KEPT = {"number": 1, "class": 1, "candidate": 0, "score": 0.5, "rle": RLE, "outcome": "kept"}
REJECTED = KEPT | {"number": 2, "candidate": None, "score": None, "outcome": "oversized"}
SELECTED = SIZE | {"components": [KEPT, REJECTED]}
FILES = {
    "points": (POINTS, lambda p: read_prompts(p, RECORD, 2), lambda p, r, c: write_prompts(p, r, "points", c)),
    "boxes": (BOXES, lambda p: read_prompts(p, RECORD, 2), lambda p, r, c: write_prompts(p, r, "box", c)),
    "masks": (MASKS, lambda p: read_candidates(p, RECORD, [Component(1, 1, RLE)]), write_candidates),
    "selected": (SELECTED, lambda p: read_selected(p, RECORD, 2), write_selected),
}


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_round_trip(height: int, width: int, seed: int, ratio: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < ratio
    assert rle_to_counts(mask_to_rle(mask)).tolist() == mask_to_counts(mask).tolist()


def test_long_run_lengths() -> None:
    mask = np.zeros((3000, 2000), bool)
    mask[:, 700:1400] = mask[5, 3] = True
    assert rle_to_counts(mask_to_rle(mask)).tolist() == mask_to_counts(mask).tolist()


@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), min_size=1, max_size=12))
def test_accepted_run_lengths_are_decoded_by_pycocotools(rle: str) -> None:
    counts = rle_to_counts(rle)
    if counts.min() >= 0 and counts.sum() == 24:
        assert rle_to_mask(rle, (4, 6)).sum() == counts[1::2].sum()


def compressed(differences: list[int]) -> str:
    """Numbers as COCO writes them, the lowest five bits first, 48 the first character."""
    characters = []
    for number in differences:
        while not -16 <= number < 16:
            characters.append(number & 31 | 32)
            number >>= 5
        characters.append(number & 31)
    return "".join(chr(48 + character) for character in characters)


def test_run_lengths_whose_sum_overflows_are_refused(tmp_path: Path) -> None:
    """Counts that rise, fall and stay until they are 2 ** 64 + 24 together, which 64 bits have as 24."""
    step, rising, missing = 2**34 - 1, 46340, 2**64 + 24
    counts, differences = [0], [0]
    while missing:
        previous = counts[-2] if len(counts) > 2 else 0
        count = min(missing, max(step, previous + (step if len(counts) < rising else -step)))
        counts.append(count)
        differences.append(count - previous)
        missing -= count
    assert min(counts) >= 0 and rle_to_counts(compressed(differences)).tolist() == counts
    (tmp_path / "a.json").write_text(json.dumps(component(POINTS, rle=compressed(differences))))
    with pytest.raises(SesamError, match="run lengths do not fit"):
        read_prompts(tmp_path / "a.json", RECORD)


@pytest.mark.parametrize(("document", "read", "write"), FILES.values(), ids=FILES)
def test_records_are_read_and_written_alike(document: dict, read, write, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", document)
    before = (tmp_path / "a.json").read_bytes()
    records = read(tmp_path / "a.json")
    write(tmp_path / "a.json", RECORD, records)
    assert (tmp_path / "a.json").read_bytes() == before


def component(document: dict, **changes: object) -> dict:
    return document | {"components": [document["components"][0] | changes]}


BAD_BOXES = ([-1, 0, 2, 2], [0, 0, 7, 2], [2, 1, 2, 3], [0, 0, 2, 10**30], [0])
BAD_CANDIDATES = ([], [{"predicted_iou": float("nan"), "rle": RLE}], [{"predicted_iou": 1.0, "rle": "PP"}])
BAD_SELECTED = ({"class": 2}, {"outcome": "why not"}, {"outcome": "oversized"}, {"candidate": None})
DAMAGED = [
    *((kind, value) for kind in FILES for value in ([], None, 3, "text", {}, {"id": "a"})),
    *((kind, FILES[kind][0] | {"id": "b"}) for kind in FILES),
    *((kind, FILES[kind][0] | {"height": 10**6, "width": 10**6}) for kind in FILES),
    *((kind, FILES[kind][0] | {"more": 1}) for kind in FILES),
    *(("points", component(POINTS, rle=rle)) for rle in ("", "~", "0", "P" * 400, "é", RLE + "0", RLE[:-1], 7)),
    *(("points", component(POINTS, points=points)) for points in ([], [[0]], [[6, 0]], [[-1, 0]], [["a", 0]], None)),
    *(("points", component(POINTS, **{"class": k})) for k in (-1, 2, 300, 1.5, "1", None)),
    *(("boxes", component(BOXES, box=box)) for box in BAD_BOXES),
    ("points", POINTS | {"prompt": "text"}),
    ("points", POINTS | {"prompt": "box"}),
    ("masks", MASKS | {"components": []}),
    ("masks", component(MASKS, number=2)),
    *((kind, component(FILES[kind][0], number=n)) for kind in FILES for n in (0, "1", None)),
    *((kind, FILES[kind][0] | {"components": FILES[kind][0]["components"] * 2}) for kind in FILES),
    *(("masks", component(MASKS, candidates=bad)) for bad in BAD_CANDIDATES),
    *(("selected", component(SELECTED, **bad)) for bad in BAD_SELECTED),
    *((kind, component(FILES[kind][0], more=1)) for kind in FILES),
]


@pytest.mark.parametrize("kind, value", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_files_are_refused(kind: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(SesamError, match=r"a\.json is damaged: .*Delete it and run `dvc repro`"):
        FILES[kind][1](tmp_path / "a.json")
