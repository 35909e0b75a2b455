"""Networks of mmsegmentation's configs: `network.config` is a name in its zoo, or a file in this repository.

The zoo's files come with the installed package, which is code as ours is. A file of the repository is read as literals
and never run, but it names types to build: git must track it, so that it is one that was committed here.
"""

import ast
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import mmseg
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.models.backbones import BEiT
from mmseg.models.decode_heads import PointHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch.overrides import TorchFunctionMode

from sesam.errors import SesamError
from sesam.git import git
from sesam.labels import IGNORE_INDEX
from sesam.params import Architecture
from sesam.regular_files import open_regular

ZOO = Path(mmseg.__file__).parent / ".mim/configs"
SEGMENTORS = ("EncoderDecoder", "CascadeEncoderDecoder")
SIZE_DIVISOR = 32  # images are padded to its multiples: some networks halve them five times, and ask for no remainder
ADVICE = "Choose a network from docs/reference/networks.md"
Json = dict[str, Any]


def zoo_names() -> dict[str, Path]:
    """The zoo's configs by their names."""
    return {path.stem: path for path in sorted(ZOO.rglob("*.py")) if "_base_" not in path.parts}


def read_config(network: Architecture) -> tuple[Json, Json, str]:
    """The model and the optimizer of network.config as its file has them, and the SHA-256 of both.

    SesamError if there is no such config, or if its digest is another than network.config_sha256.
    """
    assert network.config is not None
    config = _read_file(Path(network.config)) if network.config.endswith(".py") else _read_zoo(network.config)
    parts = deepcopy({"model": config.get("model"), "optim_wrapper": config.get("optim_wrapper", {})})
    try:
        text = json.dumps(parts, sort_keys=True)
    except TypeError as problem:
        raise SesamError(f"network.config {network.config} is not of plain values ({problem}).") from None
    digest = hashlib.sha256(text.encode()).hexdigest()
    if network.config_sha256 is None and network.config.endswith(".py"):
        raise SesamError(
            f"network.config {network.config} needs its digest, by which DVC sees changes: set network.config_sha256 "
            f"to {digest}."
        )
    if network.config_sha256 not in (None, digest):
        raise SesamError(
            f"network.config {network.config} has the digest {digest} here, network.config_sha256 is "
            f"{network.config_sha256}: another version of the file or of mmsegmentation. Take that version, or the "
            "digest that it has here if you train it again."
        )
    return parts["model"], parts["optim_wrapper"], digest


def zoo_config(network: Architecture, num_classes: int) -> Json:
    """mmseg's config of network.config: its model, for our classes, loss and device.

    SesamError if there is none, or if it has no logits per pixel or cannot be built here.
    """
    model, _, _ = read_config(network)
    try:
        reason = _unusable(model)
        if reason is None:
            config = _adapt(model, num_classes) | {"train_cfg": {}, "test_cfg": {"mode": "whole"}}
            config["data_preprocessor"] = _preprocessor(model["data_preprocessor"])
            if build_without_memory(config).out_channels == num_classes:
                return config
            reason = "its classes cannot be set"
    except Exception as problem:  # each of its types raises its own
        reason = f"{type(problem).__name__}, {str(problem).strip(chr(39)).partition('. ')[0]}"
    raise SesamError(f"network.config {network.config} cannot be trained here: {reason}. {ADVICE}.")


def _preprocessor(own: Json) -> Json:
    """mmseg's config of the preprocessor, with the mean and std of a config's own."""
    kept: Json = {key: own[key] for key in ("mean", "std", "bgr_to_rgb") if key in own}
    padding = {"pad_val": 0, "seg_pad_val": IGNORE_INDEX, "test_cfg": {"size_divisor": SIZE_DIVISOR}}
    return {"type": "mmseg.SegDataPreProcessor", **kept, **padding}


@cache
def _read_zoo(name: str) -> Json:
    """A config of the installed package, as it resolves its bases; SesamError if there is none of that name."""
    names = zoo_names()
    if name not in names:
        similar = [x for x in names if x.startswith(name)][:3] or difflib.get_close_matches(name, names, 3)
        hint = f"Is it {' or '.join(similar)}?" if similar else "docs/reference/networks.md lists its families."
        raise SesamError(f"network.config: mmsegmentation's zoo has no {name}. {hint}")
    options = dict.fromkeys(("use_predefined_variables", "import_custom_modules", "use_environment_variables"), False)
    return Config.fromfile(names[name], **options, lazy_import=False, format_python_code=False).to_dict()


class _Literals(ast.NodeTransformer):
    """dict(a=1) as {"a": 1}, and names as what was assigned to them, for ast.literal_eval."""

    def __init__(self) -> None:
        self.assigned: dict[str, ast.expr] = {}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.assigned.get(node.id, node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if node.args or not (isinstance(node.func, ast.Name) and node.func.id == "dict"):
            return node
        values = [self.visit(keyword.value) for keyword in node.keywords]
        if any(keyword.arg is None for keyword in node.keywords):
            return node  # dict(**other)
        return ast.Dict([ast.Constant(keyword.arg) for keyword in node.keywords], values)


def _read_file(path: Path) -> Json:
    """A config of this repository, in one file; SesamError if git does not track it, or if it is more than literals."""
    if path.resolve() != Path.cwd().resolve() / path or not git("ls-files", "--", f":(literal){path}", cwd=Path()):
        raise SesamError(
            f"network.config: {path} is not a file that git tracks here, without links on its way. Add it (git add), "
            "or set the name of a config of mmsegmentation's zoo."
        )
    literals, values = _Literals(), {}
    try:
        with open_regular(path) as file:
            statements = ast.parse(file.read()).body
        for node in statements:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue  # a docstring
            if not (isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)):
                raise ValueError(f"line {node.lineno} assigns nothing")
            literals.assigned[target.id] = literals.visit(node.value)
            values[target.id] = ast.literal_eval(literals.assigned[target.id])
        if "_base_" in values:
            raise ValueError("it has a _base_")
    except (OSError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as problem:
        raise SesamError(
            f"network.config: {path} is not a config of literals in one file ({problem}). mmsegmentation writes such a "
            "file into the work_dir of each training."
        ) from None
    return values


def _unusable(model: Any) -> str | None:
    """Why a model has no logits per pixel that the three-source loss could train; None if it has."""
    if not isinstance(model, Mapping) or model.get("type") not in SEGMENTORS:
        return f"its type is {model.get('type') if isinstance(model, Mapping) else None}, not {' or '.join(SEGMENTORS)}"
    heads = [head for key in ("decode_head", "auxiliary_head") for head in _listed(model.get(key))]
    for head in heads:
        if not _gives_logits(head):
            return f"{head['type']} does not give each pixel the classes' logits, which the loss of the labels needs"
    if issubclass(MODELS.get(model["backbone"]["type"]) or object, BEiT):
        return f"{model['backbone']['type']} takes images of one size alone, and they are predicted whole"
    return None


def _gives_logits(config: Json) -> bool:
    kind = MODELS.get(config["type"]) if "type" in config else None
    return kind is not None and issubclass(kind, BaseDecodeHead) and not issubclass(kind, PointHead)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _adapt(value: Any, num_classes: int) -> Any:
    """A config without weights from elsewhere, with our classes, cross-entropy, and batches of one process."""
    if isinstance(value, list | tuple):
        return type(value)(_adapt(item, num_classes) for item in value)
    if not isinstance(value, dict):
        return value
    if value.get("type") in ("SyncBN", "MMSyncBN"):
        return value | {"type": "BN"}
    adapted = {}
    for key, item in value.items():
        if key == "pretrained" or (key == "init_cfg" and isinstance(item, dict) and item.get("type") == "Pretrained"):
            continue
        if key == "num_classes" or (key == "out_channels" and _gives_logits(value)):
            item = num_classes
        elif key == "loss_decode":
            losses = [
                {"type": "CrossEntropyLoss", "avg_non_ignore": True, "loss_weight": loss.get("loss_weight", 1.0)}
                for loss in _listed(item)
            ]
            item = losses if isinstance(item, list | tuple) else losses[0]
        adapted[key] = _adapt(item, num_classes)
    return adapted


def build(config: Json) -> EncoderDecoder:
    """The network of a config of mmseg, with random weights."""
    with DefaultScope.overwrite_default_scope("mmseg"):  # mmcv looks for K-Net's layers there
        return MODELS.build(config)


def build_without_memory(config: Json) -> EncoderDecoder:
    """The network on the meta device: its shapes alone. A crafted network.json could ask for any amount of memory."""
    with without_memory():
        return build(config)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build networks on the meta device: shapes alone, without values."""
    with torch.device("meta"), _WithoutValues():
        yield


class _WithoutValues(TorchFunctionMode):
    """Leave weights as they are: on the meta device random values import torch._dynamo, in two seconds.

    But compute torch.linspace: transformers read their rates of stochastic depth from it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}) | ({"device": "cpu"} if func is torch.linspace else {}))
