"""Fail early if a path in params.yaml does not exist, or git has no commit, without which DVCLive cannot log.

DVC would name the missing file, but not the key.

It runs at every `dvc repro`, because a path may have moved since. Its output never changes, so no stage reruns for it.
"""

from pathlib import Path

from sesam.artifacts.atomic_io import write_text
from sesam.errors import SesamError, run_main
from sesam.params import FINE_TRAIN_LABELS, Params, load_params
from sesam.reporting.git import git

CHECKED = Path("data/checked.txt")


def missing_paths(params: Params) -> list[str]:
    """A line for each key whose path does not exist and is not the output of a stage."""
    outputs = {Path(FINE_TRAIN_LABELS), *(Path("data/raw", name) for name in params.demo)}
    paths = {"dataset.root": params.dataset.root, "weak_labels.path": params.weak_labels.path}
    return [
        f"params.yaml: {key}: {path} does not exist. Create or link it, or correct the path."
        for key, path in paths.items()
        if Path(path) not in outputs and not Path(path).exists()
    ]


def main() -> None:
    lines = missing_paths(load_params())
    if git("rev-parse", "--git-dir", cwd=Path()) and not git("rev-parse", "HEAD", cwd=Path()):
        lines.append("This git repository has no commit, which DVC needs. Run `git add .` and `git commit` first.")
    if lines:
        raise SesamError("\n  ".join(lines))
    write_text(CHECKED, "The paths in params.yaml exist.\n")


if __name__ == "__main__":
    run_main(main)
