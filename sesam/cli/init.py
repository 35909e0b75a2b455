"""Write params.yaml from a preset, with every key and its description.

    sesam init demo
    sesam init folder --data /path/to/photographs --classes road,car

With --data or --classes, the preset's palette, subset and demo data set are dropped. A params.yaml with uncommitted
changes is overwritten with --force alone.
"""

import argparse
import subprocess
from itertools import takewhile
from pathlib import Path

from sesam.artifacts.atomic_io import atomic_path
from sesam.errors import SesamError
from sesam.presets import PRESETS, load_preset, render_params

PARAMS = Path("params.yaml")
REPOSITORY_FILES = ("dvc.yaml", str(PRESETS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="name of a file in presets/, without .yaml")
    parser.add_argument("--data", type=Path, metavar="PATH", help="folder of your data set (dataset.root)")
    parser.add_argument(
        "--classes",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        metavar="A,B,…",
        help="class names in id order, separated by commas (dataset.classes)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite a params.yaml with uncommitted changes")


def run(options: argparse.Namespace) -> None:
    path = PRESETS / f"{options.preset}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise SesamError(f"{path} does not exist. Presets: {known}.")
    if options.data is not None and not options.data.is_dir():
        raise SesamError(f"--data: {options.data} is not a folder.")
    text = render_params(load_preset(path, options.data, options.classes))
    if PARAMS.exists() and not options.force and PARAMS.read_bytes() != text.encode() and not _is_committed():
        raise SesamError("params.yaml has uncommitted changes. Commit them, or overwrite them with --force.")
    with atomic_path(PARAMS) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    print(f"init: wrote {PARAMS} from {path}. Run the pipeline with `dvc repro`.")
    for line in takewhile(lambda line: line.startswith("# "), path.read_text(encoding="utf-8").splitlines()):
        print(f"  {line.removeprefix('# ')}")


def _is_committed() -> bool:
    """Whether HEAD has params.yaml as it is; false outside a git repository and without git."""
    try:
        committed = subprocess.run(["git", "show", f"HEAD:./{PARAMS}"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    return committed == PARAMS.read_bytes()
