"""A round's data set card for people: README.md."""

import re
from pathlib import Path, PurePath
from typing import Any

import jinja2

from sesam.artifacts.component_records import Outcome
from sesam.artifacts.metrics_schema import describe_images
from sesam.artifacts.sources import SOURCE_NAMES, SOURCE_TITLES
from sesam.reporting.card_data import CardData, param_values

MARKUP = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029&<>|\\`*\[\]~$#!@{}\"']|(?<!\w)_|_(?!\w)")
TEMPLATE = Path(__file__).with_name("card.md")


def readme(card_data: CardData) -> str:
    """The card for people, in Markdown, with a program that trains one of mmsegmentation's networks on the labels."""
    manifest, params, metrics = card_data.manifest, card_data.params, card_data.metrics
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"cell": _cell, "literal": repr}  # literal: of Python
    by_kind = metrics["sources"]
    class_header, class_rows = _class_table(card_data)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        card=card_data,
        manifest=manifest,
        scores=metrics["scores"]["pseudo_labels"],
        contested_pixels=metrics["contested_pixels"],
        class_header=class_header,
        class_rows=class_rows,
        source_header=("source", "meaning", *(f"{metrics['images'][kind]} {kind}" for kind in by_kind)),
        source_rows=[
            (k, title, *(f"{pixels[name] / max(1, sum(pixels.values())):.1%}" for pixels in by_kind.values()))
            for k, (name, title) in enumerate(zip(SOURCE_NAMES, SOURCE_TITLES, strict=True))
        ],
        images_by_kind=describe_images(metrics["images"]),
        images=PurePath(params.dataset.root).name,
        param_rows=[
            (markdown(key), code(str(value))) for key, value in param_values(params, card_data.round_name).items()
        ],
    )


def _class_table(card_data: CardData) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the scores per class; with SAM also its components by outcome."""
    manifest, metrics, with_sam = card_data.manifest, card_data.metrics, card_data.params.sam.enabled
    measures = ("precision", "recall", "IoU", "unlabeled")
    rows = []
    for k, (name, color) in enumerate(zip(manifest.classes, manifest.palette, strict=True)):
        scores, counts = metrics["class_scores"]["pseudo_labels"][name], metrics["component_outcomes"][name]
        row = [k, name, color, *(scores[measure] for measure in measures)]
        rows.append([*row, sum(counts.values()), *(counts[outcome] for outcome in Outcome)] if with_sam else row)
    return ["id", "class", "color", *measures, *(["components", *Outcome] if with_sam else [])], rows


def _cell(value: object) -> str:
    """A value in a table: scores to three digits, – for None."""
    if isinstance(value, float | None):
        return "–" if value is None else f"{value:.3f}"
    return markdown(str(value))


def markdown(text: str) -> str:
    """Text in a line of Markdown, also in a table: what may begin markup or HTML, or end the line, as an entity."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)


def code(text: str) -> str:
    """The same in the type of programs."""
    return f"<code>{markdown(text)}</code>" if re.search(r"[`|<\\\x00-\x1f]", text) else f"`{text}`"
