"""Files crafted to run a program, to reach other files or to exhaust memory are refused without effect."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from struct import pack
from zipfile import ZipFile
from zlib import crc32

import numpy as np
import pytest
import torch
from conftest import ROOT, edit_params, write_params
from dataset_factories import THREE, image_names, make_label_map
from mmseg.registry import MODELS
from PIL import Image

from sesam.artifacts.atomic_io import read_json, sha256
from sesam.artifacts.component_records import Component, read_candidates
from sesam.artifacts.image_io import read_label
from sesam.artifacts.manifest import ImageRecord, load_image
from sesam.datasets.annotations.common import LabelSpec
from sesam.datasets.annotations.registry import find_annotations, read_annotation
from sesam.datasets.annotations.scribblesup import Scribbles
from sesam.datasets.data_issues import DataIssue
from sesam.errors import SesamError
from sesam.params import Architecture, load_params
from sesam.presets import load_preset
from sesam.sam.batched_sam import load_meta_sam
from sesam.sam.bundled import build_bundled_sam
from sesam.sam.cache import EmbeddingCache
from sesam.segmentation.backbones import load_pretrained
from sesam.segmentation.evaluation import loss_curve
from sesam.segmentation.network import load_network, network_config, save_network
from sesam.segmentation.zoo import read_config
from tests.robustness.fuzzing import FuzzingError, watch

PARAMS = load_preset(ROOT / "presets/demo.yaml")
NETWORK = PARAMS.network.model_copy(update={"base_channels": 4, "head_channels": 8, "aux_loss_weight": 0.0})
CPU = torch.device("cpu")
ITEM = ImageRecord("a", "a.png", 4, 6, "0" * 64)
CRASHING_CANDIDATES = [{"number": 1, "candidates": [{"predicted_iou": 0.5, "rle": "oooooo" * 9}]}]
CRASHING = {"id": "a", "height": 4, "width": 6, "components": CRASHING_CANDIDATES}
WATCHED = watch()


class Runs:
    """Runs a program when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


class Evaluates:
    def __reduce__(self):
        return eval, ("open('ran', 'w')",)


def trained() -> Path:
    folder = Path("trained")
    save_network(folder, NETWORK, *THREE, MODELS.build(network_config(NETWORK, 3)))
    return folder


def network_json(change: dict) -> None:
    folder = trained()
    value = read_json(folder / "network.json")
    value["network"] |= change.pop("network", {})
    (folder / "network.json").write_text(json.dumps(value | change))
    load_watched(lambda: load_network(folder, CPU))


def weights(write: Callable[[Path], object]) -> None:
    folder = trained()
    write(folder / "model.pth")
    load_watched(lambda: load_network(folder, CPU))


def flip_bit(path: Path) -> None:
    """Of the weights, in spite of their checksum, which torch ignores."""
    content = bytearray(path.read_bytes())
    with ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def sam_checkpoint(value: object) -> None:
    torch.save(value, "sam.pth")
    load_watched(lambda: load_meta_sam(build_bundled_sam, Path("sam.pth")))


def backbone_file() -> None:
    torch.save({"state_dict": Runs()}, "r18.pth")
    backbone = MODELS.build(network_config(NETWORK, 3)).backbone
    load_watched(lambda: load_pretrained(backbone, "r18.pth", sha256(Path("r18.pth"))))


def photograph(path: str) -> None:
    load_watched(lambda: load_image(replace(ITEM, image=path)))


def a_pipe() -> None:
    os.mkfifo("pipe.png")
    photograph("pipe.png")


def a_bomb() -> None:
    """A small PNG whose header claims 40,000 x 40,000 pixels, with the right checksum."""
    Image.fromarray(np.zeros((4, 4), np.uint8)).save("bomb.png")
    content = Path("bomb.png").read_bytes()
    header = content[12:16] + pack(">II", 40_000, 40_000) + content[24:29]
    Path("bomb.png").write_bytes(content[:12] + header + pack(">I", crc32(header)) + content[33:])
    load_watched(lambda: read_label(Path("bomb.png")))


def a_script_as_a_png() -> None:
    Path("a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n(ran) (w) file closefile\nshowpage\n")
    load_watched(lambda: read_label(Path("a.png")))


def text_file(read: Callable[[Path], object], text: str) -> None:
    Path("file").write_text(text)
    load_watched(lambda: read(Path("file")))


def candidates(path: Path) -> object:
    return read_candidates(path, ITEM, [Component(1, 1, "0H")])


def strokes(start: str, tag: str) -> None:
    size = "<size><width>6</width><height>4</height></size>"
    line = f"<polygon><tag>{tag}</tag><point><X>1</X><Y>1</Y></point></polygon>"
    Path("a.xml").write_text(f"{start}<annotation>{size}{line}</annotation>")
    spec = LabelSpec((4, 6), ["a", "b"], make_label_map("voc", 2, []), 3, 2)
    load_watched(lambda: read_annotation(Scribbles(Path("a.xml")), spec))


def clicks_elsewhere() -> None:
    Path("clicks.json").write_text(json.dumps({"../../a": [{"x": 10**30, "y": 1, "cls": 10**30}]}))
    (one,) = find_annotations(Path("clicks.json"), "voc", image_names("a")).values()
    load_watched(lambda: read_annotation(one, LabelSpec((4, 6), ["a", "b"], make_label_map("voc", 2, []), 3, 2)))


def nested_pictures() -> None:
    """Of a task of Label Studio, just less deep than JSON's parser allows."""
    picture = "[" * 900 + '"a.png"' + "]" * 900
    Path("a.json").write_text(f'[{{"data": {{"image": {picture}}}, "annotations": [{{"result": []}}]}}]')
    load_watched(lambda: find_annotations(Path("a.json"), "folder", image_names("a")))


def log(content: str) -> None:
    path = Path("plots/metrics/loss.tsv")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    load_watched(lambda: loss_curve(Path()))


def load_watched(load: Callable[[], object]) -> None:
    WATCHED["on"] = True
    try:
        load()
    finally:
        WATCHED["on"] = False


LAUGHS = '<!DOCTYPE a [<!ENTITY x0 "x">' + "".join(f'<!ENTITY x{k + 1} "{f"&x{k};" * 10}">' for k in range(9)) + "]>"


def network_of_a_config(**network: object) -> None:
    """A trained network's weights beside a network.json that says it is of a config."""
    folder = trained()
    value = read_json(folder / "network.json") | {"network": network}
    (folder / "network.json").write_text(json.dumps(value))
    load_watched(lambda: load_network(folder, CPU))


def network_of_a_file(text: str, name: str = "mine.py", tracked: bool = True) -> None:
    """Of a config in the folder, with the digest that it has if it is read as a config."""
    path = Path(name)
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    values: dict = {}
    exec(text.replace("touch ran", "true"), values)
    parts = {"model": values.get("model"), "optim_wrapper": {}}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    if tracked:
        for command in (["init", "-q"], ["add", "-f", name]):
            subprocess.run(["git", *command], check=True)
    network_of_a_config(config=name, config_sha256=digest)


def link_to_a_config() -> None:
    Path("mine.py").symlink_to("/etc/passwd")
    network_of_a_config(config="mine.py", config_sha256="0" * 64)


ZOO, MASKS = "segformer_mit-b0_8xb2-160k_ade20k-512x512", "mask2former_r50_8xb2-90k_cityscapes-512x1024"
ZOO_SHA256, MASKS_SHA256 = (read_config(Architecture(config=name))[2] for name in (ZOO, MASKS))
PROGRAM = "model = {'type': 'os.system', 'command': 'touch ran'}"
HUGE = {"backbone": "vit_7b_patch16_dinov3", "base_channels": None, "head": "upernet", "head_channels": 4096}  # 28 GB
CRAFTED = {
    "a program as a config": lambda: network_of_a_config(config={"type": "os.system", "command": "touch ran"}),
    "a config and what to import": lambda: network_of_a_config(config=ZOO, custom_imports={"imports": ["antigravity"]}),
    "a config without digest": lambda: network_of_a_config(config=ZOO),
    "a config of another digest": lambda: network_of_a_config(config=ZOO, config_sha256="0" * 64),
    "weights of another network than the config's": lambda: network_of_a_config(config=ZOO, config_sha256=ZOO_SHA256),
    "a config outside": lambda: network_of_a_config(config="../../mine.py", config_sha256="0" * 64),
    "a config anywhere": lambda: network_of_a_config(config="/etc/mine.py", config_sha256="0" * 64),
    "a config from the web": lambda: network_of_a_config(config="https://a.b/mine.py", config_sha256="0" * 64),
    "a config behind a link": link_to_a_config,
    "a config that came with the network": lambda: network_of_a_file(PROGRAM, "trained/mine.py", tracked=False),
    "a tracked config of a program": lambda: network_of_a_file(PROGRAM),
    "a tracked program as a config": lambda: network_of_a_file("import os\nos.system('touch ran')\nmodel = None"),
    "a network of masks": lambda: network_of_a_config(config=MASKS, config_sha256=MASKS_SHA256),
    "a program as a network": lambda: network_json({"model": {"type": "os.system", "command": "touch ran"}}),
    "a program as a backbone": lambda: network_json({"network": {"backbone": {"type": "os.system"}}}),
    "imports of a network's config": lambda: network_json({"custom_imports": {"imports": ["antigravity"]}}),
    "a network of a hub": lambda: network_json({"network": {"backbone": "hf-hub:a/model", "base_channels": None}}),
    "a network larger than memory": lambda: network_json({"network": {"base_channels": 4096, "head_channels": 4096}}),
    "a transformer larger than memory": lambda: network_json({"network": HUGE}),
    "a program as a head": lambda: network_json({"network": {"head": {"type": "os.system", "command": "touch ran"}}}),
    "a head of mmsegmentation's by its type": lambda: network_json({"network": {"head": "Mask2FormerHead"}}),
    "a pickle as weights": lambda: weights(lambda path: path.write_bytes(pickle.dumps(Runs()))),
    "a program in the weights": lambda: weights(lambda path: torch.save({"backbone": Runs()}, path)),
    "an expression in the weights": lambda: weights(lambda path: torch.save([Evaluates()], path)),
    "a script as weights": lambda: weights(lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))),
    "weights with a wrong checksum": lambda: weights(flip_bit),
    "a program in SAM's weights": lambda: sam_checkpoint({"image_encoder": Runs()}),
    "a program in a backbone's weights": backbone_file,
    "a secret as an image": lambda: photograph("/etc/passwd"),
    "a device as an image": lambda: photograph("/dev/zero"),
    "a pipe as an image": a_pipe,
    "an image larger than memory": a_bomb,
    "a script as an image": a_script_as_a_png,
    "run lengths that crash pycocotools": lambda: text_file(candidates, json.dumps(CRASHING)),
    "deeply nested JSON": lambda: text_file(read_json, "[" * 200_000),
    "deeply nested pictures": nested_pictures,
    "a program in the params": lambda: text_file(load_params, "seed: !!python/object/apply:os.system [touch ran]"),
    "params larger than memory": lambda: text_file(load_params, "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]"),
    "a file named by XML": lambda: strokes('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "&x;"),
    "XML larger than memory": lambda: strokes(LAUGHS, "&x9;"),
    "clicks of huge numbers": clicks_elsewhere,
    "a program in a training log": lambda: log("step\tloss\n__import__('os')\t1\n"),
}


@pytest.mark.parametrize("crafted", CRAFTED.values(), ids=CRAFTED)
def test_crafted_files_are_refused_and_run_nothing(
    crafted: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "one/two/three"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    with pytest.raises((SesamError, DataIssue)):
        crafted()
    assert not list(tmp_path.rglob("ran"))
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["two"]


def test_a_crafted_embedding_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = EmbeddingCache("e" * 16, Path("embeddings"))
    Path("embeddings", "e" * 16).mkdir(parents=True)
    crafted = np.array([Runs()], dtype=object)
    np.savez(Path("embeddings", "e" * 16, f"{ITEM.sha256}.npz"), embedding=crafted, allow_pickle=True)
    load_watched(lambda: cache.load(ITEM))
    assert cache.load(ITEM) is None and not Path("ran").exists()


def test_the_watch_detects_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above rely on it: with pickle.loads these run."""
    monkeypatch.chdir(tmp_path)
    for crafted in (Runs(), Evaluates()):
        content = pickle.dumps(crafted)
        with pytest.raises(FuzzingError):
            load_watched(lambda content=content: pickle.loads(content))


@pytest.mark.long
def test_a_few_fuzzed_files() -> None:
    """`make fuzzing` tries thousands. In a separate process, because cases run in forks."""
    command = [sys.executable, "-m", "tests.robustness.fuzzing", "--cases", "125", "--seed", "3"]
    env = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("s, 0 failed\n")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("demo", {"-demo": {"train": 1, "val": 1, "seed": 1}}, r"demo\.-demo"),
        ("dataset__classes", ["road", "s\ud800y"], "ud800y' has a control"),
        ("dataset__classes", ["road", "s\x1b[31my"], "x1b.* has a control"),
        ("dataset__map", {"a\nb": None}, "nb' has a control"),
        ("dataset__root", "data/raw\0", "dataset: 'data/raw.*x00' has a control"),
    ],
    ids=["a dash", "half a character", "an escape sequence", "a line break", "NUL"],
)
def test_names_in_params_are_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    edit_params(tmp_path, **{key: value})
    with pytest.raises(SesamError, match=message):
        load_params()


def test_params_that_are_no_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("params.yaml")
    with pytest.raises(SesamError, match=r"params\.yaml is not a regular file"):
        load_params()
