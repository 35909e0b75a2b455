"""What git knows of a run: the commit of its code, and the params of the last commit."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from sesam.git import git
from sesam.yaml_io import parse_yaml

ROOT = Path(__file__).parents[2]
CODE = ("sesam", "stages", "dvc.yaml", "constraints.txt")


def code_version(root: Path = ROOT) -> str:
    """The last commit that touched the code, and whether it was changed since; the package's version without git."""
    commit = git("log", "-1", "--format=%H", "--", *CODE, cwd=root).strip()
    text = f"SeSAM {version('sesam')}" + (f", commit {commit}" if commit else "")
    return text + (" with uncommitted changes" if git("status", "--porcelain", "--", *CODE, cwd=root) else "")


def committed_params() -> tuple[str | None, Mapping[str, Any]]:
    """The short hash of the last commit here, and its params.yaml; (None, {}) if git has none that can be read."""
    try:
        params = parse_yaml(git("show", "HEAD:./params.yaml", cwd=Path()))
    except (ValueError, RecursionError, yaml.YAMLError):
        return None, {}
    commit = git("rev-parse", "--short", "HEAD", cwd=Path()).strip()
    return (commit, params) if isinstance(params, Mapping) else (None, {})
