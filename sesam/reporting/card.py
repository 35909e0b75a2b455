"""A round's data set card for people: README.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
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

LABELS = Path("$name")  # the folder of this file
IMAGES = Path("$root")  # the data set, as its maker ships it
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
for part in (config.model.decode_head, config.model.auxiliary_head):
    part.num_classes = len(CLASSES)  # pixels of 255, unlabeled, count in no loss
config.train_dataloader.dataset = {"type": "PseudoLabels", "pipeline": config.train_pipeline}
config.val_dataloader = config.val_cfg = config.val_evaluator = None
config.test_dataloader = config.test_cfg = config.test_evaluator = None
config.work_dir = "trained"
Runner.from_cfg(config).train()
""")


def training_script(facts: CardData) -> str:
    """A program that trains one of mmsegmentation's networks on the labels."""
    return TRAINING_SCRIPT.substitute(
        name=facts.name,
        root=PurePath(facts.params.dataset.root).name,
        classes=json.dumps(facts.data.classes, ensure_ascii=False),
        palette=[list(color) for color in facts.data.palette],
    )


def readme(facts: CardData) -> str:
    """The card for people, in Markdown."""
    data, judged = facts.data, facts.judged
    merged, by_class = judged["scores"]["merged"], judged["classes"]["merged"]
    fine, pixels = sum(item.fine for item in data.train), judged["sources"]
    rows = []
    for k, (one, color) in enumerate(zip(data.classes, data.palette, strict=True)):
        scores, counts = by_class[one], judged["components"][one]
        cells = [k, one, color, *(_format_score(scores[key]) for key in ("precision", "recall", "IoU", "unlabeled"))]
        if facts.params.sam.enabled:
            cells += [sum(counts.values()), *counts.values()]
        rows.append(_table_row(cells))
    contested = judged["contested"]
    used = facts.params.sam.enabled
    columns = ["components", *judged["components"][data.classes[0]]] if used else []
    lines = [
        f"# {facts.title}",
        "",
        f"{len(data.train)} training images. `labels/ID.png`: class ids, 255 = unlabeled. "
        "`sources/ID.png`: where each pixel's label comes from. 8-bit palette PNGs. `images.csv`: the image that each "
        "is of. `ranking.csv`: the images that most need a look first. `croissant.json`: this card for programs.",
        "",
        f"Made of {facts.params.weak_labels.kind} labels with {facts.code} (arXiv 2604.11170), "
        + (f"SAM: {facts.sam}. " if used else "without SAM (`sam.enabled` is false). ")
        + f"Terms: those of the data set that was labeled, here {facts.terms}.",
        "",
        f"Against the fine labels of {fine} of the images: precision {_format_score(merged['precision'])}, "
        f"recall {_format_score(merged['recall'])}, mIoU {_format_score(merged['mIoU'])}."
        + (
            " Components are what SAM was prompted with; refused ones by reason: no mask held the component's weak "
            "labels, or where it has none, its pixels (missed); the mask was far larger (spilled); it held weak labels "
            "of other classes (conflict)."
            if used
            else ""
        ),
        "",
        _table_row(["id", "class", "color", "precision", "recall", "IoU", "unlabeled", *columns]),
        _table_row(["---"] * (7 + len(columns))),
        *rows,
        "",
    ]
    if used:
        lines += [
            f"Masks of two classes claimed {sum(contested.values())} pixels; the smaller mask won. "
            + ", ".join(f"{kind} {count}" for kind, count in contested.items())
            + " (weak: an annotator's label decided; unknown: no fine label tells).",
            "",
        ]
    lines += [
        "| source | meaning | share of pixels |",
        "| --- | --- | --- |",
        *(
            _table_row([k, source, f"{pixels[source] / max(1, sum(pixels.values())):.1%}"])
            for k, source in enumerate(SOURCE_NAMES)
        ),
        "",
        "To train one of mmsegmentation's networks on them:",
        "",
        "```python",
        training_script(facts).rstrip(),
        "```",
        "",
        "| parameter | value |",
        "| --- | --- |",
        *(_table_row([key, f"`{value}`"]) for key, value in param_values(facts.params, facts.name).items()),
    ]
    return "\n".join(lines) + "\n"


def _format_score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table_row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in cells)} |"
