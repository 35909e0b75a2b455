"""Where artifacts lie, as dvc.yaml names them."""

from __future__ import annotations

from pathlib import Path

MANIFEST = Path("data/dataset")
FINE = Path("data/fine")
WEAK_LABELS = Path("data/weak")
EMBEDDINGS = Path("data/embeddings")
METRICS = Path("metrics")
GALLERY = METRICS / "gallery"
RANKING = "ranking.csv"  # of a round's pseudo-labels, beside them


def round_dir(name: str, part: str) -> Path:
    """A round's predictions, prompts, masks or selected."""
    return Path("data/rounds", name, part)


def pseudo_label_dir(name: str) -> Path:
    """A round's data set: labels, sources, the card and the ranking."""
    return Path("data/pseudo_labels", name)


def network_dir(name: str) -> Path:
    """A trained network: "teacher", of the weak labels, or the student of the round `name`."""
    return Path("models", name)


def training_log_dir(name: str) -> Path:
    """What was logged while `network_dir(name)` was trained."""
    return METRICS / "training" / name
