"""Paths of the artifacts, as in dvc.yaml."""

from pathlib import Path

MANIFEST = Path("data/dataset")
FINE_LABELS = Path("data/fine")
WEAK_LABELS = Path("data/weak")
SUPERVISION = Path("data/supervision.json")
CORRECTIONS = Path("data/corrections")  # of pseudo-labels
EMBEDDINGS = Path("data/embeddings")
METRICS = Path("metrics")
REPORT_IMAGES = METRICS / "report_images"
RANKING = "ranking.csv"  # in a round's pseudo_label_dir


def round_dir(round_name: str, artifact: str) -> Path:
    """A round's predictions, prompts, masks or selected."""
    return Path("data/rounds", round_name, artifact)


def pseudo_label_dir(round_name: str) -> Path:
    """A round's data set: labels, sources, the card and the ranking."""
    return Path("data/pseudo_labels", round_name)


def network_dir(name: str) -> Path:
    """A trained network: "baseline", trained on the weak labels, or a round's student, by the round's name."""
    return Path("models", name)


def training_log_dir(name: str) -> Path:
    """The training log of `network_dir(name)`."""
    return METRICS / "training" / name
