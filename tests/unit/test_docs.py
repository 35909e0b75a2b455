"""Commands in README and docs run, what they name exists, and no page is over its size."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from itertools import pairwise
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

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = ("reference/params.md", "reference/cli.md", "results/demo.md", "results/idd.md", "results/camvid.md")
HAND_WRITTEN = [page for page in PAGES if not page.as_posix().endswith(GENERATED)]
MAX_WORDS = {
    "README.md": 900,
    "CONTRIBUTING.md": 550,
    "docs/getting-started.md": 600,
    "docs/how-to": 2200,
    "docs/reference": 900,
    "docs/explanation": 1800,
    "docs/results": 2200,
}
WALKTHROUGH = ("docs/getting-started.md", "docs/how-to/experiments.md", "docs/how-to/share.md")
RUN_ELSEWHERE = (
    "make ",
    "source ",
    "dvc exp run -S ",
    "sesam ",
    "mv corrected.xml ",
    "git add data/corrections",
    "dvc repro",
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read_commands(page: Path) -> list[tuple[str, bool]]:
    """Each line of the page's code blocks without a language, and whether its comment says that it needs something."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(), re.M | re.S)
    lines = [line.strip().partition("  #") for language, block in blocks if not language for line in block.splitlines()]
    return [(command.strip(), "needs " in comment) for command, _, comment in lines]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, with photographs and annotators' PNGs where docs/getting-started.md has them."""
    folder = checked_out(tmp_path_factory.mktemp("docs") / "sesam")
    weak_params = load_preset(ROOT / "presets/demo.yaml").weak_labels
    for number, split in enumerate(("train", "train", "train", "val")):
        scene = draw_scene((6, number))
        images = {f"mine/images/{split}": scene.image}
        images |= {"mine/labels/val": scene.labels} if split == "val" else {}
        images |= {"annotated": weak_label(scene.labels, weak_params)} if split == "train" else {}
        for directory, pixels in images.items():
            path = folder / f"data/raw/{directory}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    write_params(folder)
    (folder / ".gitignore").write_text("/data/raw/mine\n/data/raw/annotated\n")
    for command in ("git init -q", "git add -A", "git commit -qm clone"):
        sh(*command.split(), cwd=folder)
    return folder


def shrink(folder: Path) -> None:
    """Set what the page sets, and a run as small as a test can have."""
    small = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
    small["schedule"] |= {"max_iters": 2, "batch_size": 2, "crop_size": [64, 64]}
    changes = {
        f"{group}__{key}": value for group in ("network", "schedule", "sam") for key, value in small[group].items()
    }
    edit_params(
        folder,
        **changes,
        dataset__root=str(folder / "data/raw/mine"),
        weak_labels__source=str(folder / "data/raw/annotated"),
        rounds={"r1": {"teacher": "none", "fill_confident": False}},
        runtime__num_workers=1,
    )
    sh("git", "commit", "-qam", "own data", cwd=folder)


def wait_for_queue(folder: Path) -> None:
    end = time.time() + 600
    while re.search("Running|Queued", status := sh("dvc", "queue", "status", cwd=folder)):
        assert time.time() < end, status
        time.sleep(1)
    assert status.count("Success") == 1, status


def test_walkthrough_from_first_to_last_command(workspace: Path, tmp_path: Path) -> None:
    group = subprocess.run(["id", "-gn"], capture_output=True, text=True, check=True).stdout.strip()
    replacements = {
        "chgrp lab": f"chgrp {group}",
        "/lab/git/sesam": str(workspace),
        "/lab": str(tmp_path),
        " ID ": " 0 ",
        "FOLDER": "data/raw/mine/images/val",
        "road,car": ",".join(CLASSES),
        "r2": "r1",
        "-S sampling.num_points=7": "-S report.num_images=2",  # reruns pictures alone
    }
    skipped = ("source ", "pip ", "dvc exp run -S ", "dvc exp run --queue --name n3")
    for page in WALKTHROUGH:
        for line, needs in read_commands(ROOT / page):
            if needs or line.startswith(skipped):
                continue
            command = re.sub("|".join(replacements), lambda match: replacements[match[0]], line)
            command = re.sub("^sesam ", "python -m sesam ", command)
            cwd = workspace
            if line.startswith("dvc import"):
                (cwd := tmp_path / "third").mkdir()
                sh("git", "init", "-q", cwd=cwd)
                sh("dvc", "init", "-q", cwd=cwd)
            output = sh("bash", "-c", f"export COLUMNS=120; {command}", cwd=cwd)
            if line.startswith("sesam init"):
                shrink(workspace)
            if line.startswith("sesam export"):
                sh("git", "add", "-A", cwd=workspace)
                sh("git", "commit", "-qm", "run", cwd=workspace)
            if line == "dvc queue start":
                wait_for_queue(workspace)
            if line.startswith("dvc exp show"):
                assert "n7" in output and max(map(len, output.splitlines())) <= 120 and "…" not in output
            if line.startswith("dvc exp apply"):
                assert load_params(workspace / "params.yaml").report.num_images == 2
    assert (workspace / "metrics/report.html").stat().st_size > 4e6
    fine = workspace / "data/raw/mine/labels/val/3.png"
    assert read_label(workspace / "labeled/labels/3.png").shape == read_label(fine).shape
    label = "labels/0.png"
    assert (tmp_path / "third/r1" / label).read_bytes() == (workspace / "data/pseudo_labels/r1" / label).read_bytes()


def test_stages_never_write_through_links_of_a_shared_cache(workspace: Path, tmp_path: Path) -> None:
    cache = sh("dvc", "cache", "dir", cwd=workspace).strip()
    label = "data/pseudo_labels/r1/labels/0.png"
    assert (workspace / label).is_symlink() and not (workspace / label).stat().st_mode & 0o222
    sh("git", "clone", "-q", str(workspace), "other", cwd=tmp_path)
    other = tmp_path / "other"
    for option in ("cache.shared group", "cache.type symlink", f"cache.dir {cache}"):
        sh("dvc", "config", "--local", *option.split(), cwd=other)
    sh("dvc", "checkout", cwd=other)
    before = (workspace / label).read_bytes()
    assert (other / label).read_bytes() == before and (other / label).resolve() == (workspace / label).resolve()
    edit_params(other, selection__max_conflict=0.0, selection__tau_weak=1.0)
    assert "Running stage 'merge_labels@r1'" in sh("dvc", "repro", "merge_labels@r1", cwd=other)
    assert (workspace / label).read_bytes() == before
    assert "changed outs" not in sh("dvc", "status", cwd=workspace)


def test_every_command_is_run_or_says_what_it_needs() -> None:
    unchecked = [
        f"{name_of(page)}: {command}"
        for page in HAND_WRITTEN
        if name_of(page) not in WALKTHROUGH
        for command, needs in read_commands(page)
        if not needs and not command.startswith(RUN_ELSEWHERE)
    ]
    assert unchecked == []


def test_commands_of_sesam_fit_its_parser() -> None:
    from sesam.cli.main import build_parser

    for page in HAND_WRITTEN:
        inline = re.findall(r"`(sesam \w+ [^`\n]*)`", page.read_text())
        for command in (*inline, *(line for line, _ in read_commands(page) if line.startswith("sesam "))):
            if command.removeprefix("sesam tile ") not in ("split", "merge", "split|merge"):
                build_parser().parse_args(shlex.split(command)[1:])  # SystemExit for a wrong option


def overrides() -> list[list[str]]:
    """What the pages give to `dvc exp run -S`."""
    commands = []
    for page in HAND_WRITTEN:
        text = page.read_text()
        commands += re.findall(r"`([^`\n]*-S [^`\n]*)`", text) + re.findall(r"^ *(dvc exp run .*)$", text, re.M)
    words = [shlex.split(command, comments=True) for command in commands]
    return [[after for option, after in pairwise(line) if option == "-S"] for line in words]


@pytest.mark.parametrize("changes", overrides(), ids=" ".join)
def test_overrides_fit_the_schema(changes: list[str], tmp_path: Path) -> None:
    write_params(tmp_path, "demo")
    apply_overrides(tmp_path / "params.yaml", changes)
    load_params(tmp_path / "params.yaml")


def test_named_params_exist() -> None:
    params = json.loads(load_preset(ROOT / "presets/demo.yaml").model_dump_json())
    missing = []
    for page in HAND_WRITTEN:
        for name in re.findall(r"`([a-z_]+(?:\.[a-z_0-9*]+)+)(?:[=:][^`]*)?`", page.read_text()):
            group, *keys = name.replace("*", "r1").split(".")
            value = params.get(group)
            for key in keys if isinstance(value, dict) else ():
                if not isinstance(value, dict) or key not in value:
                    missing.append(f"{name_of(page)}: {name}")
                    break
                value = value[key]
    assert missing == []


def test_links_and_named_files_exist() -> None:
    missing = []
    for page in PAGES:
        text = page.read_text()
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
            linked = page.parent / target if target else page
            if "://" in target:
                continue
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M) if anchor and linked.exists() else []
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            if not linked.exists() or (anchor and anchor not in anchors):
                missing.append(f"{name_of(page)}: {target}#{anchor}")
        files = re.findall(r"`((?:sesam|stages|tools|tests|benchmarks|presets|docs|examples)/[\w/.]*\w)`", text)
        missing += [f"{name_of(page)}: {file}" for file in files if "NAME" not in file and not (ROOT / file).exists()]
    assert missing == []


def test_pages_keep_their_size() -> None:
    words = {name_of(page): len(page.read_text().split()) for page in HAND_WRITTEN}
    sums = {place: sum(n for page, n in words.items() if page.startswith(place)) for place in MAX_WORDS}
    assert {place: n for place, n in sums.items() if n > MAX_WORDS[place]} == {}
    assert sum(n for page, n in words.items() if page != "CONTRIBUTING.md") <= 8500
    assert [page for page in words if not page.startswith(tuple(MAX_WORDS))] == []
