"""The figures of the ablations, per row, seed and version of the code: docs/results/NAME.json.

DVC keeps experiments in the repository in which they ran. With their figures committed, a colleague or another machine
need not run them again.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from dvc.utils.hydra import apply_overrides

from benchmarks.ablation_rows import LABELS_ALONE, Row
from sesam.artifacts.atomic_io import json_digest, write_json
from sesam.errors import SesamError

RESULTS = Path("docs/results/demo.json")
PRESENTING = ("panels", "summarize", "report", "card")  # stages that show figures and make none
WEIGHTS = "sesam/sam/bundled_sam.pth"
Version = tuple[str, str]  # commit, digest of the params before the row's changes
Figures = dict[str, list[float | None]]  # by name, in the order of the seeds


@dataclass(frozen=True)
class Result:
    """One experiment. digest: of its code and params. commit: the last that changed this code.

    base: digest of the params without the row's changes and the seed. figures: mIoU per network; "rN precision" and
    the like of each round's labels, "rN IoU road" per class; "max_iters" of a student; "images fine" and the like, the
    training images by kind.
    """

    seed: int
    commit: str
    base: str
    digest: str
    figures: dict[str, float | None]

    @property
    def version(self) -> Version:
        return self.commit, self.base


class Results:
    """All results by row, and the file that keeps them."""

    def __init__(self, by_row: dict[str, list[Result]], path: Path = RESULTS) -> None:
        self.by_row, self.path = by_row, path

    @classmethod
    def load(cls, path: Path = RESULTS) -> Results:
        """The results in a file, none if it does not exist; SesamError if it cannot be read."""
        if not path.exists():
            return cls({}, path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            by_row = {row: [Result(**result) for result in results] for row, results in raw.items()}
        except (ValueError, TypeError, AttributeError) as problem:
            raise SesamError(f"{path} cannot be read ({problem}). Restore it with git, or delete it.") from None
        return cls(by_row, path)

    def save(self) -> None:
        ordered = {
            row: [asdict(result) for result in sorted(results, key=lambda result: (result.commit, result.seed))]
            for row, results in sorted(self.by_row.items())
        }
        write_json(self.path, ordered)

    def collect(self, rows: Iterable[Row]) -> None:
        """Add the finished experiments of this repository; of one version and seed the first stays."""
        for row in rows:
            for base, seed, commit in experiments(row):
                params = params_of(commit)
                try:
                    expected = changed_params(base, (*row.changes, f"seed={seed}"))
                except Exception:  # Hydra's, of many kinds: that commit's params had no such key
                    continue
                if params == expected:
                    without_seed = json_digest({key: value for key, value in params_of(base).items() if key != "seed"})
                    figures = figures_of(commit, row)
                    self.add(row, Result(int(seed), last_change(base), without_seed, digest(base, params), figures))

    def add(self, row: Row, result: Result) -> None:
        known = self.by_row.setdefault(row.name, [])
        if (result.seed, result.version) not in {(other.seed, other.version) for other in known}:
            known.append(result)

    def is_current(self, row: Row, seed: int) -> bool:
        """Whether a row has run with this seed and today's code and params."""
        return any(result.digest == current_digest(row, seed) for result in self.by_row.get(row.name, ()))

    def version_of(self, rows: Iterable[Row]) -> Version | None:
        """The version for a table: the newest that has at least half as many rows as any; None if no row has run."""
        counts = Counter(v for row in rows for v in {result.version for result in self.by_row.get(row.name, ())})
        enough = [version for version, count in counts.items() if 2 * count >= max(counts.values())]
        return max(enough, key=lambda version: age(version[0]), default=None)

    def figures(self, row: Row, version: Version | None) -> Figures:
        """A row's figures at one version, with its seeds; empty if it has not run."""
        results = [result for result in self.by_row.get(row.name, ()) if result.version == version]
        found: Figures = {}
        for result in sorted(results, key=lambda result: result.seed):
            for name, value in {**result.figures, "seed": result.seed}.items():
                found.setdefault(name, []).append(value)
        return found


def experiments(row: Row) -> list[tuple[str, str, str]]:
    """The experiments of a row: the commit that each ran at, its seed, its own commit."""
    refs = git("for-each-ref", "--format=%(refname) %(objectname)", f"refs/exps/*/*/{row.name}-s*").splitlines()
    split = [line.split() for line in refs]
    found = [("".join(ref.split("/")[2:4]), ref.rpartition("-s")[2], commit) for ref, commit in split]
    return [experiment for experiment in found if experiment[1].isdigit()]


def figures_of(commit: str, row: Row) -> dict[str, float | None]:
    """The figures of a finished experiment."""
    params = params_of(commit)
    figures: dict[str, float | None] = {
        "max_iters": params["student"].get("max_iters") or params["schedule"]["max_iters"]
    }
    rounds = [row.target.partition("@")[2]] if row.target else [*params["rounds"]]  # a target's round alone
    networks = rounds if row.target else ["baseline", *rounds]
    if row.target != LABELS_ALONE:
        for name in networks:
            figures[name] = read(commit, f"metrics/networks/{name}.json")["mIoU"]
    for name in rounds:
        metrics = read(commit, f"metrics/labels/{name}.json")
        scores = metrics["scores"]["pseudo_labels"]
        figures |= {f"{name} {measure}": scores[measure] for measure in ("precision", "recall", "mIoU")}
        figures |= {f"{name} IoU {k}": scores["IoU"] for k, scores in metrics["class_scores"]["pseudo_labels"].items()}
        images = metrics.get("images", {})  # experiments of older code have none
        figures |= {f"images {kind}": count for kind, count in images.items()}
    return figures


def git(*command: str, check: bool = True) -> str:
    done = subprocess.run(("git", *command), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SesamError(f"git {command[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip() if done.returncode == 0 else ""


def read(commit: str, path: str) -> dict[str, Any]:
    return json.loads(git("show", f"{commit}:{path}"))


def age(commit: str) -> int:
    """Number of commits up to a given one; 0 if it is unknown here."""
    return int(git("rev-list", "--count", commit, check=False) or 0)


def stages_and_code(commit: str) -> tuple[dict[str, Any], list[str]]:
    """What decides a commit's results beside params: its stages, and the code that dvc.yaml lists for them."""
    listed = yaml.safe_load(git("show", f"{commit}:dvc.yaml", check=False) or "{}").get("stages", {})
    stages = {name: stage.get("do", stage) for name, stage in listed.items() if name not in PRESENTING}
    deps = {path for stage in stages.values() for path in stage.get("deps", ())}
    return stages, [*sorted(path for path in deps if path.startswith(("sesam/", "stages/"))), WEIGHTS]


@cache
def last_change(commit: str) -> str:
    """The last commit, up to a given one, that changed what decides a result beside params."""
    return git("log", "-1", "--format=%h", commit, "--", "dvc.yaml", *stages_and_code(commit)[1])


@cache
def code_of(commit: str) -> dict[str, str]:
    """`stages_and_code`, the files by git's hashes."""
    stages, paths = stages_and_code(commit)
    hashes = git("rev-parse", *(f"{commit}:{path}" for path in paths), check=False).splitlines()
    return {"stages": json.dumps(stages), **dict(zip(paths, hashes, strict=False))}


def digest(commit: str, params: dict[str, Any]) -> str:
    """Digest of a commit's code and of params."""
    return json_digest(code_of(commit), params)


def current_digest(row: Row, seed: int) -> str:
    """The digest that an experiment would have today."""
    return digest("HEAD", changed_params("HEAD", (*row.changes, f"seed={seed}")))


def _decisive(text: str) -> dict[str, Any]:
    """The text of a params.yaml as groups, without `runtime`, which changes no result."""
    return {group: value for group, value in yaml.safe_load(text).items() if group != "runtime"}


def params_of(commit: str) -> dict[str, Any]:
    return _decisive(git("show", f"{commit}:params.yaml"))


@cache
def changed_params(commit: str, changes: tuple[str, ...]) -> dict[str, Any]:
    """A commit's params as `dvc exp run -S` changes them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        path.write_text(git("show", f"{commit}:params.yaml"), encoding="utf-8")
        apply_overrides(path, list(changes))
        return _decisive(path.read_text(encoding="utf-8"))
