"""All of a run on one page that needs no network and no server: metrics/report.html.

python -m stages.report

Scores, charts, params with what differs from the last commit, and for each round the training images whose labels most
need a look, as layers, with the outcome of each component.
"""

from __future__ import annotations

from sesam.artifacts.atomic_io import write_text
from sesam.artifacts.manifest import Dataset
from sesam.errors import run_main
from sesam.params import load_params
from sesam.paths import GALLERY, METRICS
from sesam.reporting.gallery import read_gallery
from sesam.reporting.report_page import render_page


def main() -> None:
    params, data = load_params(), Dataset.load()
    for path in GALLERY.glob("*.json"):
        if path.stem not in params.rounds:  # of a round that is no more; DVC would count it as a part of the folder
            path.unlink()
    rounds = {name: read_gallery(GALLERY / f"{name}.json") for name in params.rounds}
    text = render_page(data, params, rounds)
    write_text(METRICS / "report.html", text)
    print(f"report: metrics/report.html, {len(text.encode()) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_main(main)
