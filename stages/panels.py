"""A page per image: metrics/panels/ROUND/SPLIT/ID.png; the same steps for the report: metrics/report_images/ROUND.json.

Shown are the first report.num_images validation images, and as many training images from the top of ranking.csv.
"""

from sesam.artifacts.atomic_io import atomic_directory, atomic_path
from sesam.artifacts.manifest import Manifest
from sesam.artifacts.ranking import top_ranked
from sesam.errors import run_main
from sesam.execution.parallel import track
from sesam.params import parse_round
from sesam.paths import METRICS, REPORT_IMAGES
from sesam.reporting.panels import trace_page, val_page
from sesam.reporting.report_images import ReportImage, layer, write_report_images
from sesam.reporting.trace import list_components, load_trace


def main() -> None:
    round_name, params = parse_round(__doc__)
    manifest, count = Manifest.load(), params.report.num_images
    train, val, shown = top_ranked(round_name, manifest, count), manifest.val[:count], []
    with atomic_directory(METRICS / "panels" / round_name) as folder:
        for record in track(train, len(train), f"panels {round_name}, train"):
            trace = load_trace(record, round_name, manifest, params, with_student=True)
            with atomic_path(folder / "train" / f"{record.id}.png") as unfinished:
                trace_page(trace).save(unfinished)
            layers = [layer(step, manifest.palette) for step in (*trace.inputs, *trace.results)]
            shown.append(ReportImage(record.id, layers, list_components(trace)))
            del trace  # its masks, before those of the next are read
        for record in track(val, len(val), f"panels {round_name}, val"):
            with atomic_path(folder / "val" / f"{record.id}.png") as unfinished:
                val_page(round_name, record, manifest).save(unfinished)
    write_report_images(REPORT_IMAGES / f"{round_name}.json", shown)


if __name__ == "__main__":
    run_main(main)
