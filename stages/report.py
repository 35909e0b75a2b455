"""A run on one page that needs neither a network nor a server, metrics/report.html; see `render_page`."""

from sesam.artifacts.atomic_io import write_text
from sesam.artifacts.manifest import Manifest
from sesam.errors import run_main
from sesam.params import load_params
from sesam.paths import METRICS, REPORT_IMAGES
from sesam.reporting.report import render_page
from sesam.reporting.report_images import read_report_images


def main() -> None:
    params, manifest = load_params(), Manifest.load()
    text = render_page(
        manifest, params, {name: read_report_images(REPORT_IMAGES / f"{name}.json") for name in params.rounds}
    )
    write_text(METRICS / "report.html", text)
    print(f"report: metrics/report.html, {len(text.encode()) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_main(main)
