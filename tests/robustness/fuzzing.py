"""Fuzzing: every file that comes from a data set or a colleague, damaged in every way, is read rightly or refused.

    make fuzzing                              # 20,000 cases, some minutes
    python -m tests.robustness.fuzzing --cases 500 --seed 1

A case is a good file, mutated: bits, blocks and lengths of any file, values and keys of JSON and YAML. It passes if the
reader raises SesamError, or returns what stands up to the target's own check. A traceback, a hang, a crash, a started
program and a file written are all found. Cases run in a fork, so that a crash is found too; --show CASE prints one.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing import Value
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from sesam.artifacts.archives import pack
from sesam.artifacts.atomic_io import read_bytes
from sesam.artifacts.component_records import (
    Component,
    Outcome,
    read_candidates,
    read_prompts,
    read_selected,
    write_prompts,
)
from sesam.artifacts.label_png import read_image, read_label
from sesam.artifacts.manifest import Dataset, ImageRecord
from sesam.artifacts.metrics_schema import read_label_metrics, read_network_metrics
from sesam.datasets.annotations.reading import Annotation, find_annotations, read_annotation
from sesam.datasets.data_issues import DataIssue
from sesam.datasets.label_maps import label_map_for, read_values
from sesam.errors import SesamError
from sesam.geometry.regions import connected_regions
from sesam.geometry.rle import mask_to_rle
from sesam.labels import IGNORE_INDEX
from sesam.merging import merge
from sesam.params import Params, load_params
from sesam.presets import load_preset
from sesam.prompting import image_prompts
from sesam.reporting.card import readme
from sesam.reporting.card_data import CardData
from sesam.reporting.charts import as_html, charts
from sesam.reporting.croissant import croissant
from sesam.reporting.label_quality import LabelQuality
from sesam.reporting.label_quality import label_metrics as labels_report
from sesam.reporting.tables import summary, tables
from sesam.sam.cache import EmbeddingCache
from sesam.sam.candidates import component_prompts
from sesam.scores import confusion_matrix
from sesam.segmentation.evaluation import loss_curve
from sesam.segmentation.evaluation import network_metrics as network_report
from sesam.segmentation.network import load_network, network_config, save_network
from sesam.selection import select_candidate, weak_rles

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # for what tests make
PARAMS = load_preset(ROOT / "presets/demo.yaml")
SHAPE = (24, 32)
ITEM = ImageRecord("a/b", "a/b.png", *SHAPE, "0" * 64)
NAMES = ("left", "right", "other")
SECONDS = 10  # a reader that takes longer hangs
NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 255, 256, 300, 10**6, 2**31, 2**63, 2**64, -(2**63), 1e308, -0.5, 0.5, math.nan,
    math.inf, "", "a", "0", "..", "../../x", "/etc/passwd", "~/x", "\0", "\u202e", "x" * 10_000, "os.system",
    [], {}, [[]], [None], {"": None}, [0] * 1000, {"type": "os.system", "command": "touch ran"},
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A kind of file. read: what is called with the file's path, and checks what it returns, if that is no error."""

    name: str
    path: str
    samples: tuple[bytes, ...]
    read: Callable[[Path, bytes], None]
    weight: float = 1.0  # its share of the cases


# --- the files and their readers ----------------------------------------------------------------------------------


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
    """PNG's own check sums tell every damage of the pixels: what is accepted is what was written."""
    values = read_label(path)
    assert values.dtype == np.uint8 and values.ndim == 2
    if path.read_bytes()[8:33] == original[8:33]:  # of a size and form of its own, it is another picture
        assert np.array_equal(values, np.array(Image.open(io.BytesIO(original)))), "another label"


def image(path: Path, original: bytes) -> None:
    found = read_image(path)
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3


def annotated(path: Path, original: bytes) -> None:
    meaning = label_map_for("folder", len(NAMES), [9])
    read_values(path, meaning)
    drawn = read_annotation(Annotation(path), SHAPE, NAMES, meaning, 3, 2)
    assert drawn.shape == SHAPE and set(np.unique(drawn)) <= {0, 1, 2, IGNORE_INDEX}


def clicks(path: Path, original: bytes) -> None:
    meaning = label_map_for("voc", len(NAMES), [])
    for one in find_annotations(path, "voc", {"a", "b"}).values():
        drawn = read_annotation(one, SHAPE, NAMES, meaning, 3, 2)
        assert drawn.shape == SHAPE and set(np.unique(drawn)) <= {0, 1, 2, IGNORE_INDEX}


def exported(path: Path, original: bytes) -> None:
    meaning = label_map_for("folder", len(NAMES), [9])
    for one in find_annotations(path, "folder", {"7"}).values():
        drawn = read_annotation(one, (40, 60), ("left", "right", "dot"), meaning, 3, 1)
        assert drawn.shape == (40, 60) and set(np.unique(drawn)) <= {0, 1, 2, IGNORE_INDEX}


def exports() -> Iterator[tuple[str, bytes]]:
    """What annotation tools export, as tests/test_tools.py has it."""
    from test_tools import FILES

    for name, make in FILES.items():
        content = make()
        yield name, content.encode() if isinstance(content, str) else of_json(content)


def manifest(path: Path, original: bytes) -> None:
    data = Dataset.load(path.parent)
    here = Path.cwd().resolve()
    for item in (*data.train, *data.val):
        for name in (f"{item.id}.png", f"{item.id}.json", f"{item.sha256}.npz"):
            assert (here / "artifact" / name).resolve().is_relative_to(here / "artifact"), item.id
        assert np.zeros((item.height, 0)).shape[0] > 0 and item.width > 0 and isinstance(item.image, str)
    assert 2 <= len(data.classes) <= 255 and all(isinstance(name, str) for name in data.classes)
    assert np.asarray(data.palette, np.uint8).shape[1:] in ((3,), ())


def prompts(path: Path, original: bytes) -> None:
    for prompt in component_prompts(read_prompts(path, ITEM)):
        if prompt.points is not None:
            assert prompt.points.shape[1] == 2
            assert ((prompt.points >= 0) & (prompt.points < [SHAPE[1], SHAPE[0]])).all()


def masks(path: Path, original: bytes) -> None:
    component = Component(1, 1, mask_to_rle(LABELS == 1))
    (offered,) = read_candidates(path, ITEM, [component]).values()
    select_candidate(component, offered, weak_rles(WEAK), PARAMS.selection)


def selected(path: Path, original: bytes) -> None:
    found, sources = merge(WEAK, np.full(SHAPE, IGNORE_INDEX, np.uint8), read_selected(path, ITEM, len(NAMES)))
    assert set(np.unique(found)) <= {0, 1, 2, IGNORE_INDEX} and set(np.unique(sources)) <= {0, 1, 2, 3}
    assert np.array_equal(found[WEAK != IGNORE_INDEX], WEAK[WEAK != IGNORE_INDEX])


def params(path: Path, original: bytes) -> None:
    found: Params = load_params(path)
    assert all(math.isfinite(one) for one in numbers(found.model_dump()))


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield value


def network(path: Path, original: bytes) -> None:
    model = load_network(path.parent, torch.device("cpu"))
    assert type(model).__module__.startswith("mmseg.")
    if path.name == "model.pth":
        written = torch.load(io.BytesIO(original), weights_only=True)["state_dict"]
        assert all(torch.equal(value, written[key]) for key, value in model.state_dict().items()), "other weights"


def embedding(path: Path, original: bytes) -> None:
    found = EmbeddingCache("e" * 16, path.parent.parent).load(ITEM)
    with np.load(io.BytesIO(original)) as archive:
        assert found is None or np.array_equal(found.numpy(), archive["embedding"]), "another embedding"


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


def network_judged(path: Path, original: bytes) -> None:
    drawn(read_network_metrics(path, NAMES), JUDGED)


def labels_judged(path: Path, original: bytes) -> None:
    found = read_label_metrics(path, NAMES)
    drawn(NETWORK_JUDGED, found)
    data = Dataset("x", NAMES, ((0, 0, 0),) * 3, (ITEM,), ())
    facts = CardData(data, "r1", PARAMS, found, "", "")
    assert readme(facts) and croissant(facts)


def drawn(network: dict[str, Any], labels: dict[str, Any]) -> None:
    """What `summarize` and `label_metrics` make of them."""
    made = tables({"r1": network}, {"r1": labels}, NAMES)
    assert all(as_html(chart, "a") for chart in charts(made, 1.0, {"r1": network["mIoU"]}))
    summary({"r1": network}, {"r1": labels}, None, None)


def judged() -> tuple[dict[str, Any], dict[str, Any]]:
    """What `evaluate` finds of a network, and `evaluate_labels` of a round."""
    matrix = confusion_matrix(LABELS, WEAK, len(NAMES))
    matrices = dict.fromkeys(("weak", "predictions", "sam", "merged"), matrix)
    outcomes = Counter({(1, Outcome.KEPT): 2, (2, Outcome.LOW_COVERAGE): 1})
    found = LabelQuality(matrices, outcomes, Counter(correct=3), np.array([1, 2, 3, 4]), [], [])
    return network_report(matrix, NAMES, [[10, 1.5], [20, 0.5]]), labels_report(found, NAMES)


NETWORK_JUDGED, JUDGED = judged()


def targets(folder: Path) -> list[Target]:
    """Every kind of file with its samples, and around each what its reader needs beside it."""
    prompted = image_prompts(
        WEAK, np.full(SHAPE, IGNORE_INDEX, np.uint8), np.zeros(SHAPE, np.uint8), PARAMS, ("r1", "a")
    )
    write_prompts(folder / "points.json", ITEM, "points", prompted)
    size = {"id": ITEM.id, "height": SHAPE[0], "width": SHAPE[1]}
    rle = mask_to_rle(LABELS == 1)
    item = {"id": "a/b", "image": "a/b.png", "height": 24, "width": 32, "sha256": "0" * 64, "fine": True}
    classes = {
        "name": "x",
        "classes": NAMES,
        "palette": [[0, 0, 0], [9, 9, 9], [7, 7, 7]],
        "format": "folder",
        "ignore_values": [9],
    }
    for name, value in (("classes", classes), ("train", [item]), ("val", [])):
        for at in ("manifest", "classes"):
            (folder / at).mkdir(exist_ok=True)
            (folder / at / f"{name}.json").write_bytes(of_json(value))
    strokes = "".join(
        f"<polygon><tag>{name}</tag><point><X>3</X><Y>{y}</Y></point><point><X>20</X><Y>9</Y></point></polygon>"
        for y, name in enumerate(NAMES)
    )
    xml = f"<annotation><size><width>32</width><height>24</height></size>{strokes}</annotation>".encode()
    small = PARAMS.network.model_copy(update={"base_channels": 4, "head_channels": 8, "aux_loss_weight": 0.0})
    from dataset_factories import THREE
    from mmseg.registry import MODELS

    torch.manual_seed(0)
    save_network(folder / "trained", small, *THREE, MODELS.build(network_config(small, 3)))
    content = {name: (folder / "trained" / name).read_bytes() for name in ("network.json", "model.pth")}
    for at in ("network", "weights"):
        (folder / at).mkdir()
        for name, value in content.items():
            (folder / at / name).write_bytes(value)
    array = io.BytesIO()
    np.savez(array, embedding=np.zeros((4, 8, 8), np.float16))
    photo = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(photo).save(jpeg, "JPEG")
    presets = tuple(path.read_bytes() for path in sorted((ROOT / "presets").glob("*.yaml")))
    found = [{"number": n, "class": 1, "candidate": 0, "iou": 0.5, "rle": rle, "outcome": "kept"} for n in (1, 2)]
    offered = [{"number": 1, "candidates": [{"iou": 0.5, "rle": rle}] * 3}]
    regions = [
        {"number": n, "class": k, "rle": region.rle(SHAPE)}
        for n, (k, region) in enumerate(connected_regions(LABELS, 8, 1), 1)
    ]
    return [
        Target("label", "label.png", (png(LABELS), png(LABELS, "P")), label, 2),
        Target("image", "photo.png", (png(photo), jpeg.getvalue(), png(LABELS)), image, 2),
        Target("annotation", "drawn.png", (png(WEAK), png(np.dstack([WEAK] * 3))), annotated),
        Target("strokes", "strokes.xml", (xml,), annotated),
        Target("clicks", "clicks.json", (of_json({"a": [{"x": 1, "y": 2, "cls": 0}], "b": []}),), clicks),
        *(Target(f"of {name.split('.')[0]}", name, (content,), exported) for name, content in exports()),
        Target("images", "manifest/train.json", (of_json([item, item | {"id": "c"}]),), manifest, 2),
        Target("classes", "classes/classes.json", (of_json(classes),), manifest),
        Target("prompts", "prompts.json", ((folder / "points.json").read_bytes(),
               of_json(size | {"prompt": "mask", "components": regions})), prompts, 2),
        Target("masks", "masks.json", (of_json(size | {"components": offered}),), masks, 2),
        Target("selected", "selected.json", (of_json(size | {"components": found}),), selected, 2),
        Target("params", "params.yaml", presets, params, 2),
        Target("network", "network/network.json", (content["network.json"],), network, 0.3),
        Target("weights", "weights/model.pth", (content["model.pth"],), network, 0.3),
        Target("archive", "archive/files-0000.zip", (packed(folder),), archive),
        Target("embedding", f"{'e' * 16}/{'0' * 64}.npz", (array.getvalue(),), embedding),
        Target("judged", "judged.json", (of_json(NETWORK_JUDGED),), network_judged),
        Target("labels judged", "labels_judged.json", (of_json(JUDGED),), labels_judged),
        Target("log", "log/plots/metrics/loss.tsv", (b"step\tloss\n10\t1.5\n20\t0.5\n",), log),
    ]  # fmt: skip


# --- mutations ----------------------------------------------------------------------------------------------------


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 16, 100))
        how = rng.randrange(7)
        if how == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif how == 1:
            del data[at : at + length]
        elif how == 2:
            data[at:at] = rng.randbytes(length)
        elif how == 3:
            del data[at:]
        elif how == 4:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + length]
        elif how == 5:
            data[at : at + length] = bytes([rng.choice((0, 255, 127, 128))]) * length
        else:
            data[at : at + 8] = rng.choice(
                (b"0", b"-1", b"99999999", b"\xff\xff\xff\xff", b"null", b"1e999", b"\n", b"[")
            )
    return bytes(data)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to every value in nested lists and mappings."""
    yield above
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(one, (*above, key))


def mutated_value(value: Any, rng: random.Random) -> Any:
    """A value changed, removed, added, doubled or exchanged, at one or a few places."""
    value = deepcopy(value)

    def nasty() -> Any:
        return deepcopy(rng.choice(NASTY))

    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        every = list(places(value))
        *above, last = rng.choice(every) or [None]
        if last is None:
            if rng.random() < 0.2:
                return nasty()
            continue
        holder = value
        for key in above:
            holder = holder[key]
        how = rng.randrange(5)
        if how == 0:
            del holder[last]
        elif how == 1 and isinstance(holder, dict):
            holder[rng.choice(("type", "", "id", "../x", "_delete_", "0"))] = nasty()
        elif how == 1:
            holder.insert(last, rng.choice((holder[last], nasty())))
        elif how == 2 and isinstance(holder[last], int | float) and not isinstance(holder[last], bool):
            holder[last] = rng.choice((holder[last] + 1, -holder[last], holder[last] * 1000, float(holder[last])))
        elif how == 2 and isinstance(holder[last], str):
            text = bytearray(holder[last], "utf-8") or bytearray(b" ")
            text[rng.randrange(len(text))] = rng.randrange(32, 127)
            holder[last] = text.decode(errors="replace")
        elif how == 3:
            other = value
            for key in rng.choice(every):
                if not isinstance(other, dict | list) or (
                    key not in other if isinstance(other, dict) else key >= len(other)
                ):
                    break
                other = other[key]
            holder[last] = deepcopy(other)
        else:
            holder[last] = nasty()
    return value


def mutated(target: Target, rng: random.Random) -> tuple[bytes, bytes]:
    """A sample and what became of it."""
    sample = rng.choice(target.samples)
    if rng.random() < 0.6 and target.path.endswith((".json", ".yaml")):
        if target.path.endswith(".json"):
            return sample, of_json(mutated_value(json.loads(sample), rng))
        return sample, yaml.safe_dump(mutated_value(yaml.safe_load(sample), rng), sort_keys=False).encode()
    return sample, mutated_bytes(sample, rng)


# --- running ------------------------------------------------------------------------------------------------------

STARTED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "pty.spawn")

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Found(Exception):
    """What got through."""


def watch() -> dict[str, bool]:
    """Have every started program, connection and written file raise Found while the returned switch is on."""
    switch = {"on": False}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not switch["on"]:
            return
        if event in STARTED:
            raise Found(f"{event} {arguments!r:.200}")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if writes and arguments[0] != os.devnull:
            raise Found(f"writes {arguments[0]!r}")

    sys.addaudithook(hook)
    return switch


def try_case(target: Target, folder: Path, rng: random.Random, switch: dict[str, bool]) -> str:
    """ "refused" or "accepted"; Found for anything else."""
    sample, content = mutated(target, rng)
    path = folder / target.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

    def hangs(*_: object) -> None:
        raise Found(f"takes more than {SECONDS} s")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    switch["on"] = True
    try:
        target.read(path, sample)
        return "accepted"
    except (SesamError, DataIssue) as problem:
        assert str(problem), "no message"
        return "refused"
    except Found:
        raise
    except BaseException:
        raise Found(traceback.format_exc()) from None
    finally:
        switch["on"] = False
        signal.alarm(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a target")
    parser.add_argument("--show", type=int, metavar="CASE", help="print what a case is made of")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        every = targets(Path(name))
        every = [one for one in every if options.only in (None, one.name)]

        def case(number: int) -> tuple[Target, random.Random]:
            rng = random.Random(f"{options.seed} {number}")
            return rng.choices(every, [one.weight for one in every])[0], rng

        if options.show is not None:
            sys.stdout.buffer.write(mutated(*case(options.show))[1])
            return
        started, counts, wrong, first = time.monotonic(), Counter[str](), 0, 0
        at = Value("l", 0)
        while first < options.cases:
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                switch, mine = watch(), Counter[str]()
                with os.fdopen(writing, "w") as pipe:
                    for number in range(first, options.cases):
                        at.value = number
                        target, rng = case(number)
                        try:
                            outcome = try_case(target, Path(name), rng, switch)
                        except Found as problem:
                            outcome = "found"
                            print(f"case {number}, {target.name}: {problem}", file=sys.stderr, flush=True)
                        mine[f"{target.name} {outcome}"] += 1
                    json.dump(mine, pipe)
                os._exit(0)
            os.close(writing)
            with os.fdopen(reading) as pipe:
                said = pipe.read()
            _, status = os.waitpid(child, 0)
            if status == 0:
                counts.update(json.loads(said))
                break
            target, _ = case(at.value)
            print(f"case {at.value}, {target.name}: the reader crashed ({status})", file=sys.stderr, flush=True)
            wrong += 1
            first = at.value + 1
        os.chdir("/")
    wrong += sum(number for outcome, number in counts.items() if outcome.endswith("found"))
    for name in sorted({outcome.rsplit(" ", 1)[0] for outcome in counts}):
        print(f"{name:12}", ", ".join(f"{counts[f'{name} {how}']} {how}" for how in ("refused", "accepted", "found")))
    print(f"{options.cases} cases in {time.monotonic() - started:.0f} s, {wrong} got through")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
