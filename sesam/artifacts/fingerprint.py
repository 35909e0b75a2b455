"""What decides an artifact: the same list for DVC, for resuming, and for SAM's embeddings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from sesam.artifacts.atomic_io import json_digest, sha256
from sesam.errors import SesamError

ROOT = Path(__file__).parents[2]  # of the code
LIBRARIES = (  # they compute
    "torch",
    "onedl-mmsegmentation",
    "onedl-mmengine",
    "onedl-mmcv",
    "timm",
    "segment-anything",
    "transformers",
    "numpy",
    "opencv-python",
    "pillow",
    "scikit-image",
)


def stage_fingerprint(stage: str, key: str | None = None) -> dict[str, str]:
    """What dvc.yaml lists for a stage, and the libraries: of each dependency its digest.

    key: of a stage that is repeated, the round. SesamError if a dependency is missing.
    """
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    entry = _stages()[stage]
    scope = dict(params)
    if "foreach" in entry:
        rounds = _interpolate(entry["foreach"], scope)
        scope |= {"key": key, "item": rounds[key]}
        entry = entry["do"]
    found = {path: path_digest(Path(path)) for path in (_interpolate(path, scope) for path in entry["deps"])}
    for name in (_interpolate(name, scope) for name in entry.get("params", ())):
        found[f"params.yaml: {name}"] = json_digest(reduce(lambda group, part: group[part], name.split("."), params))
    return found | library_versions()


def code_fingerprint(stage: str, folder: str) -> dict[str, str]:
    """Of each of the stage's dependencies in a folder of code its digest."""
    entry = _stages()[stage]
    paths = entry.get("do", entry)["deps"]
    return {path: path_digest(Path(path)) for path in paths if path.startswith(folder)}


def library_versions() -> dict[str, str]:
    """The versions of the libraries that are installed; timm and transformers may not be."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def path_digest(path: Path) -> str:
    """Hex digest of a file, or of a folder's files with their names; SesamError if it is missing."""
    path = ROOT / path if path.parts[0] in ("sesam", "stages") else path
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        return json_digest([(file.relative_to(path).as_posix(), sha256(file)) for file in files])
    if not path.exists():
        raise SesamError(f"{path} is missing. Run `dvc repro`, or `dvc pull` if a colleague has made it.")
    return sha256(path)


def _stages() -> Mapping[str, Any]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def _interpolate(text: str, scope: Mapping[str, Any]) -> Any:
    """A text of dvc.yaml with its ${a.b} filled in, as DVC does; the value itself where it is nothing else."""

    def look_up(match: re.Match[str]) -> Any:
        return reduce(lambda group, part: group[part], match[1].split("."), scope)

    if whole := re.fullmatch(r"\$\{([\w.]+)\}", text):
        return look_up(whole)
    return re.sub(r"\$\{([\w.]+)\}", lambda match: str(look_up(match)), text)
