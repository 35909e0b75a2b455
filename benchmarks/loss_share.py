"""How much of a student's score is its loss: fine labels as if they were SAM's, around the weak labels that are there.

    python -m benchmarks.loss_share --seeds 0 1 2     (a training of params.yaml each, after `dvc repro weak_labels`)

A student is trained as in round 1 on labels that no SAM could better: every finely labeled pixel counts as SAM's, what
annotators drew as theirs. Beside it stands the row of fine labels of the ablations, whose loss is a single mean.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from benchmarks.long_runs import ROOT
from sesam.artifacts.atomic_io import read_json, write_text
from sesam.artifacts.label_png import write_label
from sesam.artifacts.manifest import Dataset, load_fine_label, load_label
from sesam.artifacts.sources import NONE, SAM, SOURCE_PALETTE, WEAK
from sesam.labels import IGNORE_INDEX
from sesam.paths import RANKING, WEAK_LABELS


def write_labels(data: Dataset, folder: Path) -> None:
    """Pseudo-labels and their sources of every training image, and the ranking that `evaluate` asks for."""
    for item in data.train:
        fine, weak = load_fine_label("train", item, len(data.classes)), load_label(WEAK_LABELS, item)
        drawn = weak != IGNORE_INDEX
        sources = np.where(drawn, WEAK, np.where(fine != IGNORE_INDEX, SAM, NONE)).astype(np.uint8)
        write_label(folder / f"labels/{item.id}.png", np.where(drawn, weak, fine), data.palette)
        write_label(folder / f"sources/{item.id}.png", sources, SOURCE_PALETTE)
    write_text(folder / RANKING, "id,score\n" + "".join(f"{item.id},0\n" for item in data.train))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["rounds"] = {"r1": {"teacher": "none", "fill_confident": False}}
    environment, scores = os.environ | {"PYTHONPATH": str(ROOT)}, []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for path in ("data/dataset", "data/fine", "data/weak", "data/raw"):
                if Path(path).exists():
                    (folder / path).parent.mkdir(exist_ok=True)
                    (folder / path).symlink_to(Path(path).resolve())
            write_labels(Dataset.load(), folder / "data/pseudo_labels/r1")
            text = yaml.safe_dump(params | {"seed": seed}, sort_keys=False)
            (folder / "params.yaml").write_text(text, encoding="utf-8")
            for stage in ("train_student", "evaluate"):
                command = [sys.executable, "-m", f"stages.{stage}", "r1"]
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{stage} failed:\n{done.stdout}{done.stderr}")
            scores.append(read_json(folder / "metrics/networks/r1.json")["mIoU"])
        print(f"seed {seed}: validation mIoU {scores[-1]:.4f}", flush=True)
    print(f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1) if len(scores) > 1 else 0:.3f}")


if __name__ == "__main__":
    main()
