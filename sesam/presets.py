"""Presets, which hold what differs from the schema's defaults, and the params.yaml that `sesam init` writes of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from sesam.errors import SesamError
from sesam.params import Params, ScheduleOverride, validate_params
from sesam.yaml_io import read_yaml

PRESETS = Path("presets")
_COMMENT_COLUMN = 44


def load_preset(path: Path, data: Path | None = None, classes: Sequence[str] | None = None) -> Params:
    """The params of presets/NAME.yaml over the defaults; SesamError if it does not fit the schema.

    data and classes replace dataset.root and dataset.classes, and drop what belongs to the preset's own data.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise SesamError(f"{path} is not a mapping of groups.")
    if data is not None or classes is not None:
        dataset = {key: value for key, value in raw["dataset"].items() if key not in ("palette", "subset")}
        own = {"root": None if data is None else str(data), "classes": classes and list(classes)}
        raw |= {"demo": {}, "dataset": dataset | {key: value for key, value in own.items() if value is not None}}
    return validate_params(raw, path)


def render_params(params: Params) -> str:
    """params.yaml with every key, its description as a comment."""
    head = "# All that decides a result; `runtime` does not. Written by `sesam init`; sweep with `dvc exp run -S`.\n"
    return head + "".join(f"{line}\n" for line in _lines(params, 0))


def _lines(group: BaseModel, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for key, field in type(group).model_fields.items():
        value = getattr(group, key)
        if isinstance(group, ScheduleOverride) and key in ScheduleOverride.model_fields and value is None:
            continue  # not overridden
        about = field.description
        if isinstance(value, BaseModel):
            inner = list(_lines(value, depth + 1))
            if depth == 0:
                yield ""
            yield from (
                [f"{indent}{key}:" + _comment(about), *inner]
                if inner
                else [_with_comment(f"{indent}{key}: {{}}", about)]
            )
        elif isinstance(value, Mapping) and value:  # demo, rounds: a group per name
            yield from ("", f"{indent}{key}:{_comment(about)}")
            for k, (name, one) in enumerate(value.items()):
                inner = list(_lines(one, depth + 2))
                yield f"{indent}  {name}:"
                yield from inner if k == 0 else [line.split("  #")[0].rstrip() for line in inner]
        elif isinstance(value, list) and value:
            yield f"{indent}{key}:{_comment(about)}"
            yield from (f"{indent}- {_scalar(one)}" for one in value)
        else:
            yield _with_comment(f"{indent}{key}: {_scalar(value)}", about)


def _with_comment(text: str, about: str | None) -> str:
    return (
        f"{text:{_COMMENT_COLUMN}}{_comment(about)}"
        if about and len(text) < _COMMENT_COLUMN
        else text + _comment(about)
    )


def _comment(about: str | None) -> str:
    return f"  # {about}" if about else ""


def _scalar(value: Any) -> str:
    """A value as YAML on one line."""
    value = list(value) if isinstance(value, tuple) else value
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()
    )
