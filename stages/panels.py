"""A round's steps side by side, a page an image: metrics/panels/ROUND/SPLIT/ID.png.

Shown are the first images to validate on, and the training images whose labels most need a look (ranking.csv).

python -m stages.panels ROUND
"""

from __future__ import annotations

from PIL import Image

from stages.common.command_line import round_of_command_line
from stages.common.components import read_selected
from stages.common.dataset import Dataset, Item, item_fine, item_image, item_label, item_predictions
from stages.common.errors import run_stage
from stages.common.files import whole, whole_folder
from stages.common.folders import METRICS, WEAK_LABELS, of_round, pseudo_labels
from stages.common.labels import UNLABELLED, confident_labels
from stages.common.parallel import progress
from stages.common.params import NO_TEACHER, Params
from stages.common.ranking import worst
from stages.pictures.panels import Steps, train_panel, val_panel


def steps(name: str, item: Item, params: Params, classes: int) -> Steps:
    """What the round made of a training image."""
    predicted, confidence = item_predictions(name, item)
    merged, sources = (item_label(pseudo_labels(name) / part, item) for part in ("labels", "sources"))
    return Steps(
        predicted=None if params.rounds[name].teacher == NO_TEACHER else predicted,
        confident=confident_labels(predicted, confidence, params.augment.confidence) != UNLABELLED,
        selected=read_selected(of_round(name, "selected") / f"{item.id}.json", item, classes),
        merged=merged,
        sources=sources,
        student=item_label(METRICS / "predictions" / name / "train", item),
    )


def panel(name: str, split: str, item: Item, data: Dataset, params: Params) -> Image.Image:
    """An image's page."""
    image, fine = item_image(item), item_fine(split, item)
    if split == "train":
        return train_panel(
            image, fine, item_label(WEAK_LABELS, item), name, steps(name, item, params, len(data.classes)), data
        )
    networks = {"network of the weak labels": "teacher", f"student {name}": name}
    predicted = {
        title: item_label(METRICS / "predictions" / network / "val", item) for title, network in networks.items()
    }
    return val_panel(image, fine, predicted, data)


def main() -> None:
    name, params = round_of_command_line(__doc__.splitlines()[0])
    data = Dataset.load()
    few = params.evaluation.panels
    shown = [("train", item) for item in worst(name, data, few)] + [("val", item) for item in data.val[:few]]
    with whole_folder(METRICS / "panels" / name) as folder, progress(len(shown), f"panels {name}") as bar:
        for split, item in shown:
            with whole(folder / split / f"{item.id}.png") as unfinished:
                panel(name, split, item, data, params).save(unfinished)
            bar.update()


if __name__ == "__main__":
    run_stage(main)
