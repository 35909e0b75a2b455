"""What a colleague needs to use a round's pseudo-labels: README.md, croissant.json and images.csv beside them.

python -m stages.card ROUND

README.md is for people, croissant.json the same for programs (MLCommons' Croissant 1.0, JSON-LD), images.csv says which
image each label is of, by its path in the data set and its SHA-256.
"""

from __future__ import annotations

from sesam.artifacts.atomic_io import read_json, write_json, write_text
from sesam.artifacts.manifest import Dataset
from sesam.artifacts.metrics_schema import read_label_metrics
from sesam.errors import SesamError, run_main
from sesam.params import parse_round
from sesam.paths import EMBEDDINGS, METRICS, pseudo_label_dir
from sesam.reporting.card import readme
from sesam.reporting.card_data import CardData, code_version, images_csv
from sesam.reporting.croissant import croissant


def main() -> None:
    name, params = parse_round(__doc__.splitlines()[0])
    data, folder = Dataset.load(), pseudo_label_dir(name)
    judged = read_label_metrics(METRICS / "labels" / f"{name}.json", data.classes)
    index = EMBEDDINGS.with_suffix(".json")
    try:
        weights = str(read_json(index)["weights"])
    except (KeyError, TypeError):
        raise SesamError(f"{index} is not of this run. Run `dvc repro`.") from None
    facts = CardData(data, name, params, judged, weights, code_version())
    texts = readme(facts), croissant(facts)
    write_text(folder / "README.md", texts[0])
    write_json(folder / "croissant.json", texts[1])
    write_text(folder / "images.csv", images_csv(data, params.dataset.root))
    print(f"card {name}: {folder / 'README.md'}")


if __name__ == "__main__":
    run_main(main)
