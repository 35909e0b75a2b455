"""Rules that turn the same candidates into labels: which mask of a component is kept, and which mask gets a pixel.

    python -m benchmarks.label_rules --idd data/raw/idd --camvid data/raw/camvid
    python -m benchmarks.label_rules --idd data/raw/idd --apart     # IDD's other photographs: to choose a rule on

Labels of round 1 without a teacher, nothing filled, against fine labels; data sets in the layout of format folder.
IDD-Lite: of the 400 photographs of presets/idd.yaml, with --apart of the others. Scenes: drawn, with classes inside
classes. SAMs: the bundled one, one that never errs, one that errs on purpose (erring_sam.py). Half an hour of one
core, most of it for CamVid.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.ablation_results import git
from benchmarks.erring_sam import FineRegions
from sesam.api import load_sam
from sesam.artifacts.atomic_io import write_text
from sesam.artifacts.component_records import Candidate, Component
from sesam.artifacts.image_io import read_image, read_label
from sesam.datasets.importer import choose_subset
from sesam.datasets.label_maps import CAMVID
from sesam.datasets.layouts import find_pairs
from sesam.demo.classes import NESTED_CLASSES
from sesam.demo.scenes import draw_scene
from sesam.geometry.rle import rle_to_mask
from sesam.labels import IGNORE_INDEX
from sesam.merging import merge_labels
from sesam.params import Params
from sesam.presets import load_preset
from sesam.prompting import image_prompts
from sesam.sam.inference import component_prompts, to_candidates
from sesam.sam.sam_model import SamModel
from sesam.scores import class_iou, confusion_matrix, label_scores
from sesam.seeds import seed_of
from sesam.selection import select_candidate, weak_masks_by_class
from sesam.simulation import simulate_weak_label

PRESETS = Path(__file__).parent.parent / "presets"
KINDS = ("scribble", "coarse", "point")
SMALLEST = 25  # pixels of a window that still gets a stroke


class Case(NamedTuple):
    """A photograph or scene. image: its file, or None for a scene. number: of the scene."""

    dataset: str
    image: Path | None
    label: Path | None
    number: int


class Masks(NamedTuple):
    """An image's components and candidates: n components, 3 candidates each, pixels flat.

    classes (n,); masks (n, 3, HW) bool; iou (n, 3); drawn (n, HW) bool, the component's weak labels; inside (n, 3, n),
    how many weak pixels of each component each mask holds.
    """

    shape: tuple[int, int]
    classes: np.ndarray
    masks: np.ndarray
    iou: np.ndarray
    drawn: np.ndarray
    inside: np.ndarray

    @property
    def area(self) -> np.ndarray:
        return np.asarray(self.masks.sum(2), np.float64)

    @property
    def coverage(self) -> np.ndarray:
        each = np.arange(len(self.classes))
        return np.asarray(self.inside[each, :, each] / self.drawn.sum(1)[:, None])

    @property
    def foreign(self) -> np.ndarray:
        """(n, 3, n): `inside` of the components of other classes."""
        return np.asarray(self.inside * (self.classes[:, None] != self.classes)[:, None, :])

    def conflict(self, weights: np.ndarray | float = 1.0) -> np.ndarray:
        """(n, 3): the share of other classes among the weak pixels in a mask."""
        return np.asarray((self.foreign * weights).sum(2) / np.maximum(self.inside.sum(2), 1))


def collect_masks(components: list[Component], candidates: dict[int, list[Candidate]], weak: np.ndarray) -> Masks:
    shape, flat = weak.shape, weak.ravel()
    classes = np.array([component.class_id for component in components])
    masks = np.array([[rle_to_mask(m.rle, shape).ravel() for m in candidates[c.number]] for c in components])
    iou = np.array([[m.predicted_iou for m in candidates[c.number]] for c in components])
    drawn = np.array([rle_to_mask(c.rle, shape).ravel() & (flat == c.class_id) for c in components])
    owner = np.full(flat.size, len(components))
    for k, pixels in enumerate(drawn):
        owner[pixels] = k
    counts = [np.bincount(owner[m], minlength=len(components) + 1)[:-1] for m in masks.reshape(-1, flat.size)]
    return Masks(shape, classes, masks, iou, drawn, np.array(counts).reshape(*masks.shape[:2], len(components)))


def paint(found: Masks, allowed: np.ndarray, preferred: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Of each component's allowed masks the preferred one; a pixel in several takes that of highest order; (n, 3)."""
    labels = np.full(found.drawn.shape[1], IGNORE_INDEX, np.uint8)
    best = np.where(allowed, preferred, -np.inf).argmax(1)
    kept = [k for k in range(len(best)) if allowed[k, best[k]]]
    for k in sorted(kept, key=lambda k: order[k, best[k]]):
        labels[found.masks[k, best[k]]] = found.classes[k]
    return labels.reshape(found.shape)


def limits(found: Masks, coverage: float = 0.7, conflict: float = 0.05) -> np.ndarray:
    """Hard limits, then the highest predicted IoU; the largest mask below."""
    allowed = (found.coverage >= coverage) & (found.coverage > 0) & (found.conflict() <= conflict)
    return paint(found, allowed, found.iou, -found.area)


def product_of_scores(found: Masks) -> np.ndarray:
    """Predicted IoU × coverage × (1 − conflict); the highest on top."""
    score = found.iou * found.coverage * (1 - found.conflict())
    return paint(found, (found.coverage >= 0.5) & (found.conflict() <= 0.4), score, score)


def explained_strokes(found: Masks) -> np.ndarray:
    """The same, where a foreign stroke that a smaller mask of its own class covers counts 0.6; by score / √area."""
    area, weights = found.area, np.ones_like(found.foreign, np.float64)
    score = found.iou * found.coverage * (1 - found.conflict())
    for k, best in enumerate(score.argmax(1)):
        if found.coverage[k, best] >= 0.5:
            covered = found.inside[k, best] >= 0.5 * found.drawn.sum(1)
            weights[:, :, covered & (found.classes == found.classes[k])] = np.where(
                (area > area[k, best])[..., None], 0.6, weights[:, :, covered & (found.classes == found.classes[k])]
            )
    conflict = found.conflict(weights)
    score = found.iou * found.coverage * (1 - conflict)
    return paint(found, (found.coverage >= 0.5) & (conflict <= 0.4), score, score / np.sqrt(np.maximum(area, 1)))


HEADER = """# Label rules

Labels of round 1 against fine labels, without a teacher, nothing filled: precision / recall / mIoU, ± the population
standard deviation over {seeds} seeds. In a table every rule has the same weak labels and candidates. Images:
{images}; commit `{commit}`, `python -m benchmarks.label_rules`.
The scenes have classes inside classes, such as windows in buildings. The SAM that errs answers with parts, wholes and
spills; for half of the prompts no mask is right. sesam's rule was chosen on other photographs of IDD and other scenes.
The SAM that never errs loses nothing by any rule: what it misses are regions of less than 25 pixels in scenes and 64 in
photographs, which no annotator labels.

Conflict: the fraction of other classes' among the weak labels in a mask. An explained stroke is covered by a smaller
mask of its class, and counts 0.6 as conflict. Limits paint the largest mask first. Classes are in the order of ids.

"""
ALTERNATIVES: dict[str, Callable[[Masks], np.ndarray]] = {
    "highest predicted IoU, no limit": partial(limits, coverage=0.0, conflict=1.0),
    "coverage ≥ 0.7, conflict ≤ 0.05 (former rule)": limits,
    "coverage ≥ 0.7, conflict ≤ 0.4": partial(limits, conflict=0.4),
    "IoU × coverage × (1 − conflict), the highest on top": product_of_scores,
    "explained strokes, score / √area on top": explained_strokes,
}
OURS = "**score / √(1 + distance along paths) (sesam)**"
WITHOUT_EDGES = "sesam's rule, where paths pay nothing for edges"
SCORE_ALONE = "sesam's selection, the highest score on top"


def our_labels(
    image: np.ndarray,
    components: list[Component],
    candidates: dict[int, list[Candidate]],
    weak: np.ndarray,
    params: Params,
) -> dict[str, np.ndarray]:
    """The library's rule, the same on an image without edges, and its selection with the score alone on a pixel."""
    weak_masks, unfilled = weak_masks_by_class(weak), np.full_like(weak, IGNORE_INDEX)
    selected = [select_candidate(c, candidates[c.number], weak_masks, params.selection)[0] for c in components]
    by_score = np.full_like(weak, IGNORE_INDEX)
    for chosen in sorted((s for s in selected if s.kept), key=lambda s: s.score or 0.0):
        by_score[rle_to_mask(chosen.rle, weak.shape)] = chosen.class_id
    images = {WITHOUT_EDGES: np.zeros_like(image), OURS: image}
    merged = {name: merge_labels(x, weak, unfilled, components, selected)[0] for name, x in images.items()}
    return {SCORE_ALONE: by_score} | merged


@cache
def bundled_sam() -> SamModel:
    torch.set_num_threads(1)
    return load_sam("bundled")


def read_case(case: Case) -> tuple[np.ndarray, np.ndarray, list[str], Params]:
    """Image, fine label, classes and params."""
    if case.image is None or case.label is None:
        scene = draw_scene((22, case.number), nested=True)
        return scene.image, scene.labels, list(NESTED_CLASSES), load_preset(PRESETS / "demo.yaml")
    params = load_preset(PRESETS / f"{case.dataset.lower()}.yaml")
    classes = params.dataset.classes or list(CAMVID)
    fine = read_label(case.label)
    return read_image(case.image), np.where(fine < len(classes), fine, np.uint8(IGNORE_INDEX)), list(classes), params


def evaluate(case: Case, seeds: list[int]) -> dict[tuple[str, ...], np.ndarray]:
    """The confusion matrix of a case by data set, kind, SAM, rule and seed."""
    image, fine, classes, params = read_case(case)
    regions = FineRegions(fine)
    matrices: dict[tuple[str, ...], np.ndarray] = {}
    none = np.full_like(fine, IGNORE_INDEX), np.zeros_like(fine)
    embedding = bundled_sam().encode([bundled_sam().preprocess(image)])
    for kind, seed in product(KINDS, seeds):
        changed: dict[str, object] = {"kind": kind} | ({"min_area": SMALLEST} if case.image is None else {})
        weak = simulate_weak_label(fine, params.weak_labels.model_copy(update=changed))
        key = str(case.image or case.number)
        components = image_prompts(weak, *none, params.model_copy(update={"seed": seed}), ("r1", key))
        if not components:
            continue
        (answers,) = bundled_sam().decode(embedding, [image.shape[:2]], [component_prompts(components)])
        rng = np.random.default_rng(seed_of(seed, key, kind))
        sams = {
            "bundled": [to_candidates(answer, image.shape[:2]) for answer in answers],
            "erring": [regions.erring(component, rng) for component in components],
        }
        if seed == seeds[0]:
            sams["perfect"] = [regions.perfect(component) for component in components]
        for sam, masks in sams.items():
            candidates = {c.number: m for c, m in zip(components, masks, strict=True)}
            found = collect_masks(components, candidates, weak)
            labels = {name: rule(found) for name, rule in ALTERNATIVES.items()}
            for rule, made in (labels | our_labels(image, components, candidates, weak, params)).items():
                merged = np.where(weak != IGNORE_INDEX, weak, made)
                matrices[case.dataset, kind, sam, rule, str(seed)] = confusion_matrix(fine, merged, len(classes))
    return matrices


def find_cases(idd: Path | None, camvid: Path | None, count: int, apart: bool) -> Iterator[Case]:
    """`count` images of each data set."""
    for k in range(count // 5):  # they have five times the components of a photograph
        yield Case("scenes", None, None, 1000 * apart + k)
    if idd:
        pairs = find_pairs("folder", idd, None, "train")
        chosen = choose_subset(pairs, load_preset(PRESETS / "idd.yaml").dataset.subset)
        for pair in ([pair for pair in pairs if pair not in chosen] if apart else chosen)[:count]:
            yield Case("IDD", pair.image, pair.label, 0)
    if camvid and not apart:
        for pair in find_pairs("folder", camvid, None, "train")[:count]:
            yield Case("CamVid", pair.image, pair.label, 0)


def tables(matrices: dict[tuple[str, ...], np.ndarray], seeds: list[int]) -> str:
    """Markdown: a table per data set and SAM, and the IoU per class of three rules."""

    def cell(*key: str) -> str:
        scores = [label_scores(matrices[(*key, str(seed))]) for seed in seeds if (*key, str(seed)) in matrices]
        precision, recall, iou = (
            np.array([s[name] for s in scores], float) for name in ("precision", "recall", "mIoU")
        )
        spread = f" ± {iou.std():.3f}" if len(scores) > 1 else ""
        return f"{precision.mean():.3f} / {recall.mean():.3f} / {iou.mean():.3f}{spread}"

    rules = [*ALTERNATIVES, SCORE_ALONE, WITHOUT_EDGES, OURS]
    lines: list[str] = []
    for dataset, sam in dict.fromkeys((key[0], key[2]) for key in matrices):
        lines += ["", f"## {dataset}, {sam} SAM", "", f"| rule | {' | '.join(KINDS)} |", "| --- |" + " --- |" * 3]
        lines += [f"| {rule} | {' | '.join(cell(dataset, kind, sam, rule) for kind in KINDS)} |" for rule in rules]
        lines += ["", "IoU per class, scribbles:", ""]
        for rule in (rules[0], rules[1], OURS):
            keys = [key for seed in seeds if (key := (dataset, "scribble", sam, rule, str(seed))) in matrices]
            iou = class_iou(np.sum([matrices[key] for key in keys], axis=0))
            lines.append(f"- {rule}: {', '.join(f'{value:.2f}' for value in iou)}")
    return "\n".join(lines[1:]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idd", type=Path, help="IDD-Lite")
    parser.add_argument("--camvid", type=Path, help="CamVid with 11 classes")
    parser.add_argument("--apart", action="store_true", help="IDD's photographs that no preset uses, other scenes")
    parser.add_argument("--images", type=int, default=40, help="per data set; a fifth as many scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a page for the tables; without it they are printed")
    options = parser.parse_args()
    cases = list(find_cases(options.idd, options.camvid, options.images, options.apart))
    total: dict[tuple[str, ...], np.ndarray] = defaultdict(lambda: np.zeros((), np.int64))
    with ProcessPoolExecutor(options.jobs) as pool:
        for matrices in tqdm(pool.map(partial(evaluate, seeds=options.seeds), cases), total=len(cases)):
            for key, matrix in matrices.items():
                total[key] = total[key] + matrix
    images = ", ".join(f"{n} {name}" for name, n in Counter(case.dataset for case in cases).items())
    text = HEADER.format(images=images, seeds=len(options.seeds), commit=git("rev-parse", "--short", "HEAD"))
    text += tables(total, options.seeds)
    if options.out:
        write_text(options.out, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
