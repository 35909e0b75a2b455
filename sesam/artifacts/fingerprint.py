"""What decides an artifact, as dvc.yaml lists it: for resuming, and for SAM's embeddings."""

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sesam.artifacts.atomic_io import json_digest, sha256
from sesam.errors import SesamError
from sesam.yaml_io import read_fast

ROOT = Path(__file__).parents[2]  # of the code
LIBRARIES = (  # their versions may change a result
    "torch", "onedl-mmsegmentation", "onedl-mmengine", "onedl-mmcv", "timm", "segment-anything", "transformers",
    "numpy", "opencv-python", "pillow", "scikit-image",
)  # fmt: skip


def stage_fingerprint(stage: str, key: str | None = None) -> dict[str, str]:
    """A digest per dependency and param that dvc.yaml lists for a stage, and the versions of the libraries.

    key: the round, of a stage with foreach. SesamError if a dependency is missing.
    """
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    entry, scope = _resolve(_stages()[stage], key, params)
    digests = {path: path_digest(Path(path)) for path in (_interpolate(path, scope) for path in entry["deps"])}
    for key in (_interpolate(key, scope) for key in entry.get("params", ())):
        digests[f"params.yaml: {key}"] = json_digest(_look_up(key, params))
    return digests | library_versions()


class Stage(NamedTuple):
    """A stage of dvc.yaml, by the name that `dvc repro` takes; the paths of its dependencies and outputs."""

    name: str
    deps: list[Path]
    outs: list[Path]


def find_stage(command: str, params: Mapping[str, Any]) -> Stage | None:
    """The stage of dvc.yaml that runs a command, `python -m stages.NAME [KEY]`; None if none does."""
    for name, foreach in _stages().items():
        for key in _interpolate(foreach["foreach"], params) if "foreach" in foreach else (None,):
            entry, scope = _resolve(foreach, key, params)
            if _interpolate(entry["cmd"], scope) == command:
                listed = [*entry.get("outs", ()), *entry.get("metrics", ())]
                outs = [path for out in listed for path in (out if isinstance(out, dict) else (out,))]
                deps, outs = ([Path(_interpolate(path, scope)) for path in paths] for paths in (entry["deps"], outs))
                return Stage(name if key is None else f"{name}@{key}", deps, outs)
    return None


def _resolve(entry: Mapping[str, Any], key: str | None, params: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """A stage's entry, of a stage with foreach that of a key, and the values that its ${…} name."""
    if "foreach" not in entry:
        return entry, params
    return entry["do"], {**params, "key": key, "item": _interpolate(entry["foreach"], params)[key]}


def code_fingerprint(stage: str, folder: str) -> dict[str, str]:
    """A digest per dependency of the stage in a folder of code."""
    entry = _stages()[stage]
    paths = entry.get("do", entry)["deps"]
    return {path: path_digest(Path(path)) for path in paths if path.startswith(folder)}


def library_versions() -> dict[str, str]:
    """The versions of the installed libraries; timm and transformers are optional."""
    versions = {}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    return versions


def path_digest(path: Path) -> str:
    """Hex digest of a file, or of a folder's files with their names; SesamError if it is missing."""
    path = ROOT / path if path.parts[0] in ("sesam", "stages") else path
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        return json_digest([(file.relative_to(path).as_posix(), sha256(file)) for file in files])
    if not path.exists():
        raise SesamError(f"{path} is missing. Run `dvc repro`, or `sesam pull` if a colleague has pushed it.")
    return sha256(path)


def _stages() -> Mapping[str, Any]:
    return read_fast(ROOT / "dvc.yaml")["stages"]


def _look_up(dotted: str, scope: Mapping[str, Any]) -> Any:
    return reduce(lambda group, key: group[key], dotted.split("."), scope)


def _interpolate(text: str, scope: Mapping[str, Any]) -> Any:
    """Fill in each ${a.b} of dvc.yaml as DVC does; the value itself if `text` is nothing else."""
    if whole := re.fullmatch(r"\$\{([\w.]+)\}", text):
        return _look_up(whole[1], scope)
    return re.sub(r"\$\{([\w.]+)\}", lambda match: str(_look_up(match[1], scope)), text)
