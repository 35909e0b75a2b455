"""Fail early: a path in params.yaml that does not exist, an output that is a link, a git repository without a commit.

DVC would name a missing file, but not its key; it would remove what is behind a link; DVCLive needs a commit.

It runs at every `dvc repro`, because a path may have moved since. Its output never changes, so no stage reruns for it.
"""

from pathlib import Path

from sesam.artifacts.atomic_io import write_text
from sesam.artifacts.dvc_outputs import FOLDERS
from sesam.errors import SesamError, run_main
from sesam.git import git
from sesam.params import FINE_TRAIN_LABELS, Params, load_params

CHECKED = Path("data/checked.txt")
INPUTS = {Path("data/raw"), Path("data/corrections")}  # may be links


def missing_paths(params: Params) -> list[str]:
    """A line for each key whose path does not exist and is not the output of a stage."""
    outputs = {Path(FINE_TRAIN_LABELS), *(Path("data/raw", name) for name in params.demo)}
    paths = {"dataset.root": params.dataset.root, "weak_labels.path": params.weak_labels.path}
    return [
        f"params.yaml: {key}: {path} does not exist. Create or link it, or correct the path."
        for key, path in paths.items()
        if Path(path) not in outputs and not Path(path).exists()
    ]


def linked_outputs() -> list[str]:
    """A line for each link to a folder where an output, or a folder on the way to one, should be."""
    paths = [path for folder in FOLDERS for depth in range(4) for path in Path().glob("/".join([folder, *"*" * depth]))]
    outputs = [path for path in paths if not INPUTS & {path, *path.parents}]
    return [f"{path} is a link to a folder. Replace it with a folder." for path in outputs if is_linked_folder(path)]


def is_linked_folder(path: Path) -> bool:
    return path.is_symlink() and path.is_dir()


def main() -> None:
    lines = missing_paths(load_params()) + linked_outputs()
    if git("rev-parse", "--git-dir", cwd=Path()) and not git("rev-parse", "HEAD", cwd=Path()):
        lines.append("This git repository has no commit, which DVC needs. Run `git add .` and `git commit` first.")
    if lines:
        raise SesamError("\n  ".join(lines))
    write_text(CHECKED, "The paths in params.yaml exist.\n")


if __name__ == "__main__":
    run_main(main)
