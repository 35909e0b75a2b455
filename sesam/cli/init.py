"""Write params.yaml from a preset, with every key and its description.

    sesam init demo
    sesam init folder --data /path/to/photographs --classes road,car --network dinov2

With --data or --classes, the preset's palette, subset and demo data set are dropped. A params.yaml with uncommitted
changes is overwritten with --force alone.
"""

import argparse
from itertools import takewhile
from pathlib import Path

from sesam.artifacts.atomic_io import read_bytes, write_text
from sesam.errors import SesamError
from sesam.git import git
from sesam.presets import NETWORKS, PRESETS, load_preset, render_params

PARAMS = Path("params.yaml")
REPOSITORY_FILES = ("dvc.yaml", str(PRESETS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="name of a file in presets/, without .yaml")
    parser.add_argument("--data", type=Path, metavar="PATH", help="folder of your data set (dataset.root)")
    parser.add_argument("--classes", metavar="A,B,…", help="class names in id order (dataset.classes)")
    parser.add_argument("--network", metavar="NAME", help="name of a file in presets/networks/: another network")
    parser.add_argument("--force", action="store_true", help="overwrite a params.yaml with uncommitted changes")


def run(options: argparse.Namespace) -> None:
    path = _preset(PRESETS, options.preset)
    network = options.network and _preset(NETWORKS, options.network)
    if options.data is not None and not options.data.is_dir():
        raise SesamError(f"--data: {options.data} is not a folder.")
    classes = options.classes and [name.strip() for name in options.classes.split(",") if name.strip()]
    text = render_params(load_preset(path, options.data, classes, network))
    safe = text.encode(), git("show", f"HEAD:./{PARAMS}", cwd=Path()).encode()  # "" outside a repository
    if PARAMS.exists() and not options.force and read_bytes(PARAMS) not in safe:
        raise SesamError("params.yaml is not committed as it is. Commit it, or overwrite it with --force.")
    write_text(PARAMS, text)
    sources = [path, *([network] if network else [])]
    print(f"init: wrote {PARAMS} from {' and '.join(map(str, sources))}. Run the pipeline with `dvc repro`.")
    for source in sources:
        for line in takewhile(lambda line: line.startswith("# "), source.read_text(encoding="utf-8").splitlines()):
            print(f"  {line.removeprefix('# ')}")


def _preset(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    if "/" in name or not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in folder.glob("*.yaml")))
        raise SesamError(f"{path} does not exist. Presets: {known}.")
    return path
