"""A round's data set card for people: README.md."""

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from string import Template
from typing import Any

from sesam.artifacts.sources import SOURCE_NAMES
from sesam.reporting.card_data import CardData, param_values

TRAINING_SCRIPT = Template("""\
import csv
from pathlib import Path

import mmseg
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

LABELS = Path($labels)  # the folder of this file
IMAGES = Path($images)  # the data set as published
NETWORK = "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-20k_voc12aug-512x512.py"  # or another with two heads
CLASSES = $classes


@DATASETS.register_module()
class PseudoLabels(BaseSegDataset):
    METAINFO = {"classes": CLASSES, "palette": $palette}

    def load_data_list(self):
        with (LABELS / "images.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            {
                "img_path": str(IMAGES / row["image"]),
                "seg_map_path": str(LABELS / "labels" / f"{row['id']}.png"),
                "label_map": None,
                "reduce_zero_label": False,
                "seg_fields": [],
            }
            for row in rows
        ]


config = Config.fromfile(Path(mmseg.__path__[0], ".mim/configs", NETWORK))
for head in (config.model.decode_head, config.model.auxiliary_head):
    head.num_classes = len(CLASSES)  # pixels of 255, unlabeled, count in no loss
config.train_dataloader.dataset = {"type": "PseudoLabels", "pipeline": config.train_pipeline}
config.val_dataloader = config.val_cfg = config.val_evaluator = None
config.test_dataloader = config.test_cfg = config.test_evaluator = None
config.work_dir = "trained"
Runner.from_cfg(config).train()
""")
README = Template("""\
# $title

$count training images. `labels/ID.png`: class ids, 255 = unlabeled. `sources/ID.png`: where each pixel's label comes \
from. Both are 8-bit palette PNGs. `images.csv`: the image of each label. `ranking.csv`: the images, those that most \
need a review first. `croissant.json`: this card for programs.

Made from $kind labels with $code (arXiv 2604.11170). SAM: $sam. Terms: those of the labeled data set, here $terms.

Against the fine labels of $fine of the images: precision $precision, recall $recall, mIoU $mIoU.

$classes
$outcomes
$sources

To train one of mmsegmentation's networks on them:

```python
$script```

$params
""")
OUTCOMES = """
A component is what SAM was prompted with. It is kept, or rejected: no mask covered its weak labels or, where it has \
none, its pixels (low_coverage); the mask was far larger (oversized); the mask held weak labels of other classes \
(conflict).

Masks of two classes claimed {total} pixels; the smaller mask won: {contested} (weak: an annotator's label decided; \
unknown: no fine label).
"""


def training_script(card_data: CardData) -> str:
    """A program that trains one of mmsegmentation's networks on the labels. Values are Python literals."""
    values = {
        "labels": card_data.round_name,
        "images": PurePath(card_data.params.dataset.root).name,
        "classes": list(card_data.data.classes),
        "palette": [list(color) for color in card_data.data.palette],
    }
    return TRAINING_SCRIPT.substitute({key: repr(value) for key, value in values.items()})


def readme(card_data: CardData) -> str:
    """The card for people, in Markdown."""
    data, params, metrics = card_data.data, card_data.params, card_data.metrics
    scores = metrics["scores"]["merged"]
    contested = ", ".join(f"{outcome} {count}" for outcome, count in metrics["contested"].items())
    outcomes = OUTCOMES.format(total=sum(metrics["contested"].values()), contested=contested)
    return README.substitute(
        title=card_data.title,
        count=len(data.train),
        kind=params.weak_labels.kind,
        code=card_data.code_version,
        sam=card_data.sam,
        terms=card_data.terms,
        fine=sum(record.fine for record in data.train),
        **{measure: _format_score(scores[measure]) for measure in ("precision", "recall", "mIoU")},
        classes=_class_table(card_data),
        outcomes=outcomes if params.sam.enabled else "",
        sources=_source_table(metrics["sources"]),
        script=training_script(card_data),
        params=_table(
            ("parameter", "value"),
            ((key, f"`{value}`") for key, value in param_values(params, card_data.round_name).items()),
        ),
    )


def _class_table(card_data: CardData) -> str:
    """The scores per class; with SAM also its components by outcome."""
    data, metrics = card_data.data, card_data.metrics
    measures = ("precision", "recall", "IoU", "unlabeled")
    header, rows = ["id", "class", "color", *measures], []
    for k, (name, color) in enumerate(zip(data.classes, data.palette, strict=True)):
        scores = metrics["classes"]["merged"][name]
        rows.append([k, name, color, *(_format_score(scores[measure]) for measure in measures)])
    if card_data.params.sam.enabled:
        components = [metrics["components"][name] for name in data.classes]
        header += ["components", *components[0]]
        for row, counts in zip(rows, components, strict=True):
            row += [sum(counts.values()), *counts.values()]
    return _table(header, rows)


def _source_table(pixels: dict[str, int]) -> str:
    total = max(1, sum(pixels.values()))
    rows = ((k, source, f"{pixels[source] / total:.1%}") for k, source in enumerate(SOURCE_NAMES))
    return _table(("source", "meaning", "share of pixels"), rows)


def _format_score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines)
