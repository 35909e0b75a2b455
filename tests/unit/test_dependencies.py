"""Every stage of dvc.yaml lists the code that can change its result, and no other; params.yaml has every value."""

import ast
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, write_params

from sesam import params
from sesam.errors import SesamError

# Modules that no stage lists, because they cannot change a result: editing them reruns nothing
NEVER_LISTED = {
    "sesam/__init__.py": "a setting of PyTorch's allocator",
    "sesam/segmentation/__init__.py": "imports mmsegmentation without its messages",
    "sesam/errors.py": "messages",
    "sesam/late_imports.py": "imports less",
    "sesam/git.py": "runs git",
    "sesam/sam/segment_anything_parts.py": "imports segment_anything",
    "sesam/paths.py": "paths of artifacts, as in dvc.yaml",
    "sesam/params.py": "validates params.yaml, which has every value",
    "sesam/yaml_io.py": "parses params.yaml",
    "sesam/regular_files.py": "opens files",
    "sesam/artifacts/dvc_outputs.py": "checks paths",
    "sesam/artifacts/downloads.py": "loads files that are checked by their checksums",
    "sesam/artifacts/archives.py": "packs files and reads them",
    "sesam/artifacts/atomic_io.py": "writes complete files and folders or none",
    "sesam/artifacts/component_records.py": "reads and validates the components' JSON",
    "sesam/artifacts/drawn_prompts.py": "reads and validates boxes' JSON",
    "sesam/artifacts/fingerprint.py": "decides whether to resume",
    "sesam/artifacts/invariants.py": "checks what was written",
    "sesam/artifacts/image_io.py": "reads and writes pixels unchanged",
    "sesam/artifacts/stage_guard.py": "checks what a stage reads",
    "sesam/artifacts/manifest.py": "reads the manifest and label files",
    "sesam/artifacts/supervision.py": "reads and writes the images' kinds",
    "sesam/artifacts/ranking.py": "reads a ranking",
    "sesam/execution/device.py": "chooses the device",
    "sesam/execution/launch.py": "starts processes on GPUs",
    "sesam/execution/parallel.py": "chooses the backend, draws progress bars",
    "sesam/execution/batches.py": "reads, computes and writes at the same time",
    "sesam/execution/progress.py": "progress bars",
    "sesam/execution/ray_backend.py": "worker processes on Ray",
    "sesam/execution/workers.py": "worker processes",
    "sesam/sam/cache.py": "keeps embeddings",
    "sesam/sam/checkpoints.py": "loads files that are checked by their SHA-256",
}
# Modules that a stage imports without an effect on its result
NOT_ITS_RESULT = {
    "prepare": {
        "sesam/sam/registry.py": "size of an embedding, only printed",
        "sesam/geometry/regions.py": "number of components, only printed",
    },
    "embed": {
        "sesam/sam/decoder.py": "not called: this stage does not decode",
        "sesam/sam/upscaling.py": "not called: this stage has no masks",
        "sesam/geometry/rle.py": "not called: this stage has no masks",
    },
}


def imported_modules(path: str) -> set[str]:
    """The paths of the project's modules that a module imports anywhere, and of their packages."""
    paths: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            packages = [Path(*parts[:k], "__init__.py") for k in range(1, len(parts) + 1)]
            if parts[0] in ("sesam", "stages"):
                paths |= {str(p) for p in (Path(*parts).with_suffix(".py"), *packages) if (ROOT / p).is_file()}
    return paths


def decisive_modules(stage: str, module: str) -> set[str]:
    """The modules that can change a stage's result: what it imports, directly or not, without the exceptions."""
    excepted = NEVER_LISTED.keys() | NOT_ITS_RESULT.get(stage, {}).keys()
    decisive, todo = set(), [module]
    while todo:
        path = todo.pop()
        if path not in decisive and path not in excepted:
            decisive.add(path)
            todo += imported_modules(path)
    return decisive


def stages() -> dict[str, Any]:
    entries = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: entry.get("do", entry) for name, entry in entries.items()}


def dependency_faults(stages: dict[str, Any]) -> list[str]:
    """Decisive code that is not listed, and code that is listed without being decisive."""
    faults = []
    for name, stage in stages.items():
        module = stage["cmd"].split()[2].replace(".", "/") + ".py"
        decisive = {path for path in decisive_modules(name, module) if not path.endswith("__init__.py")}
        listed = [path for path in stage["deps"] if path.startswith(("sesam/", "stages/"))]
        covered = {path for path in decisive for dep in listed if path == dep or path.startswith(f"{dep}/")}
        faults += [f"{name} does not list {path}" for path in sorted(decisive - covered)]
        code = [dep for dep in listed if not dep.endswith((".html", ".md"))]
        useless = [dep for dep in code if not any(path == dep or path.startswith(f"{dep}/") for path in decisive)]
        faults += [f"{name} lists {path} for nothing" for path in useless]
    return faults


def test_stages_list_the_code_that_decides() -> None:
    assert dependency_faults(stages()) == []


@pytest.mark.parametrize(
    ("stage", "path"),
    [("train_student", "sesam/seeds.py"), ("select_masks", "sesam/labels.py"), ("embed", "sesam/sam/encoder.py")],
)
def test_a_missing_dependency_is_found(stage: str, path: str) -> None:
    less = deepcopy(stages())
    less[stage]["deps"].remove(path)
    assert dependency_faults(less) == [f"{stage} does not list {path}"]


def test_the_exceptions_exist() -> None:
    for path in (*NEVER_LISTED, *(path for paths in NOT_ITS_RESULT.values() for path in paths)):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("key", ["seed", "sampling.num_points", "schedule.lr", "rounds.r1.teacher", "runtime"])
def test_params_must_hold_every_key(tmp_path: Path, key: str) -> None:
    write_params(tmp_path)
    raw = yaml.safe_load((tmp_path / "params.yaml").read_text())
    *groups, last = key.split(".")
    del reduce(dict.__getitem__, groups, raw)[last]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(SesamError, match=rf"params\.yaml .*\n  {key}"):
        params.load_params(tmp_path / "params.yaml")


def test_every_key_has_a_description_and_a_default() -> None:
    groups = [model for model in vars(params).values() if isinstance(model, type) and issubclass(model, params.Group)]
    fields = {f"{group.__name__}.{key}": field for group in groups for key, field in group.model_fields.items()}
    required = {key for key, field in fields.items() if field.is_required()}
    assert required == {"Params.dataset"}  # its classes cannot have a default
    overrides = params.ScheduleOverride.model_fields.keys()  # described in Schedule
    undescribed = {key for key, field in fields.items() if not field.description and field.annotation not in groups}
    assert {key for key in undescribed if key.split(".")[1] not in overrides} == {"Params.rounds"}  # a group per name
