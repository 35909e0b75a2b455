"""Fuzzing: every kind of file from a data set or a colleague, damaged in many ways, is read correctly or refused.

    make fuzzing                              # 20,000 cases, some minutes
    python -m tests.robustness.fuzzing --cases 500 --seed 1

A case is a valid file, mutated: bits, blocks and lengths of any file, values and keys of JSON and YAML. It passes if
the reader raises SesamError, or returns what passes the target's own check. Tracebacks, hangs, crashes, started
programs and written files are failures. Cases run in a fork, which may crash; --show CASE prints a case's file.
"""

import argparse
import io
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import reduce
from multiprocessing import Value
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from sesam.artifacts import component_records as records
from sesam.artifacts.archives import pack
from sesam.artifacts.atomic_io import read_bytes
from sesam.artifacts.drawn_prompts import (
    BackgroundPoint,
    DrawnBox,
    DrawnPrompts,
    read_drawn_prompts,
    write_drawn_prompts,
)
from sesam.artifacts.image_io import read_image, read_label
from sesam.artifacts.manifest import ImageRecord, Manifest, UnusedImage, load_unused, save_unused
from sesam.artifacts.metrics_schema import read_annotation_counts, read_label_metrics, read_network_metrics
from sesam.artifacts.ranking import top_ranked
from sesam.artifacts.sources import load_sources
from sesam.artifacts.supervision import load_supervision
from sesam.artifacts.thresholds import load_threshold
from sesam.cli.tile import read_tile_index
from sesam.datasets.annotation_kinds import KINDS_FILE, read_kinds
from sesam.datasets.annotations.common import Annotation, LabelSpec
from sesam.datasets.annotations.image_names import ImageNames
from sesam.datasets.annotations.png import LabelPng
from sesam.datasets.annotations.registry import find_annotations, read_annotation
from sesam.datasets.annotations.scribblesup import Scribbles
from sesam.datasets.data_issues import DataIssue
from sesam.datasets.label_maps import label_map_for, read_values
from sesam.errors import SesamError
from sesam.geometry.regions import connected_regions
from sesam.geometry.rle import mask_to_rle
from sesam.geometry.tiling import tile_starts
from sesam.labels import IGNORE_INDEX, fill_boxes
from sesam.merging import merge_labels
from sesam.params import KINDS, load_params
from sesam.paths import RANKING, pseudo_label_dir, round_dir
from sesam.presets import load_preset, render_params
from sesam.prompting import image_prompts
from sesam.reporting.card import readme
from sesam.reporting.card_data import CardData
from sesam.reporting.charts import as_html, charts
from sesam.reporting.croissant import croissant
from sesam.reporting.label_quality import LabelQuality, label_metrics
from sesam.reporting.report_images import Layer, ReportImage, data_url, read_report_images, write_report_images
from sesam.reporting.tables import summary
from sesam.sam.cache import EmbeddingCache
from sesam.sam.inference import component_prompts
from sesam.scores import confusion_matrix
from sesam.segmentation.evaluation import loss_curve, network_metrics
from sesam.segmentation.network import load_network, network_config, save_network
from sesam.selection import select_candidate, weak_masks_by_class

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # for its helpers
PARAMS = load_preset(ROOT / "presets/demo.yaml")
SHAPE = (24, 32)
ITEM = ImageRecord("a/b", "a/b.png", *SHAPE, "0" * 64)
NAMES = ("left", "right", "other")
MANIFEST = Manifest("x", NAMES, ((1, 2, 3), (4, 5, 6), (7, 8, 9)), (), (), "folder", (9,))
SECONDS = 300  # a reader that takes longer hangs, on a machine however busy
NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 255, 256, 300, 10**6, 2**31, 2**63, 2**64, -(2**63), 1e308, -0.5, 0.5, math.nan,
    math.inf, "", "a", "0", "..", "../../x", "/etc/passwd", "~/x", "\0", "\u202e", "x" * 10_000, "os.system",
    [], {}, [[]], [None], {"": None}, [0] * 1000, {"type": "os.system", "command": "touch ran"},
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A kind of file. read: reads the file, and checks what it got; called with its path and the valid content."""

    name: str
    path: str
    samples: tuple[bytes, ...]
    read: Callable[[Path, bytes], None]
    weight: float = 1.0  # relative number of cases


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A label map of three classes, and strokes in it."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 16:], labels[4:12, 4:10] = 1, 2
    weak = np.full(SHAPE, IGNORE_INDEX, np.uint8)
    weak[20, 3:12], weak[5:20, 24], weak[8, 5:9] = 0, 1, 2
    return labels, weak


LABELS, WEAK = scene()


def png(values: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(file, "PNG", **options)
    return file.getvalue()


def of_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def label(path: Path, original: bytes) -> None:
    """A PNG's checksums reveal all damage to the pixels: what is accepted is what was written."""
    values = read_label(path)
    assert values.dtype == np.uint8 and values.ndim == 2
    if path.read_bytes()[8:33] == original[8:33]:  # another header is another image
        assert np.array_equal(values, np.array(Image.open(io.BytesIO(original)))), "another label"


def image(path: Path, original: bytes) -> None:
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def read_all(annotations: Iterable[Annotation], spec: LabelSpec) -> None:
    for annotation in annotations:
        labels = read_annotation(annotation, spec).labels
        assert labels.shape == spec.size and set(np.unique(labels)) <= {0, 1, 2, IGNORE_INDEX}


def annotated(path: Path, original: bytes) -> None:
    spec = LabelSpec(SHAPE, NAMES, label_map_for(MANIFEST), 3, 2)
    if path.suffix == ".png":
        read_values(path, spec.label_map)
    read_all([(Scribbles if path.suffix == ".xml" else LabelPng)(path)], spec)


def clicks(path: Path, original: bytes) -> None:
    spec = LabelSpec(SHAPE, NAMES, label_map_for(replace(MANIFEST, format="voc")), 3, 2)
    read_all(find_annotations(path, "voc", ImageNames([replace(ITEM, id=k) for k in "ab"])).values(), spec)


def exported(path: Path, original: bytes) -> None:
    spec = LabelSpec((40, 60), ("left", "right", "dot"), label_map_for(MANIFEST), 3, 1)
    source = path if path.suffix in (".json", ".geojson", ".xml") else path.parent
    read_all(find_annotations(source, "folder", ImageNames([replace(ITEM, id="7")])).values(), spec)


def exports() -> Iterator[tuple[str, bytes]]:
    """What annotation tools export."""
    from tests.unit import test_annotation_readers, test_annotations

    for name, make in (test_annotations.FILES | test_annotation_readers.FILES).items():
        content = make()
        yield name, content.encode() if isinstance(content, str) else of_json(content)


def manifest_file(path: Path, original: bytes) -> None:
    manifest = Manifest.load(path.parent)
    here = Path.cwd().resolve()
    for item in (*manifest.train, *manifest.val):
        for name in (f"{item.id}.png", f"{item.id}.json", f"{item.sha256}.npz"):
            assert (here / "artifact" / name).resolve().is_relative_to(here / "artifact"), item.id
        assert np.zeros((item.height, 0)).shape[0] > 0 and item.width > 0 and isinstance(item.image, str)
    assert 2 <= len(manifest.classes) <= 255 and all(isinstance(name, str) for name in manifest.classes)
    assert np.asarray(manifest.palette, np.uint8).shape[1:] in ((3,), ())


def prompts(path: Path, original: bytes) -> None:
    for prompt in component_prompts(records.read_prompts(path, ITEM)):
        if prompt.points is not None:
            assert prompt.points.shape[1] == 2
            assert ((prompt.points >= 0) & (prompt.points < [SHAPE[1], SHAPE[0]])).all()


def masks(path: Path, original: bytes) -> None:
    component = records.Component(1, 1, mask_to_rle(LABELS == 1))
    (offered,) = records.read_candidates(path, ITEM, [component]).values()
    select_candidate(component, offered, weak_masks_by_class(WEAK), PARAMS.selection)


def drawn_prompts(path: Path, original: bytes) -> None:
    drawn = read_drawn_prompts(path.parents[1], ITEM, len(NAMES))
    boxes = [(entry.class_id, entry.box) for entry in drawn.boxes]
    assert set(np.unique(fill_boxes(WEAK, boxes))) <= {0, 1, 2, IGNORE_INDEX}
    empty = np.full_like(WEAK, IGNORE_INDEX)
    for prompt in component_prompts(image_prompts(WEAK, empty, np.zeros_like(WEAK), PARAMS, ("r1", "a"), drawn)):
        assert prompt.box is None or (prompt.box[0] < prompt.box[2] and prompt.box[1] < prompt.box[3])


def masked(path: Path, original: bytes) -> None:
    """A folder of masks, SOURCE/FOLDER/7.png, or its labelmap.txt."""
    spec = LabelSpec(SHAPE, NAMES, label_map_for(MANIFEST), 3, 1)
    source = path.parent if path.suffix == ".txt" else path.parents[1]
    names = ImageNames([replace(ITEM, id="7")])
    read_all(find_annotations(source, "folder", names, NAMES).values(), spec)


def unused(path: Path, original: bytes) -> None:
    ImageNames([ITEM], unused=load_unused(path.parent)).match("images/7.png")


def sources(path: Path, original: bytes) -> None:
    values = load_sources(path.parents[1], ITEM)
    assert values.shape == SHAPE and set(np.unique(values)) <= {0, 1, 2, 3, 4}


def supervision(path: Path, original: bytes) -> None:
    if path.suffix == ".csv":
        kinds = read_kinds(path.parent, [ITEM])
        assert set(kinds) <= {ITEM.id} and set(kinds.values()) <= set(KINDS)
        return
    with chdir(path.parents[1]):
        kinds = load_supervision([ITEM])
    assert set(kinds) == {ITEM.id} and set(kinds.values()) <= set(KINDS)


def thresholds(path: Path, original: bytes) -> None:
    with chdir(path.parents[3]):
        limits = load_threshold("r1", "none", PARAMS.dataset.classes or (), PARAMS.teacher)
    assert isinstance(limits, np.ndarray) and ((limits >= 0) & (limits <= 1)).all()


def ranking(path: Path, original: bytes) -> None:
    manifest = replace(MANIFEST, train=(ITEM, replace(ITEM, id="c")))
    assert [record.id for record in top_ranked("r1", manifest, 2)] in (["a/b", "c"], ["c", "a/b"])


def annotation_counts(path: Path, original: bytes) -> None:
    counts = read_annotation_counts(path)
    assert all(count >= 0 for count in counts.values())
    assert readme(CardData(replace(MANIFEST, train=(ITEM,)), "r1", PARAMS, LABEL_METRICS, "", "", counts))


def report_images(path: Path, original: bytes) -> None:
    for shown in read_report_images(path):
        assert all(one.picture.startswith("data:image/") for one in shown.layers)


def tile_index(path: Path, original: bytes) -> None:
    index = read_tile_index(path)
    for size in index.sizes.values():
        for side in size:
            *_, last = tile_starts(side, index.tile_size, index.overlap)
            assert last + index.tile_size >= side and last >= 0
        assert not index.has_tiles(size, set())


def selected(path: Path, original: bytes) -> None:
    components = [records.Component(n, 1, mask_to_rle(LABELS == 1)) for n in (1, 2)]
    masks = records.read_selected(path, ITEM, len(NAMES), components)
    found, sources = merge_labels(
        np.zeros((*SHAPE, 3), np.uint8), WEAK, np.full(SHAPE, IGNORE_INDEX, np.uint8), components, masks
    )
    assert set(np.unique(found)) <= {0, 1, 2, IGNORE_INDEX} and set(np.unique(sources)) <= {0, 1, 2, 3}
    assert np.array_equal(found[WEAK != IGNORE_INDEX], WEAK[WEAK != IGNORE_INDEX])


def params(path: Path, original: bytes) -> None:
    json.dumps(load_params(path).model_dump(), allow_nan=False)


def network(path: Path, original: bytes) -> None:
    model = load_network(path.parent, torch.device("cpu"))
    assert type(model).__module__.startswith("mmseg.")
    if path.name == "model.pth":
        written = torch.load(io.BytesIO(original), weights_only=True)["state_dict"]
        assert all(torch.equal(value, written[key]) for key, value in model.state_dict().items()), "other weights"


def embedding(path: Path, original: bytes) -> None:
    loaded = EmbeddingCache("e" * 16, path.parent.parent).load(ITEM)
    with np.load(io.BytesIO(original)) as archive:
        assert loaded is None or np.array_equal(loaded.numpy(), archive["embedding"]), "another embedding"


PACKED = {"a.json": b"{}" * 40, "b c/d.json": bytes(range(256))}


def archive(path: Path, original: bytes) -> None:
    for name, content in PACKED.items():
        assert read_bytes(path.parent / name) == content, "another file"


def packed(folder: Path) -> bytes:
    for name, content in PACKED.items():
        (folder / "loose" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "loose" / name).write_bytes(content)
    (folder / "packed").mkdir()
    pack(folder / "loose", folder / "packed")
    return (folder / "packed/files-0000.zip").read_bytes()


def log(path: Path, original: bytes) -> None:
    assert all(isinstance(step, int) and isinstance(loss, float) for step, loss in loss_curve(path.parents[2]))


def network_metrics_file(path: Path, original: bytes) -> None:
    drawn(read_network_metrics(path, NAMES), LABEL_METRICS)


def label_metrics_file(path: Path, original: bytes) -> None:
    metrics = read_label_metrics(path, NAMES)
    drawn(NETWORK_METRICS, metrics)
    manifest = Manifest("x", NAMES, ((0, 0, 0),) * 3, (ITEM,), ())
    card = CardData(manifest, "r1", PARAMS, metrics, "", "")
    assert readme(card) and croissant(card)


def drawn(network: dict[str, Any], labels: dict[str, Any]) -> None:
    """Runs what `summarize` and `report` run."""
    metrics = {"baseline": network, "r1": network}, {"r1": labels}
    figures = charts(*metrics, NAMES).values()
    assert all(as_html(figure, "a") for figure in figures) and summary(*metrics)


def sample_metrics() -> tuple[dict[str, Any], dict[str, Any]]:
    """A network's metrics as `evaluate` writes them, and a round's as `evaluate_labels` does."""
    matrix = confusion_matrix(LABELS, WEAK, len(NAMES))
    outcomes = Counter({(1, records.Outcome.KEPT): 2, (2, records.Outcome.LOW_COVERAGE): 1})
    images, sources = Counter(fine=1, none=2), Counter({("fine", 4): 9, ("none", 2): 5})
    quality = LabelQuality(np.stack([matrix] * 4), outcomes, Counter(correct=3), images, sources, [], [])
    return network_metrics(matrix, NAMES, [[10, 1.5], [20, 0.5]], PARAMS.evaluation), label_metrics(quality, NAMES)


NETWORK_METRICS, LABEL_METRICS = sample_metrics()


def targets(folder: Path) -> list[Target]:
    """Every kind of file with its samples; writes what its reader needs besides it."""
    prompted = image_prompts(WEAK, np.full_like(WEAK, IGNORE_INDEX), np.zeros_like(WEAK), PARAMS, ("r1", "a"))
    records.write_prompts(folder / "points.json", ITEM, "points", prompted)
    size = {"id": ITEM.id, "height": SHAPE[0], "width": SHAPE[1]}
    rle = mask_to_rle(LABELS == 1)
    palette = ((0, 0, 0), (9, 9, 9), (7, 7, 7))
    manifest = Manifest("x", NAMES, palette, (ITEM, replace(ITEM, id="c")), (), ignore_values=(9,))
    manifest.save(folder / "manifest")
    manifest.save(folder / "classes")
    strokes = "".join(
        f"<polygon><tag>{name}</tag><point><X>3</X><Y>{y}</Y></point><point><X>20</X><Y>9</Y></point></polygon>"
        for y, name in enumerate(NAMES)
    )
    xml = f"<annotation><size><width>32</width><height>24</height></size>{strokes}</annotation>".encode()
    small = PARAMS.network.model_copy(update={"base_channels": 4, "head_channels": 8, "aux_loss_weight": 0.0})
    from dataset_factories import THREE
    from mmseg.registry import MODELS

    torch.manual_seed(0)
    model = MODELS.build(network_config(small, 3))
    save_network(folder / "network", small, *THREE, model)
    save_network(folder / "weights", small, *THREE, model)
    array = io.BytesIO()
    np.savez(array, embedding=np.zeros((4, 8, 8), np.float16))
    photo = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(photo).save(jpeg, "JPEG")
    drawings = DrawnPrompts((DrawnBox(1, (2, 3, 20, 24)), DrawnBox(2, (0, 0, 1, 1))), (BackgroundPoint(0, (31, 23)),))
    write_drawn_prompts(folder / "drawn", ITEM, drawings)
    save_unused([UnusedImage("7", "x/7.png"), UnusedImage("a/b", "y/a/b.png")], folder / "unused")
    picture = data_url(photo)
    write_report_images(folder / "report.json", [ReportImage("a/b", [Layer("image", "image", picture)], ["kept"])])
    masks_of_classes = {"binary/left/7.png": LABELS == 1, "binary/right/7.png": LABELS == 2}
    for name, values in masks_of_classes.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(png(values.astype(np.uint8) * 255))
    colors = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], np.uint8)[LABELS]
    labelmap = b"# label:color_rgb:parts:actions\nbackground:0,0,0::\nleft:250,50,83::\nright:51,221,255::\n"
    (folder / "cvat/SegmentationClass").mkdir(parents=True)
    (folder / "cvat/SegmentationClass/7.png").write_bytes(png(colors))
    (folder / "cvat/labelmap.txt").write_bytes(labelmap)
    others = [io.BytesIO() for _ in range(3)]
    for file, form in zip(others, ("TIFF", "WEBP", "BMP"), strict=True):
        Image.fromarray(photo).save(file, form)
    presets = [load_preset(path) for path in sorted((ROOT / "presets").glob("*.yaml"))]
    found = [{"number": n, "class": 1, "candidate": 0, "score": 0.5, "rle": rle, "outcome": "kept"} for n in (1, 2)]
    offered = [{"number": 1, "candidates": [{"predicted_iou": 0.5, "rle": rle}] * 3}]
    from tests.unit.test_annotation_readers import YAML, yolo

    for path, text in (("labels/data.yaml", YAML), ("yolo/7.txt", yolo()), ("names/7.txt", yolo())):
        (folder / path).parent.mkdir()
        (folder / path).write_text(text)
    regions = [
        {"number": n, "class": k, "rle": region.rle(SHAPE)}
        for n, (k, region) in enumerate(connected_regions(LABELS, 8, 1), 1)
    ]
    limits = dict.fromkeys(PARAMS.dataset.classes or (), 0.5)
    return [
        Target("label", "label.png", (png(LABELS), png(LABELS, "P")), label, 2),
        Target("image", "photo.png", (png(photo), jpeg.getvalue(), png(LABELS)), image, 2),
        Target("other image", "photo.tif", tuple(file.getvalue() for file in others), image),
        Target("annotation", "drawn.png", (png(WEAK), png(np.dstack([WEAK] * 3))), annotated),
        Target("strokes", "strokes.xml", (xml,), annotated),
        Target("clicks", "clicks.json", (of_json({"a": [{"x": 1, "y": 2, "cls": 0}], "b": []}),), clicks),
        *(Target(f"of {name}", name, (content,), exported) for name, content in exports()),
        Target("YOLO's classes", "yolo/data.yaml", (YAML.encode(), b"names: [left, right]"), exported),
        Target("YOLO's names", "names/classes.txt", (b"left\nright\n",), exported),
        Target("binary masks", "binary/left/7.png", (png((LABELS == 1).astype(np.uint8) * 255),), masked),
        Target("colored masks", "cvat/SegmentationClass/7.png", (png(colors),), masked),
        Target("labelmap", "cvat/labelmap.txt", (labelmap,), masked),
        Target("unused images", "unused/unused.json", ((folder / "unused/unused.json").read_bytes(),), unused),
        Target("drawn prompts", "drawn/a/b.json", ((folder / "drawn/a/b.json").read_bytes(),), drawn_prompts, 2),
        Target("sources", "sources/a/b.png", (png(np.minimum(LABELS, 3), "P"),), sources),
        Target("kinds", "data/supervision.json", (of_json({ITEM.id: "scribble"}),), supervision),
        Target("list of kinds", f"kinds/{KINDS_FILE}", (f"image,kind\n{ITEM.id},fine\n".encode(),), supervision),
        Target("thresholds", f"{round_dir('r1', 'thresholds.json')}", (of_json(limits),), thresholds),
        Target("ranking", f"{pseudo_label_dir('r1')}/{RANKING}", (b"id,priority\n./c,0.5\na/b,0.25\n",), ranking),
        Target("annotation counts", "counts.json", (of_json({"shapes": 3, "boxes": 1}),), annotation_counts),
        Target("report", "report.json", ((folder / "report.json").read_bytes(),), report_images),
        Target("tiles", "tiles.json", (of_json({"tile": 8, "overlap": 4, "sizes": {"a": [16, 20]}}),), tile_index),
        Target("images", "manifest/train.json", ((folder / "manifest/train.json").read_bytes(),), manifest_file, 2),
        Target("classes", "classes/classes.json", ((folder / "classes/classes.json").read_bytes(),), manifest_file),
        Target("prompts", "prompts.json", ((folder / "points.json").read_bytes(),
               of_json(size | {"prompt": "mask", "components": regions})), prompts, 2),
        Target("masks", "masks.json", (of_json(size | {"components": offered}),), masks, 2),
        Target("selected", "selected.json", (of_json(size | {"components": found}),), selected, 2),
        Target("params", "params.yaml", tuple(render_params(preset).encode() for preset in presets), params, 2),
        Target("network", "network/network.json", ((folder / "network/network.json").read_bytes(),), network, 0.3),
        Target("weights", "weights/model.pth", ((folder / "weights/model.pth").read_bytes(),), network, 0.3),
        Target("archive", "archive/files-0000.zip", (packed(folder),), archive),
        Target("embedding", f"{'e' * 16}/{'0' * 64}.npz", (array.getvalue(),), embedding),
        Target("network metrics", "network_metrics.json", (of_json(NETWORK_METRICS),), network_metrics_file),
        Target("label metrics", "label_metrics.json", (of_json(LABEL_METRICS),), label_metrics_file),
        Target("log", "log/plots/metrics/loss.tsv", (b"step\tloss\n10\t1.5\n20\t0.5\n",), log),
    ]  # fmt: skip


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 16, 100))
        start = rng.randrange(len(data) + 1)
        stop, replacement = rng.choice(
            (
                (at, rng.randbytes(length)),  # inserted
                (at, data[start : start + length]),  # copied
                (at + length, b""),  # removed
                (len(data), b""),  # cut off
                (at + length, bytes([rng.choice((0, 255, 127, 128))]) * length),
                (at + 8, rng.choice((b"0", b"-1", b"99999999", b"\xff\xff\xff\xff", b"null", b"1e999", b"\n", b"["))),
                (at + 1, bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1])),  # one bit
            )
        )
        data[at:stop] = replacement
    return bytes(data)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in nested lists and mappings."""
    yield above
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*above, key))


def mutated_value(value: Any, rng: random.Random) -> Any:
    """A value changed, removed, added, duplicated or replaced, at one or a few places."""
    value = deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        paths = list(places(value))
        *above, last = rng.choice(paths) or [None]
        if last is None:
            if rng.random() < 0.2:
                return deepcopy(rng.choice(NASTY))
            continue
        mutate_entry(reduce(getitem, above, value), last, value, paths, rng)
    return value


def mutate_entry(parent: Any, key: Any, value: Any, paths: list[tuple[Any, ...]], rng: random.Random) -> None:
    """Change parent[key] within `value`, whose places are `paths`."""
    how, nasty = rng.randrange(5), deepcopy(rng.choice(NASTY))
    old = parent[key]
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        parent[rng.choice(("type", "", "id", "../x", "_delete_", "0"))] = nasty
    elif how == 1:
        parent.insert(key, rng.choice((old, nasty)))
    elif how == 2 and isinstance(old, int | float) and not isinstance(old, bool):
        parent[key] = rng.choice((old + 1, -old, old * 1000, float(old)))
    elif how == 2 and isinstance(old, str):
        text = bytearray(old, "utf-8") or bytearray(b" ")
        text[rng.randrange(len(text))] = rng.randrange(32, 127)
        parent[key] = text.decode(errors="replace")
    elif how == 3:
        parent[key] = deepcopy(reduce(getitem, rng.choice(paths), value))
    else:
        parent[key] = nasty


def mutated(target: Target, rng: random.Random) -> tuple[bytes, bytes]:
    """A sample, and its mutation."""
    sample = rng.choice(target.samples)
    if rng.random() < 0.6 and target.path.endswith(("json", ".yaml")):
        if target.path.endswith("json"):
            return sample, of_json(mutated_value(json.loads(sample), rng))
        return sample, yaml.safe_dump(mutated_value(yaml.safe_load(sample), rng), sort_keys=False).encode()
    return sample, mutated_bytes(sample, rng)


STARTED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "pty.spawn")

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FuzzingError(Exception):
    """What a reader should not do."""


def watch() -> dict[str, bool]:
    """Have every started program, connection and written file raise FuzzingError while the returned switch is on.

    But `git ls-files`, which says whether a config is of this repository.
    """
    switch = {"on": False}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not switch["on"]:
            return
        asks_git = event == "subprocess.Popen" and list(arguments[1][:2]) == ["git", "ls-files"]
        if event in STARTED and not asks_git:
            raise FuzzingError(f"{event} {arguments!r:.200}")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if writes and arguments[0] != os.devnull:
            raise FuzzingError(f"writes {arguments[0]!r}")

    sys.addaudithook(hook)
    return switch


def hangs(*_: object) -> None:
    raise FuzzingError(f"takes more than {SECONDS} s")


def try_case(target: Target, folder: Path, rng: random.Random, switch: dict[str, bool]) -> str:
    """ "refused" or "accepted"; FuzzingError for anything else."""
    sample, content = mutated(target, rng)
    path = folder / target.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    switch["on"] = True
    try:
        target.read(path, sample)
        return "accepted"
    except (SesamError, DataIssue) as problem:
        assert str(problem), "no message"
        return "refused"
    except FuzzingError:
        raise
    except BaseException:
        raise FuzzingError(traceback.format_exc()) from None
    finally:
        switch["on"] = False
        signal.alarm(0)


def run_cases(
    case: Callable[[int], tuple[Target, random.Random]], numbers: range, folder: Path, at: Any
) -> Counter[str]:
    """Runs in a fork; `at` is the number of the case that runs."""
    switch, counts = watch(), Counter[str]()
    for number in numbers:
        at.value = number
        target, rng = case(number)
        try:
            outcome = try_case(target, folder, rng, switch)
        except FuzzingError as problem:
            outcome = "failed"
            print(f"case {number}, {target.name}: {problem}", file=sys.stderr, flush=True)
        counts[f"{target.name} {outcome}"] += 1
    return counts


def run_in_forks(case: Callable[[int], tuple[Target, random.Random]], cases: int, folder: Path) -> Counter[str]:
    """Outcomes of all cases; a fork that crashes is followed by one for the rest."""
    at, first, counts = Value("l", 0), 0, Counter[str]()
    while first < cases:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            with os.fdopen(writing, "w") as pipe:
                json.dump(run_cases(case, range(first, cases), folder, at), pipe)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            output = pipe.read()
        _, status = os.waitpid(child, 0)
        if status == 0:
            return counts + Counter(json.loads(output))
        target, _ = case(at.value)
        print(f"case {at.value}, {target.name}: the reader crashed ({status})", file=sys.stderr, flush=True)
        counts[f"{target.name} failed"] += 1
        first = at.value + 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a target")
    parser.add_argument("--show", type=int, metavar="CASE", help="print a case's file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        chosen = [target for target in targets(Path(name)) if options.only in (None, target.name)]

        def case(number: int) -> tuple[Target, random.Random]:
            rng = random.Random(f"{options.seed} {number}")
            return rng.choices(chosen, [target.weight for target in chosen])[0], rng

        if options.show is not None:
            sys.stdout.buffer.write(mutated(*case(options.show))[1])
            return
        counts = run_in_forks(case, options.cases, Path(name))
        os.chdir("/")
    for name in sorted({outcome.rsplit(" ", 1)[0] for outcome in counts}):
        print(f"{name:20}", ", ".join(f"{counts[f'{name} {how}']} {how}" for how in ("refused", "accepted", "failed")))
    failures = sum(number for outcome, number in counts.items() if outcome.endswith("failed"))
    print(f"{options.cases} cases in {time.monotonic() - started:.0f} s, {failures} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
