"""Files of a megabyte take no gigabyte and no endless time, whatever they claim, and nothing but files is read."""

import base64
import io
import json
import os
import pickle
import resource
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from dataset_factories import THREE, image_names, make_label_map
from mmseg.registry import MODELS
from PIL import Image

from sesam.artifacts.archives import read_packed
from sesam.artifacts.atomic_io import read_json, sha256
from sesam.artifacts.dvc_outputs import parents_of, read_listing
from sesam.artifacts.image_io import read_image
from sesam.artifacts.manifest import ImageRecord, Manifest
from sesam.datasets import annotation_shapes
from sesam.datasets.annotation_shapes import Shape
from sesam.datasets.annotations.common import LabelSpec
from sesam.datasets.annotations.registry import find_annotations, read_annotation
from sesam.datasets.data_issues import DataIssue
from sesam.datasets.layouts import list_files, voc
from sesam.errors import SesamError
from sesam.presets import load_preset
from sesam.sam.batched_sam import load_meta_sam
from sesam.sam.bundled import build_bundled_sam
from sesam.sam.cache import EmbeddingCache
from sesam.segmentation.backbones import load_pretrained
from sesam.segmentation.network import load_network, network_config, save_network
from sesam.yaml_io import read_yaml

GIGABYTE, MEGABYTE, SECONDS = 10**9, 10**6, 60
SIZE = (3000, 4000)
RECORD = ImageRecord("a", "a.png", *SIZE, "0" * 64)
CPU = torch.device("cpu")


def memory_of(call: Callable[[], object]) -> int:
    """Bytes that a call takes at most, in a fork that may have two gigabytes; SesamError and DataIssue are fine."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2 * GIGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        before, code = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
        try:
            call()
        except (SesamError, DataIssue) as problem:
            code = 0 if len(str(problem)) < 2000 else 2
        except BaseException as problem:
            os.write(writing, repr(problem)[:200].encode())
            code = 1
        os.write(writing, f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}".encode())
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        output = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"status {status}: {output}"
    return int(output.split()[-1]) * 1024


def repeated(start: str, entry: str, end: str) -> str:
    """Nearly a megabyte."""
    return start + ",".join([entry] * ((MEGABYTE - len(start + end)) // (len(entry) + 1))) + end


def annotated(name: str, text: str) -> None:
    Path(name).write_text(text)
    spec = LabelSpec(SIZE, ["a", "b"], make_label_map("folder", 2), 3, 2)
    for annotation in find_annotations(Path(name), "folder", image_names("a")).values():
        read_annotation(annotation, spec)


def coco(shape: dict) -> str:
    document = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "a"}]}
    return json.dumps(document | {"annotations": [{"image_id": 1, "category_id": 1, **shape}]})


def zigzag(count: int, width: float, height: float) -> list[float]:
    return [value for k in range(count) for value in (width * (k % 2), height * (k // 2 % 2) + k % 7)]


def cvat(elements: str) -> str:
    return f'<annotations><image name="a.png" width="4000" height="3000">{elements}</image></annotations>'


def labelme(points: list) -> str:
    shape = {"label": "a", "points": points, "shape_type": "polygon"}
    return json.dumps({"shapes": [shape], "imagePath": "a.png", "imageHeight": 3000, "imageWidth": 4000})


def labelme_bomb() -> str:
    file = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(file, "PNG")
    mask = {"label": "a", "points": [[0, 0]], "shape_type": "mask", "mask": base64.b64encode(file.getvalue()).decode()}
    return json.dumps({"shapes": [mask] * 9, "imagePath": "a.png"})


def pixels(mode: str, side: int) -> Path:
    Image.new(mode, (side, side)).save("a.png")
    assert Path("a.png").stat().st_size <= MEGABYTE
    return Path("a.png")


def deflate(path: Path) -> None:
    """Compress a file of weights, and add a hundred megabytes of nothing."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("archive/data/x", bytes(10**8))


def trained() -> Path:
    network = load_preset(ROOT / "presets/demo.yaml").network
    network = network.model_copy(update={"base_channels": 4, "head_channels": 8, "aux_loss_weight": 0.0})
    save_network(Path("trained"), network, *THREE, MODELS.build(network_config(network, 3)))
    return Path("trained")


def huge_network() -> Path:
    """A network of gigabytes, whose weights are views of one number each."""
    folder, path = trained(), Path("trained/network.json")
    document = read_json(path)
    document["network"] |= {"base_channels": 1024, "head_channels": 1024}
    path.write_text(json.dumps(document))
    with torch.device("meta"):
        network = load_preset(ROOT / "presets/demo.yaml").network.model_copy(update=document["network"])
        shapes = MODELS.build(network_config(network, 3)).state_dict()
    assert sum(value.numel() for value in shapes.values()) > GIGABYTE // 4
    views = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in shapes.items()}
    torch.save({"state_dict": views}, folder / "model.pth")
    return folder


def embedding() -> None:
    path = EmbeddingCache("e" * 16, Path())._path(RECORD)
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("embedding.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": (10**8,)})
        for _ in range(200):
            file.write(bytes(10**6))
    assert path.stat().st_size < 2 * MEGABYTE
    assert EmbeddingCache("e" * 16, Path()).load(RECORD) is None


def deep_ids() -> None:
    replace_id = json.dumps([{"id": "a/" * 400_000 + "a", "image": "a", "height": 4, "width": 6, "sha256": "0" * 64}])
    Manifest("x", ("a", "b"), ((0, 0, 0),) * 2, (), ()).save(Path("data"))
    Path("data/train.json").write_text(replace_id)
    Manifest.load(Path("data"))


def deep_listing() -> None:
    content = json.dumps([{"md5": "0" * 32, "relpath": "a/" * 100_000 + "a"}]).encode()
    try:
        parents_of(read_listing(content))
    except ValueError as problem:
        assert "long" in str(problem)
    else:
        raise AssertionError("accepted")


WRONG = json.dumps({"image_id": [], "category_id": [], "segmentation": [[[]]], "bbox": [[]]})
RLE = {"size": [65_536, 65_536], "counts": [65_536**2]}
CRAFTED: dict[str, Callable[[], object]] = {
    "a polygon to and fro": lambda: annotated("a.json", coco({"segmentation": [zigzag(1000, 1e7, 1e7)]})),
    "a longer one in the image": lambda: annotated("a.json", coco({"segmentation": [zigzag(12_000, 4000, 3000)]})),
    "labelme's to and fro": lambda: annotated("a.json", labelme(np.reshape(zigzag(1000, 1e7, 1e7), (-1, 2)).tolist())),
    "many ellipses": lambda: annotated(
        "a.xml", cvat('<ellipse label="c" cx="1" cy="1" rx="9e6" ry="9e6"/>' * (MEGABYTE // 55))
    ),
    "run lengths of another size": lambda: annotated("a.json", coco({"segmentation": RLE})),
    "large masks in labelme's JSON": lambda: annotated("a.json", labelme_bomb()),
    "many wrong entries": lambda: annotated(
        "a.json", repeated('{"images":[],"categories":[],"annotations":[', WRONG, "]}")
    ),
    "empty lists": lambda: annotated("a.json", repeated("[", "[]", "]")),
    "empty elements": lambda: annotated("a.xml", cvat("<a/>" * (MEGABYTE // 5))),
    "a photograph of one color": lambda: read_image(pixels("RGB", 8300)),
    "a gray one": lambda: read_image(pixels("L", 10_000)),
    "weights without memory": lambda: load_network(huge_network(), CPU),
    "an embedding of a zip bomb": embedding,
    "an id of many folders": deep_ids,
    "a listing of many folders": deep_listing,
    "YAML of empty lists": lambda: read_yaml(_written("a.yaml", repeated("[", "[]", "]")[:250_001] + "]")),
    "a list of empty lines": lambda: voc(_voc_list("\n" * MEGABYTE), "train"),
    "a list of one line": lambda: voc(_voc_list("a/" * (MEGABYTE // 2)), "train"),
}


def _written(name: str, text: str) -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return Path(name)


def _voc_list(text: str) -> Path:
    return _written("ImageSets/Segmentation/train.txt", text).parents[2]


@pytest.mark.long
@pytest.mark.parametrize("crafted", CRAFTED.values(), ids=CRAFTED)
def test_a_megabyte_takes_less_than_a_gigabyte(
    crafted: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert memory_of(crafted) < GIGABYTE


READERS: dict[str, Callable[[Path], object]] = {
    "a.png": read_image,
    "a.json": read_json,
    "a.yaml": read_yaml,
    "a.xml": lambda path: annotated_as_is(path),
    "a.pth": sha256,
    "files-0000.zip": lambda path: read_packed(path.with_name("b.json")),
    "ImageSets/Segmentation/train.txt": lambda path: voc(Path(), "train"),
}


def annotated_as_is(path: Path) -> None:
    spec = LabelSpec(SIZE, ["a", "b"], make_label_map("folder", 2), 3, 2)
    for annotation in find_annotations(path, "voc", image_names("a")).values():
        read_annotation(annotation, spec)


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
@pytest.mark.parametrize("name", READERS)
def test_only_files_of_a_plausible_size_are_read(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            os.truncate(file.fileno(), 300 * GIGABYTE)

    def read() -> None:
        with pytest.raises((SesamError, DataIssue), match=r"not a regular file|bytes|cannot be read"):
            READERS[name](path)

    assert memory_of(read) < GIGABYTE // 10


def test_links_are_walked_once_and_not_out_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here/data"
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    for name in "xy":
        (folder / name).symlink_to(folder)
    assert list_files(folder) == [folder / "a.png"]
    monkeypatch.chdir(tmp_path / "here")
    for target in ("/", tmp_path):
        (folder / "z").symlink_to(target)
        started = time.monotonic()
        with pytest.raises(SesamError, match=r"data/z is a link to .*, which holds this folder"):
            list_files(folder)
        assert time.monotonic() - started < 5
        (folder / "z").unlink()


class Asks:
    def __reduce__(self):
        return bytearray, (3 * GIGABYTE // 2,)


def asking(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Asks()}, 2))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("crafted", [asking, deflate, lambda path: path.write_bytes(b"")])
def test_weights_cannot_ask_for_memory(
    crafted: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = trained() / "model.pth"
    crafted(path)
    loaders = [lambda: load_network(path.parent, CPU), lambda: load_meta_sam(build_bundled_sam, path)]
    for load in (*loaders, lambda: load_pretrained(torch.nn.Linear(2, 2), str(path))):

        def refuse(load: Callable[[], object] = load) -> None:
            with pytest.raises(SesamError, match=r"bytearray|compressed|empty|No such file|not a zip"):
                load()

        assert memory_of(refuse) < GIGABYTE // 10


def test_an_outline_in_parts_has_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for count in (3, 5, 40):
        outline = rng.uniform(-20, 80, (count, 2)).round(rng.integers(3))
        whole = annotation_shapes._fill(outline, (50, 60), np.s_[0:50, 0:60])
        with monkeypatch.context() as patched:
            patched.setattr(annotation_shapes, "PART", 7)
            assert np.array_equal(annotation_shapes._fill(outline, (50, 60), np.s_[0:50, 0:60]), whole)


def test_a_polygon_is_filled_in_its_window_as_in_the_whole_image() -> None:
    rng, whole, different = np.random.default_rng(1), np.s_[0:50, 0:60], 0
    for _ in range(600):
        points = rng.uniform(-20, 80, (rng.integers(3, 12), 2)).round(rng.integers(3))
        window, mask = Shape("a", "polygon", points).draw((50, 60), 1, 1)
        found = np.zeros((50, 60), bool)
        found[window] = mask
        different += np.count_nonzero(found != annotation_shapes._fill(points, (50, 60), whole))
    assert different <= 3  # where an edge goes through the middle of a pixel's fifth


def test_a_corner_far_outside_keeps_the_edges_in_the_image() -> None:
    """A triangle whose right corner is a million pixels away: its edges are nearly level."""
    mask = annotation_shapes._fill(np.array([[0, 10], [1e6, 20], [0, 30.0]]), (40, 60), np.s_[0:40, 0:60])
    assert mask[11:29].all() and not mask[:9].any() and not mask[31:].any()
