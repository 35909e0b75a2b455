"""Whether what params.yaml names is there. DVC would say that a file is missing, but not which key names it."""

from __future__ import annotations

from pathlib import Path

from sesam.artifacts.atomic_io import write_text
from sesam.errors import SesamError, run_main
from sesam.params import FINE_LABELS, Params, load_params

CHECKED = Path("data/checked.txt")  # always of one content: what depends on it runs after this, but never because of it


def missing(params: Params) -> list[str]:
    """A line for each key whose path is not there and which no stage makes."""
    made = {FINE_LABELS, *(f"data/raw/{name}" for name in params.draw)}
    paths = {"dataset.root": params.dataset.root, "weak.origin": params.weak.origin}
    return [
        f"params.yaml: {key} is {path}, which is not there. Put it there, link it, or name where it lies."
        for key, path in paths.items()
        if path not in made and not Path(path).exists()
    ]


def main() -> None:
    if lines := missing(load_params()):
        raise SesamError("\n  ".join(lines))
    write_text(CHECKED, "There is what params.yaml names.\n")


if __name__ == "__main__":
    run_main(main)
