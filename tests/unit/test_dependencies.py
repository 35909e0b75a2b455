"""What dvc.yaml lists as code is what can change a result, for every stage."""

from __future__ import annotations

import ast
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

# Modules that no stage lists, for they cannot change a result: a changed word in them reruns nothing
NEVER_LISTED = {
    "sesam/__init__.py": "a setting of PyTorch's memory",
    "sesam/segmentation/__init__.py": "imports mmsegmentation without its messages",
    "sesam/errors.py": "messages",
    "sesam/artifacts/atomic_io.py": "whole files and folders, or none",
    "sesam/artifacts/archives.py": "many files in few, and out of them again",
    "sesam/paths.py": "where artifacts lie; dvc.yaml says the same",
    "sesam/artifacts/label_png.py": "reads and writes pixels as they are",
    "sesam/artifacts/manifest.py": "hands on what stands in the manifest and the label files",
    "sesam/command_line.py": "which round",
    "sesam/artifacts/ranking.py": "hands on what stands in a ranking",
    "sesam/yaml_io.py": "hands on what stands in params.yaml",
    "sesam/artifacts/component_records.py": "hands on what stands in the components' files",
    "sesam/artifacts/invariants.py": "looks at what was written, and changes nothing",
    "sesam/params.py": "checks params.yaml, and has no value of its own",
    "sesam/execution/parallel.py": "worker processes and progress bars",
    "sesam/execution/device.py": "which processor",
    "sesam/artifacts/fingerprint.py": "what is listed, for resuming",
    "sesam/sam/cache.py": "keeps embeddings",
    "sesam/execution/ray_backend.py": "worker processes on Ray",
    "sesam/execution/pipeline.py": "reads, computes and writes at the same time",
    "sesam/sam/oom_batching.py": "how much at once on a GPU",
    "sesam/sam/checkpoints.py": "files that are checked by their SHA-256",
}
# Modules that a stage imports for something other than its result
NOT_ITS_RESULT = {
    "prepare": {
        "sesam/sam/registry.py": "the size of an embedding, to print it",
        "sesam/geometry/regions.py": "counts components, to print their number",
    },
    "embed": {
        "sesam/sam/decoder.py": "decodes, which this stage does not",
        "sesam/sam/upscaling.py": "scales masks, which this stage does not make",
        "sesam/geometry/rle.py": "run lengths of masks, which this stage does not make",
    },
}


def imported(path: str) -> set[str]:
    """The project's modules that a module imports, wherever in it, as paths; also the packages that this runs."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] in ("sesam", "stages"):
                packages = [Path(*parts[:k], "__init__.py") for k in range(1, len(parts) + 1)]
                found |= {str(one) for one in (Path(*parts).with_suffix(".py"), *packages) if (ROOT / one).is_file()}
    return found


def decides(stage: str, module: str) -> set[str]:
    """The modules that can change what a stage makes: those that it imports, and they, but for the exceptions."""
    spared = NEVER_LISTED.keys() | NOT_ITS_RESULT.get(stage, {}).keys()
    found, todo = set(), [module]
    while todo:
        path = todo.pop()
        if path not in found and path not in spared:
            found.add(path)
            todo += imported(path)
    return found


def stages() -> dict[str, Any]:
    return {name: one.get("do", one) for name, one in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()}


def faults(stages: dict[str, Any]) -> list[str]:
    """Code that decides and is not listed, and code that is listed and does not."""
    found = []
    for name, stage in stages.items():
        module = stage["cmd"].split()[2].replace(".", "/") + ".py"
        needed = {one for one in decides(name, module) if not one.endswith("__init__.py")}
        listed = [one for one in stage["deps"] if one.startswith(("sesam/", "stages/"))]
        covered = {one for one in needed for path in listed if one == path or one.startswith(f"{path}/")}
        found += [f"{name} does not list {one}" for one in sorted(needed - covered)]
        code = [path for path in listed if not path.endswith(".html")]
        useless = [path for path in code if not any(one == path or one.startswith(f"{path}/") for one in needed)]
        found += [f"{name} lists {one} for nothing" for one in useless]
    return found


def test_dvc_lists_the_code_that_decides() -> None:
    assert faults(stages()) == []


@pytest.mark.parametrize(
    ("stage", "path"),
    [
        ("train_student", "sesam/seeds.py"),
        ("select_masks", "sesam/labels.py"),
        ("embed", "sesam/sam/encoder.py"),
    ],
)
def test_a_dependency_taken_out_is_noticed(stage: str, path: str) -> None:
    less = deepcopy(stages())
    less[stage]["deps"].remove(path)
    assert faults(less) == [f"{stage} does not list {path}"]


def test_the_exceptions_exist() -> None:
    for path in (*NEVER_LISTED, *(path for one in NOT_ITS_RESULT.values() for path in one)):
        assert (ROOT / path).is_file(), path


def test_no_param_has_a_value_outside_params_yaml() -> None:
    from pydantic import BaseModel

    from sesam import params

    for model in vars(params).values():
        if isinstance(model, type) and issubclass(model, BaseModel):
            assert all(field.is_required() for field in model.model_fields.values()), model
