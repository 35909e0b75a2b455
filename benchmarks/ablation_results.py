"""What the ablations found: docs/ablations.json, of each row and seed the figures, and what they were made of.

DVC's experiments live in the repository in which they were run. Their figures, committed, tell a colleague or another
machine what need not be run again.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from dvc.utils.hydra import apply_overrides

from benchmarks.ablation_rows import Row
from sesam.artifacts.atomic_io import json_digest, write_json
from sesam.errors import SesamError

RESULTS = Path("docs/ablations.json")
PRESENTING = ("panels", "summarize", "report", "card")  # stages that show what others found: no figure is theirs
Figures = dict[str, list[Any]]  # by name, of every seed


@dataclass(frozen=True)
class Result:
    """Of a row and a seed. made_of: digest of the code and params. commit: the last that changed this code.

    figures: mIoU of each network by name, and each round's merged labels, as rN precision, and as rN IoU road by class;
    iterations of a student. params: digest of those without the seed. base: of those that the row changed, "" in older
    results.
    """

    made_of: str
    commit: str
    figures: dict[str, float | None]
    params: str = ""
    base: str = ""


class Results:
    """All results, by row and seed, and the file that keeps them."""

    def __init__(self, by_row: dict[str, dict[int, Result]], path: Path = RESULTS) -> None:
        self.by_row, self.path = by_row, path

    @classmethod
    def load(cls, path: Path = RESULTS) -> Results:
        """Those of a file; SesamError if it cannot be read."""
        if not path.exists():
            return cls({}, path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            found = {row: {int(seed): Result(**one) for seed, one in seeds.items()} for row, seeds in raw.items()}
        except (ValueError, TypeError, AttributeError) as problem:
            raise SesamError(f"{path} cannot be read ({problem}). Take it from git, or delete it.") from None
        return cls(found, path)

    def save(self) -> None:
        write_json(
            self.path,
            {
                row: {str(seed): asdict(one) for seed, one in sorted(seeds.items())}
                for row, seeds in sorted(self.by_row.items())
            },
        )

    def collect(self, rows: list[Row]) -> None:
        """Add the finished experiments of this repository; what was run with the code and params of now stays.

        So does, where nothing was, what was run with newer code than the experiment's.
        """
        for row in rows:
            for base, seed, commit in experiments(row):
                if not seed.isdigit() or self.is_current(row, int(seed)):
                    continue
                params = params_of(commit)
                try:
                    meant = changed_params(base, (*row.changes, f"seed={seed}"))
                except Exception:  # Hydra's, of many kinds: that commit's params had no such key
                    continue
                made = digest(base, params)
                kept = self.by_row.get(row.name, {}).get(int(seed))
                newer = kept and made != now(row, int(seed)) and is_beyond(kept.commit, base)
                if params == meant and not newer:
                    digests = unseeded(params), unseeded(params_of(base))
                    found = Result(made, last_change(base), figures_of(commit, row), *digests)
                    self.by_row.setdefault(row.name, {})[int(seed)] = found

    def is_current(self, row: Row, seed: int) -> bool:
        """Whether a row has been run with this seed, and the code and params of now."""
        found = self.by_row.get(row.name, {}).get(seed)
        return found is not None and found.made_of == now(row, seed)

    def chosen(self, row: Row) -> dict[int, Result]:
        """A row's results of now; if there is none, of the earlier code and params that have most, never of two."""
        seeds = dict(sorted(self.by_row.get(row.name, {}).items()))
        if current := {seed: one for seed, one in seeds.items() if self.is_current(row, seed)}:
            return current
        made = [(one.commit, one.params) for one in seeds.values()]
        return {seed: one for seed, one in seeds.items() if (one.commit, one.params) == max(made, key=made.count)}

    def figures(self, row: Row) -> Figures:
        """Those of the chosen results, and of each its seed, commit and base, and whether it is current."""
        found: Figures = {}
        for seed, one in self.chosen(row).items():
            about = {"seed": seed, "commit": one.commit, "base": one.base, "current": self.is_current(row, seed)}
            for name, value in {**one.figures, **about}.items():
                found.setdefault(name, []).append(value)
        return found


def experiments(row: Row) -> list[tuple[str, str, str]]:
    """Of each experiment of a row: the commit it was run at, its seed, its own commit; in the order of history."""
    found = []
    for line in git("for-each-ref", "--format=%(refname) %(objectname)", f"refs/exps/*/*/{row.name}-s*").splitlines():
        ref, commit = line.split()
        found.append(("".join(ref.split("/")[2:4]), ref.rpartition("-s")[2], commit))
    # a commit has more behind it than any of its ancestors
    return sorted(found, key=lambda one: int(git("rev-list", "--count", one[0], check=False) or 0))


def is_beyond(commit: str, base: str) -> bool:
    """Whether a commit is known here, and neither `base` nor one of its ancestors."""
    return bool(git("rev-list", "-1", commit, f"^{base}", check=False))


def figures_of(commit: str, row: Row) -> dict[str, float | None]:
    """What a finished experiment found."""
    params = params_of(commit)
    rounds = list(params["rounds"])
    found: dict[str, float | None] = {"iterations": params["student"]["iterations"]}
    if row.target is None:
        summary = read(commit, "metrics/summary.json")
        found |= {name: summary[name] for name in ("teacher", *rounds)}
    for name in rounds:
        judged = read(commit, f"metrics/labels/{name}.json")
        merged = judged["scores"]["merged"]
        found |= {f"{name} {measure}": merged[measure] for measure in ("precision", "recall", "mIoU")}
        found |= {f"{name} IoU {one}": scores["IoU"] for one, scores in judged["classes"]["merged"].items()}
    return found


def git(*command: str, check: bool = True) -> str:
    done = subprocess.run(("git", *command), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SesamError(f"git {command[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip() if done.returncode == 0 else ""


def read(commit: str, path: str) -> dict[str, Any]:
    return json.loads(git("show", f"{commit}:{path}"))


def stages_and_code(commit: str) -> tuple[dict[str, Any], list[str]]:
    """What decides a commit's results besides params: its stages, and the code that dvc.yaml lists for them."""
    listed = yaml.safe_load(git("show", f"{commit}:dvc.yaml", check=False) or "{}").get("stages", {})
    stages = {name: stage.get("do", stage) for name, stage in listed.items() if name not in PRESENTING}
    code = sorted(
        {path for stage in stages.values() for path in stage["deps"] if path.startswith(("sesam/", "stages/"))}
    )
    return stages, [*code, "models/bundled_sam.pth"]


@cache
def last_change(commit: str) -> str:
    """The last commit, up to a given one, that changed what decides a result besides params."""
    return git("log", "-1", "--format=%h", commit, "--", "dvc.yaml", *stages_and_code(commit)[1])


@cache
def made_of(commit: str) -> dict[str, str]:
    """`stages_and_code`, the files by git's hashes."""
    stages, paths = stages_and_code(commit)
    hashes = git("rev-parse", *(f"{commit}:{path}" for path in paths), check=False).splitlines()
    return {"stages": json.dumps(stages), **dict(zip(paths, hashes, strict=False))}


def digest(commit: str, params: dict[str, Any]) -> str:
    """Of what decides a result."""
    return json_digest(made_of(commit), params)


def now(row: Row, seed: int) -> str:
    """The digest of what a row would be run with now."""
    return digest("HEAD", changed_params("HEAD", (*row.changes, f"seed={seed}")))


def unseeded(params: dict[str, Any]) -> str:
    """The digest of params but for the seed."""
    return json_digest({group: value for group, value in params.items() if group != "seed"})


def decisive(params: str) -> dict[str, Any]:
    """The text of a params.yaml as groups, without the one that changes no result."""
    return {group: value for group, value in yaml.safe_load(params).items() if group != "runtime"}


def params_of(commit: str) -> dict[str, Any]:
    return decisive(git("show", f"{commit}:params.yaml"))


@cache
def changed_params(commit: str, changes: tuple[str, ...]) -> dict[str, Any]:
    """A commit's params as `dvc exp run -S` changes them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        path.write_text(git("show", f"{commit}:params.yaml"), encoding="utf-8")
        apply_overrides(path, list(changes))
        return decisive(path.read_text(encoding="utf-8"))
