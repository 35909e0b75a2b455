"""Presets, which hold what differs from the schema's defaults, and the params.yaml that `sesam init` writes of one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from sesam.errors import SesamError
from sesam.params import Params, ScheduleOverride, validate_params
from sesam.yaml_io import read_yaml

PRESETS = Path("presets")
NETWORKS = PRESETS / "networks"
_COMMENT_COLUMN = 44


def load_preset(
    path: Path, data: Path | None = None, classes: Sequence[str] | None = None, network: Path | None = None
) -> Params:
    """The params of presets/NAME.yaml over the defaults; SesamError if it does not fit the schema.

    data and classes replace dataset.root and dataset.classes, and drop what belongs to the preset's own data. network:
    a file of NETWORKS, whose keys replace the preset's.
    """
    raw = _read_groups(path)
    if network is not None:
        raw |= {group: raw.get(group, {}) | keys for group, keys in _read_groups(network).items()}
    if data is not None or classes is not None:
        dataset = {key: value for key, value in raw.get("dataset", {}).items() if key not in ("palette", "subset")}
        own = {"root": None if data is None else str(data), "classes": classes and list(classes)}
        raw |= {"demo": {}, "dataset": dataset | {key: value for key, value in own.items() if value is not None}}
    return validate_params(raw, path)


def _read_groups(path: Path) -> dict[str, Any]:
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise SesamError(f"{path} is not a mapping of groups.")
    return raw


def render_params(params: Params) -> str:
    """params.yaml with every key, its description as a comment."""
    head = "# Every setting; `runtime` reruns nothing. Written by `sesam init`; sweep with `dvc exp run -S`.\n"
    return head + "".join(f"{line}\n" for line in _lines(params))


def _lines(group: BaseModel, indent: str = "", described: bool = True) -> Iterator[str]:
    for key, field in type(group).model_fields.items():
        value = getattr(group, key)
        if isinstance(group, ScheduleOverride) and key in ScheduleOverride.model_fields and value is None:
            continue  # not overridden
        children: list[str] = []
        if isinstance(value, BaseModel):
            children = list(_lines(value, f"{indent}  ", described))
        elif isinstance(value, Mapping):  # demo, rounds: a group per name, the first one with comments
            for number, (name, entry) in enumerate(value.items()):
                children += [f"{indent}  {name}:", *_lines(entry, f"{indent}    ", described and number == 0)]
        elif isinstance(value, list):
            children = [f"{indent}- {to_yaml(entry)}" for entry in value]
        if not indent and isinstance(value, BaseModel | Mapping):
            yield ""
        line = f"{indent}{key}:" if children else f"{indent}{key}: {to_yaml(value)}"
        comment = f"  # {field.description}" if field.description and described else ""
        yield (line if children or not comment else f"{line:{_COMMENT_COLUMN}}") + comment
        yield from children


def to_yaml(value: Any) -> str:
    """A value as YAML on one line."""
    value = list(value) if isinstance(value, tuple) else {} if isinstance(value, BaseModel) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()
