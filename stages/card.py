"""What a colleague needs to use a round's pseudo-labels: README.md, croissant.json and images.csv beside them.

python -m stages.card ROUND

README.md is for people, croissant.json the same for programs (MLCommons' Croissant 1.0, JSON-LD), images.csv says which
image each label is of, by its path in the data set and its SHA-256.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePath
from string import Template
from typing import Any, NamedTuple

from stages.common.command_line import round_of_command_line
from stages.common.dataset import Dataset, Item
from stages.common.errors import SesamError, run_stage
from stages.common.files import read_json, write_json, write_text
from stages.common.folders import EMBEDDINGS, METRICS, pseudo_labels
from stages.common.params import Params
from stages.common.sources import SOURCE_NAMES

FATES = ("kept", "missed", "spilled", "conflict")  # as evaluate_labels counts them
GROUPS = ("seed", "dataset", "weak", "augment", "components", "sampling", "sam", "selection", "merging")
TERMS = {
    "cityscapes": (
        "Cityscapes' own, for research that is not commercial",
        "https://www.cityscapes-dataset.com/license/",
    ),
    "ade20k": (
        "ADE20K's own, for research and education that are not commercial",
        "https://ade20k.csail.mit.edu/terms/",
    ),
    "voc": ("Flickr's terms for the photographs", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"),
    "camvid": ("CamVid's own", "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"),
    "folder": ("those of the photographs' owner", None),
}
PAPER = (
    "Das, Kukleva, Hu, Asano, Schiele: Do Instance Priors Help Weakly Supervised Semantic Segmentation? "
    "arXiv 2604.11170, 2026"
)
TRAINING = Template("""\
import csv
from pathlib import Path

import mmseg
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

LABELS = Path("$name")  # the folder of this file
IMAGES = Path("$root")  # the data set, as its maker ships it
NETWORK = "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-20k_voc12aug-512x512.py"  # any of mmsegmentation's
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
    part.num_classes = len(CLASSES)  # pixels of 255, unlabelled, count in no loss
config.train_dataloader.dataset = {"type": "PseudoLabels", "pipeline": config.train_pipeline}
config.val_dataloader = config.val_cfg = config.val_evaluator = None
config.test_dataloader = config.test_cfg = config.test_evaluator = None
config.work_dir = "trained"
Runner.from_cfg(config).train()
""")


class Facts(NamedTuple):
    """What both cards say. judged: what evaluate_labels found. weights: SAM's SHA-256; code: the commit."""

    data: Dataset
    name: str
    params: Params
    judged: Mapping[str, Any]
    weights: str
    code: str

    @property
    def title(self) -> str:
        return f"Pseudo-labels of {self.data.name}, round {self.name}"

    @property
    def terms(self) -> str:
        whose, address = TERMS[self.data.kind]
        return whose + (f", {address}" if address else "")

    @property
    def sam(self) -> str:
        return f"{self.params.sam.model}, " + (f"SHA-256 {self.weights}" if self.weights else "without weights")


def code_version(root: Path = Path(__file__).parents[1]) -> str:
    """The last commit that touched the code, and whether it was changed since; the package's version without git."""

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    paths = ("stages", "dvc.yaml", "constraints.txt")
    try:
        commit = git("log", "-1", "--format=%H", "--", *paths)
        changed = git("status", "--porcelain", "--", *paths)
    except (OSError, subprocess.CalledProcessError):
        commit = changed = ""
    said = f", commit {commit}" if commit else ""
    return f"SeSAM {version('sesam')}{said}" + (" with changes that are not committed" if changed else "")


def values(params: Params, name: str) -> dict[str, Any]:
    """Every param that decides the round's labels, by dotted key."""
    groups = {**params.model_dump(include=set(GROUPS)), f"rounds.{name}": params.rounds[name].model_dump()}
    found: dict[str, Any] = {}
    for group in sorted(groups, key=[*GROUPS, f"rounds.{name}"].index):
        _flatten(group, groups[group], found)
    return found


def _flatten(key: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for part, inner in value.items():
            _flatten(f"{key}.{part}", inner, into)
    else:
        into[key] = value


def path_in(root: str, item: Item) -> str:
    """Where an image lies in its data set, with slashes."""
    image = PurePath(item.image)
    return (image.relative_to(root) if image.is_relative_to(root) else image).as_posix()


def images(data: Dataset, root: str) -> str:
    """images.csv, a row an image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "image", "sha256"))
    writer.writerows((item.id, path_in(root, item), item.sha256) for item in data.train)
    return text.getvalue()


def training(facts: Facts) -> str:
    """A program that trains one of mmsegmentation's networks on the labels."""
    return TRAINING.substitute(
        name=facts.name,
        root=PurePath(facts.params.dataset.root).name,
        classes=json.dumps(facts.data.classes, ensure_ascii=False),
        palette=[list(colour) for colour in facts.data.palette],
    )


def readme(facts: Facts) -> str:
    """The card for people, in Markdown."""
    data, judged = facts.data, facts.judged
    merged, by_class = judged["scores"]["merged"], judged["classes"]["merged"]
    fine, pixels = sum(item.fine for item in data.train), judged["sources"]
    rows = []
    for k, (one, colour) in enumerate(zip(data.classes, data.palette, strict=True)):
        scores, counts = by_class[one], judged["components"][one]
        cells = [k, one, colour, *(_digits(scores[key]) for key in ("precision", "recall", "IoU", "unlabelled"))]
        rows.append(_row([*cells, sum(counts.values()), *(counts[fate] for fate in FATES)]))
    contested = judged["contested"]
    lines = [
        f"# {facts.title}",
        "",
        f"{len(data.train)} training images. `labels/ID.png`: class ids, 255 = unlabelled. "
        "`sources/ID.png`: where each pixel's label comes from. 8-bit palette PNGs. `images.csv`: the image that each "
        "is of. `ranking.csv`: the images that most need a look first. `croissant.json`: this card for programs.",
        "",
        f"Made of {facts.params.weak.kind} labels with {facts.code} (arXiv 2604.11170), SAM: {facts.sam}. "
        f"Terms: those of the data set that was labelled, here {facts.terms}.",
        "",
        f"Against the fine labels of {fine} of the images: precision {_digits(merged['precision'])}, "
        f"recall {_digits(merged['recall'])}, mIoU {_digits(merged['mIoU'])}. "
        "Components are what SAM was prompted with; refused ones by reason: no mask held the component's weak labels, "
        "or where it has none, its pixels (missed); the mask was far larger (spilled); it held weak labels of other "
        "classes (conflict).",
        "",
        _row(["id", "class", "colour", "precision", "recall", "IoU", "unlabelled", "components", *FATES]),
        _row(["---"] * 12),
        *rows,
        "",
        f"Masks of two classes claimed {sum(contested.values())} pixels; the smaller mask won. "
        + ", ".join(f"{kind} {count}" for kind, count in contested.items())
        + " (weak: an annotator's label decided)."
        if facts.params.merging.sam
        else "SAM's masks were not used (`merging.sam` is false).",
        "",
        "| source | meaning | share of pixels |",
        "| --- | --- | --- |",
        *(
            _row([k, source, f"{pixels[source] / max(1, sum(pixels.values())):.1%}"])
            for k, source in enumerate(SOURCE_NAMES)
        ),
        "",
        "To train one of mmsegmentation's networks on them:",
        "",
        "```python",
        training(facts).rstrip(),
        "```",
        "",
        "| parameter | value |",
        "| --- | --- |",
        *(_row([key, f"`{value}`"]) for key, value in values(facts.params, facts.name).items()),
    ]
    return "\n".join(lines) + "\n"


def croissant(facts: Facts) -> dict[str, Any]:
    """The card for programs: Croissant 1.0, with params and scores as schema.org's additionalProperty."""
    data, address = facts.data, TERMS[facts.data.kind][1]
    scores = {f"{key} of merged labels": value for key, value in facts.judged["scores"]["merged"].items()}
    by_class = {
        f"{key} of {one}": value
        for one, several in facts.judged["classes"]["merged"].items()
        for key, value in several.items()
    }
    about = {"SAM": facts.sam, **values(facts.params, facts.name), **scores, **by_class}
    files = {
        "labels": "Class ids, 255: unlabelled.",
        "sources": "Where a pixel's label comes from: "
        + ", ".join(f"{k} {source}" for k, source in enumerate(SOURCE_NAMES))
        + ".",
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"pseudo_labels_{_word(data.name)}_{facts.name}",
        "description": f"{facts.title}, made of {facts.params.weak.kind} labels by {facts.code}. Terms: {facts.terms}.",
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
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "classes",
                "key": {"@id": "classes/id"},
                "field": [
                    {"@type": "cr:Field", "@id": f"classes/{name}", "dataType": kind}
                    for name, kind in (("id", "sc:Integer"), ("name", "sc:Text"), ("colour", "sc:Text"))
                ],
                "data": [
                    {"classes/id": k, "classes/name": one, "classes/colour": "#{:02x}{:02x}{:02x}".format(*colour)}
                    for k, (one, colour) in enumerate(zip(data.classes, data.palette, strict=True))
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
                            ("file", "sc:Text", "filename"),
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


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in cells)} |"


def main() -> None:
    name, params = round_of_command_line(__doc__.splitlines()[0])
    data, folder = Dataset.load(), pseudo_labels(name)
    index, judged = EMBEDDINGS.with_suffix(".json"), METRICS / "labels" / f"{name}.json"
    try:
        facts = Facts(data, name, params, read_json(judged), str(read_json(index)["weights"]), code_version())
        texts = readme(facts), croissant(facts)
    except (KeyError, TypeError, AttributeError):
        raise SesamError(f"{judged} or {index} is not of this run. Run `dvc repro`.") from None
    write_text(folder / "README.md", texts[0])
    write_json(folder / "croissant.json", texts[1])
    write_text(folder / "images.csv", images(data, params.dataset.root))
    print(f"card {name}: {folder / 'README.md'}")


if __name__ == "__main__":
    run_stage(main)
