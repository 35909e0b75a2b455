"""The data set card of a round's pseudo-labels, beside them: README.md, croissant.json and images.csv."""

from sesam.artifacts.atomic_io import read_json, write_json, write_text
from sesam.artifacts.manifest import Manifest
from sesam.artifacts.metrics_schema import read_annotation_counts, read_label_metrics
from sesam.errors import SesamError, run_main
from sesam.params import parse_round
from sesam.paths import EMBEDDINGS, METRICS, pseudo_label_dir
from sesam.reporting.card import readme
from sesam.reporting.card_data import CardData, images_csv
from sesam.reporting.croissant import croissant
from sesam.reporting.git import code_version


def main() -> None:
    round_name, params = parse_round(__doc__)
    manifest, folder = Manifest.load(), pseudo_label_dir(round_name)
    metrics = read_label_metrics(METRICS / "labels" / f"{round_name}.json", manifest.classes)
    shapes = read_annotation_counts(METRICS / "annotations.json")
    index = EMBEDDINGS.with_suffix(".json")
    try:
        sam_sha256 = str(read_json(index)["weights"])
    except (KeyError, TypeError):
        raise SesamError(f"{index} is not from this run. Run `dvc repro`.") from None
    card_data = CardData(manifest, round_name, params, metrics, sam_sha256, code_version(), shapes)
    text, description = readme(card_data), croissant(card_data)
    write_text(folder / "README.md", text)
    write_json(folder / "croissant.json", description)
    write_text(folder / "images.csv", images_csv(manifest, params.dataset.root))
    print(f"card {round_name}: {folder / 'README.md'}")


if __name__ == "__main__":
    run_main(main)
