"""What README and docs tell to run runs, and what they name is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, checked_out, edit_params, sh, write_params
from dvc.utils.hydra import apply_overrides
from PIL import Image

from sesam.artifacts.label_png import read_label
from sesam.demo.classes import CLASSES
from sesam.demo.scenes import draw_scene
from sesam.params import load_params
from sesam.presets import load_preset
from sesam.weak import weak_label

DOCUMENTS = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
NOT_HERE = ("a GPU", "a data set", "a network", "a server", "a bucket")  # what a machine for the tests may not have
ELSEWHERE = {  # commands of the documents that other tests are of
    "make demo": "dvc repro and dvc metrics show",
    "make test": "these tests",
    "source .venv/bin/activate": "in which they run",
    "python -m sesam.cli.export r2 --to cvat --out to_do": "test_export.py",
    "mv corrected.xml data/corrections/": "test_export.py",
}


def commands(document: str) -> list[tuple[str, str | None]]:
    """Every line of every block of commands, and what the comment beside it says that it needs."""
    found = []
    for kind, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", (ROOT / document).read_text(), re.M | re.S):
        for line in block.splitlines() if not kind else ():
            command, _, comment = line.strip().partition("  #")
            needs = re.search("needs (.*)", comment)
            found.append((command.strip(), needs[1] if needs else None))
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, with photographs and annotators' PNGs where docs/lab.md has them."""
    folder = checked_out(tmp_path_factory.mktemp("lab") / "sesam")
    weak = load_preset(ROOT / "presets/demo.yaml").weak_labels
    for number in range(4):
        scene = draw_scene((6, number))
        split = "val" if number == 3 else "train"
        kinds = {f"mine/images/{split}": scene.image}
        kinds |= {"mine/labels/val": scene.labels} if split == "val" else {"annotated": weak_label(scene.labels, weak)}
        for kind, pixels in kinds.items():
            path = folder / f"data/raw/{kind}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / ".gitignore").write_text("/data/raw/mine\n/data/raw/annotated\n")
    sh("git", "init", "-q", cwd=folder)
    sh("git", "add", "-A", cwd=folder)
    sh("git", "commit", "-qm", "a clone", cwd=folder)
    return folder


def as_the_lab_sets_it(folder: Path) -> None:
    """What step 3 tells to set, as small as a test can be."""
    small = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
    groups = {group: small[group] for group in ("network", "teacher", "student", "components", "sam")}
    edit_params(
        folder,
        **groups,
        dataset__root=str(folder / "data/raw/mine"),
        dataset__classes=list(CLASSES),
        dataset__palette=None,
        weak_labels__source=str(folder / "data/raw/annotated"),
        rounds={"r1": {"teacher": "none", "fill_confident": False}},
        runtime__num_workers=1,
    )
    for one in ("teacher", "student"):
        edit_params(folder, **{f"{one}__iterations": 2, f"{one}__batch": 2, f"{one}__crop": [64, 64]})
    sh("git", "commit", "-qam", "our own", cwd=folder)


def wait_for_the_queue(folder: Path) -> None:
    end = time.time() + 1800
    while re.search("Running|Queued", said := sh("dvc", "queue", "status", cwd=folder)):
        assert time.time() < end, said
        time.sleep(1)
    assert said.count("Success") == 1, said


def test_the_tutorial_from_the_first_command_to_the_last(lab: Path, tmp_path: Path) -> None:
    lines = [command for command, needs in commands("docs/lab.md") if not (needs and needs.startswith(NOT_HERE))]
    group = subprocess.run(["id", "-gn"], capture_output=True, text=True, check=True).stdout.strip()
    places = {
        "chgrp lab": f"chgrp {group}",
        "/lab/git/sesam": str(lab),
        "/lab": str(tmp_path),
        " ID ": " 0 ",
        "FOLDER": "data/raw/mine/images/val",
        "pseudo_labels/r2": "pseudo_labels/r1",
        "-S sampling.num_points=7": "-S report.num_images=2",  # which repeats pictures alone
    }
    for line in lines:
        if line.startswith("dvc exp run -S ") or "--name n3" in line:
            continue  # the first of the queue is one, and test_dag.py has another
        command = re.sub("|".join(places), lambda told: places[told[0]], line)
        where = lab
        if line.startswith("dvc import"):
            where = tmp_path / "third"
            where.mkdir()
            sh("git", "init", "-q", cwd=where)
            sh("dvc", "init", "-q", cwd=where)
        said = sh("bash", "-c", command, cwd=where)
        if line.startswith("cp presets/folder.yaml"):
            as_the_lab_sets_it(lab)
        if line == "dvc queue start":
            wait_for_the_queue(lab)
        if line.startswith("dvc exp show"):
            said = sh("bash", "-c", f"COLUMNS=120 {command}", cwd=lab)
            assert "n7" in said
            assert max(map(len, said.splitlines())) <= 120 and "…" not in said  # readable
        if line.startswith("dvc exp apply"):
            assert load_params(lab / "params.yaml").report.num_images == 2
    assert (lab / "metrics/report.html").stat().st_size > 4e6
    fine = lab / "data/raw/mine/labels/val/3.png"
    assert read_label(lab / "labeled/labels/3.png").shape == read_label(fine).shape
    imported = tmp_path / "third/r1/labels/0.png"
    assert imported.read_bytes() == (lab / "data/pseudo_labels/r1/labels/0.png").read_bytes()


def test_two_users_of_one_cache(lab: Path, tmp_path: Path) -> None:
    """Links to files that nobody writes to: a stage that runs again leaves the other's labels as they are."""
    cache = sh("dvc", "cache", "dir", cwd=lab).strip()
    label = "data/pseudo_labels/r1/labels/0.png"
    assert (lab / label).is_symlink() and not (lab / label).stat().st_mode & 0o222
    sh("git", "clone", "-q", str(lab), "other", cwd=tmp_path)
    other = tmp_path / "other"
    for line in ("dvc config --local cache.shared group", "dvc config --local cache.type symlink"):
        sh(*shlex.split(line), cwd=other)
    sh("dvc", "cache", "dir", "--local", cache, cwd=other)
    sh("dvc", "checkout", cwd=other)
    before = (lab / label).read_bytes()
    assert (other / label).read_bytes() == before and (other / label).resolve() == (lab / label).resolve()
    edit_params(other, selection__max_conflict=0.0, selection__tau_weak=1.0)
    assert "Running stage 'merge_labels@r1'" in sh("dvc", "repro", "merge_labels@r1", cwd=other)
    assert (lab / label).read_bytes() == before
    assert "changed outs" not in sh("dvc", "status", cwd=lab)


def test_every_command_is_run_or_says_what_it_needs() -> None:
    run = {command for command, _ in commands("docs/lab.md")}
    untold = [
        f"{document}: {command}"
        for document in DOCUMENTS
        for command, needs in commands(document)
        if command not in run | ELSEWHERE.keys() | {"dvc metrics show", "dvc plots show"}
        and not command.startswith("dvc exp run -S ")  # the next test is of what they set
        and not (needs and needs.startswith(NOT_HERE))
    ]
    assert untold == []


def overrides() -> list[list[str]]:
    """What the documents give to `dvc exp run -S`."""
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for place in re.findall(r"`([^`\n]*-S [^`\n]*)`", text) + re.findall(r"^ *(dvc exp run .*)$", text, re.M):
            words = shlex.split(place, comments=True)
            found.append([words[k + 1] for k, word in enumerate(words) if word == "-S"])
    return found


@pytest.mark.parametrize("changes", overrides(), ids=" ".join)
def test_what_experiments_set_is_a_param(changes: list[str], tmp_path: Path) -> None:
    write_params(tmp_path, "demo")
    apply_overrides(tmp_path / "params.yaml", changes)
    load_params(tmp_path / "params.yaml")


def test_keys_of_params_that_are_named_are_there() -> None:
    params = json.loads(load_preset(ROOT / "presets/demo.yaml").model_dump_json())
    missing = []
    for document in DOCUMENTS:
        for name in re.findall(r"`([a-z_]+(?:\.[a-z_0-9*]+)+)(?:[=:][^`]*)?`", (ROOT / document).read_text()):
            first, *others = name.split(".")
            group = params.get(first)
            for part in others if isinstance(group, dict) else ():
                group = next(iter(group.values())) if part == "*" and isinstance(group, dict) else group
                if part != "*" and not (isinstance(group, dict) and part in group):
                    missing.append(f"{document}: {name}")
                    break
                group = group if part == "*" else group[part]
    assert missing == []


def test_what_is_named_is_there() -> None:
    lost = []
    for document in DOCUMENTS:
        text, here = (ROOT / document).read_text(), (ROOT / document).parent
        links = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
        lost += [f"{document}: {target}" for target in links if not (here / target).exists()]
        files = re.findall(r"`((?:stages|tests|benchmarks|presets|docs)/[\w/.]*\w)`", text)
        lost += [f"{document}: {name}" for name in files if "NAME" not in name and not (ROOT / name).exists()]
    assert lost == []
