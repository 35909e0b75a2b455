"""What the round's teacher sees in every training image: its classes P and its confidence c.

python -m stages.pseudo_labels ROUND
"""

from __future__ import annotations

import sys
from pathlib import Path

from stages.common import labels
from stages.common.dataset import Dataset
from stages.common.device import pick_device
from stages.common.errors import run_stage
from stages.common.files import code_of, fingerprint, sha256, whole_folder
from stages.common.labels import read_image, write_gray, write_label
from stages.common.parallel import progress
from stages.common.params import round_of_command_line
from stages.segmentation import network
from stages.segmentation.network import CONFIG, WEIGHTS, load_network, predict


def main() -> None:
    name, params = round_of_command_line(__doc__.splitlines()[0])
    teacher = Path(params.rounds[name].teacher)
    device = pick_device(params.runtime)
    dataset = Dataset.load()
    model = load_network(teacher, device)
    weights = [sha256(teacher / file) for file in (CONFIG, WEIGHTS)]
    images = [(item.id, item.sha256) for item in dataset.train]
    made_of = fingerprint(weights, images, dataset.palette, code_of(sys.modules[__name__], network, labels))
    with (
        whole_folder(Path("data/rounds", name, "predictions"), made_of) as out,
        progress(len(dataset.train), f"predictions {name}") as bar,
    ):
        for item in dataset.train:
            last = out / "confidence" / f"{item.id}.png"
            if not last.exists():
                classes, confidence = predict(model, read_image(Path(item.image)), device)
                write_label(out / "labels" / f"{item.id}.png", classes, dataset.palette)
                write_gray(last, confidence)
            bar.update()


if __name__ == "__main__":
    run_stage(main)
