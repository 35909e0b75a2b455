"""The data set card for programs: MLCommons' Croissant 1.0, JSON-LD."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

from sesam.artifacts.sources import SOURCE_NAMES
from sesam.reporting.card_data import TERMS, CardData, images_csv, param_values

PAPER = (
    "Das, Kukleva, Hu, Asano, Schiele: Do Instance Priors Help Weakly Supervised Semantic Segmentation? "
    "arXiv 2604.11170, 2026"
)


def croissant(facts: CardData) -> dict[str, Any]:
    """The card for programs: Croissant 1.0, with params and scores as schema.org's additionalProperty."""
    data, address = facts.data, TERMS[facts.data.format][1]
    scores = {f"{key} of merged labels": value for key, value in facts.judged["scores"]["merged"].items()}
    by_class = {
        f"{key} of {one}": value
        for one, several in facts.judged["classes"]["merged"].items()
        for key, value in several.items()
    }
    table = images_csv(data, facts.params.dataset.root)
    about = {
        "SAM": facts.sam if facts.params.sam.enabled else "not used",
        **param_values(facts.params, facts.name),
        **scores,
        **by_class,
    }
    files = {
        "labels": "Class ids, 255: unlabeled.",
        "sources": "Where a pixel's label comes from: "
        + ", ".join(f"{k} {source}" for k, source in enumerate(SOURCE_NAMES))
        + ".",
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"pseudo_labels_{_word(data.name)}_{facts.name}",
        "description": f"{facts.title}, made of {facts.params.weak_labels.kind} labels by {facts.code}. Terms: {facts.terms}.",
        "citeAs": PAPER,
        "version": version("sesam"),
        **({"license": address} if address else {}),
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": part,
                "description": text,
                "encodingFormat": "image/png",
                "includes": f"{part}/**/*.png" if any("/" in item.id for item in data.train) else f"{part}/*.png",
            }
            for part, text in files.items()
        ]
        + [
            {
                "@type": "cr:FileObject",
                "@id": "images.csv",
                "name": "images.csv",
                "description": "Which image each label is of: its path in the data set, and its SHA-256.",
                "contentUrl": "images.csv",
                "encodingFormat": "text/csv",
                "sha256": hashlib.sha256(table.encode()).hexdigest(),
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "images",
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"images/{column}",
                        "dataType": "sc:Text",
                        "source": {"fileObject": {"@id": "images.csv"}, "extract": {"column": column}},
                    }
                    for column in ("id", "image", "sha256")
                ],
            },
            {
                "@type": "cr:RecordSet",
                "@id": "classes",
                "key": {"@id": "classes/id"},
                "field": [
                    {"@type": "cr:Field", "@id": f"classes/{name}", "dataType": kind}
                    for name, kind in (("id", "sc:Integer"), ("name", "sc:Text"), ("color", "sc:Text"))
                ],
                "data": [
                    {"classes/id": k, "classes/name": one, "classes/color": "#{:02x}{:02x}{:02x}".format(*color)}
                    for k, (one, color) in enumerate(zip(data.classes, data.palette, strict=True))
                ],
            },
            *(
                {
                    "@type": "cr:RecordSet",
                    "@id": f"{part}_of_images",
                    "field": [
                        {
                            "@type": "cr:Field",
                            "@id": f"{part}_of_images/{what}",
                            "dataType": kind,
                            "source": {"fileSet": {"@id": part}, "extract": {"fileProperty": taken}},
                        }
                        for what, kind, taken in (
                            ("file", "sc:Text", "fullpath"),
                            ("pixels", "sc:ImageObject", "content"),
                        )
                    ],
                }
                for part in files
            ),
        ],
        "additionalProperty": [
            {"@type": "sc:PropertyValue", "name": key, "value": value if isinstance(value, int | float) else str(value)}
            for key, value in about.items()
        ],
    }


_CONTEXT = {  # Croissant 1.0's own
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def _word(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text)
