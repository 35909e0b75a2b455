"""The data set card for programs: MLCommons' Croissant 1.0, JSON-LD."""

import hashlib
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from sesam.artifacts.manifest import Manifest
from sesam.artifacts.metrics_schema import describe_images
from sesam.artifacts.sources import SOURCE_TITLES
from sesam.reporting.card_data import TERMS, CardData, images_csv, param_values

PAPER = (
    "Das, Kukleva, Hu, Asano, Schiele: Do Instance Priors Help Weakly Supervised Semantic Segmentation? "
    "arXiv 2604.11170, 2026"
)
_SOURCES = ", ".join(f"{k} {source}" for k, source in enumerate(SOURCE_TITLES))
FOLDERS = {"labels": "Class ids, 255: unlabeled.", "sources": f"Where a pixel's label comes from: {_SOURCES}."}
_TERMS = """citeAs column extract field fileProperty fileObject fileSet format includes isLiveDataset jsonPath key md5
parentField path recordSet references regex repeated replace separator source subField transform"""
_CONTEXT = {  # Croissant 1.0's
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS.split()},
}


def croissant(card_data: CardData) -> dict[str, Any]:
    """The card for programs: Croissant 1.0, with params and scores as schema.org's additionalProperty."""
    manifest, (_, address) = card_data.manifest, TERMS[card_data.manifest.format]
    identifier = "".join(letter if letter.isalnum() else "_" for letter in manifest.name)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"pseudo_labels_{identifier}_{card_data.round_name}",
        "description": f"{card_data.title}, {describe_images(card_data.metrics['images'])}; made by "
        f"{card_data.code_version}. Terms: {card_data.terms}.",
        "citeAs": PAPER,
        "version": version("sesam"),
        **({"license": address} if address else {}),
        "distribution": _distribution(manifest, images_csv(manifest, card_data.params.dataset.root)),
        "recordSet": _record_sets(manifest),
        "additionalProperty": [
            {"@type": "sc:PropertyValue", "name": key, "value": value if isinstance(value, int | float) else str(value)}
            for key, value in _properties(card_data).items()
        ],
    }


def _properties(card_data: CardData) -> dict[str, Any]:
    """SAM, params and scores, by name."""
    scores, class_scores = (card_data.metrics[key]["pseudo_labels"] for key in ("scores", "class_scores"))
    return {
        "SAM": card_data.sam,
        **param_values(card_data.params, card_data.round_name),
        **{f"{measure} of pseudo-labels": score for measure, score in scores.items()},
        **{
            f"{measure} of {name}": score
            for name, by_class in class_scores.items()
            for measure, score in by_class.items()
        },
    }


def _distribution(manifest: Manifest, table: str) -> list[dict[str, Any]]:
    """The files: label PNGs, source PNGs and images.csv, whose text is `table`."""
    pattern = "**/*.png" if any("/" in record.id for record in manifest.train) else "*.png"
    return [
        {
            "@type": "cr:FileSet",
            "@id": folder,
            "description": description,
            "encodingFormat": "image/png",
            "includes": f"{folder}/{pattern}",
        }
        for folder, description in FOLDERS.items()
    ] + [
        {
            "@type": "cr:FileObject",
            "@id": "images.csv",
            "name": "images.csv",
            "description": "The image of each label: its path in the data set, and its SHA-256.",
            "contentUrl": "images.csv",
            "encodingFormat": "text/csv",
            "sha256": hashlib.sha256(table.encode()).hexdigest(),
        }
    ]


def _record_sets(manifest: Manifest) -> list[dict[str, Any]]:
    """The rows of images.csv, the classes, and the pixels of both folders."""
    table = {"fileObject": {"@id": "images.csv"}}
    columns = [("sc:Text", name, table | {"extract": {"column": name}}) for name in ("id", "image", "sha256")]
    rows = [
        {"classes/id": k, "classes/name": name, "classes/color": "#{:02x}{:02x}{:02x}".format(*color)}
        for k, (name, color) in enumerate(zip(manifest.classes, manifest.palette, strict=True))
    ]
    classes = _record_set("classes", [("sc:Integer", "id", {}), ("sc:Text", "name", {}), ("sc:Text", "color", {})])
    record_sets = [_record_set("images", columns), classes | {"key": {"@id": "classes/id"}, "data": rows}]
    for folder in FOLDERS:
        path, content = (
            {"fileSet": {"@id": folder}, "extract": {"fileProperty": name}} for name in ("fullpath", "content")
        )
        fields = [("sc:Text", "file", path), ("sc:ImageObject", "pixels", content)]
        record_sets.append(_record_set(f"{folder}_of_images", fields))
    return record_sets


def _record_set(name: str, fields: Iterable[tuple[str, str, Mapping[str, Any]]]) -> dict[str, Any]:
    """fields: data type, name and, unless the data are inline, source."""
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "field": [
            {"@type": "cr:Field", "@id": f"{name}/{field}", "dataType": kind, **({"source": source} if source else {})}
            for kind, field, source in fields
        ],
    }
