"""Commands in README and docs run, what they name exists, and no page is over its size."""

import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, checked_out, edit_params, sh, write_params
from dvc.utils.hydra import apply_overrides
from PIL import Image

from sesam.demo.classes import CLASSES
from sesam.demo.scenes import draw_scene
from sesam.params import flatten, load_params
from sesam.presets import load_preset
from sesam.weak import weak_label

PATHS = ("README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md"))))
GENERATED = [
    f"docs/{p}.md" for p in ("reference/params", "reference/cli", "results/demo", "results/idd", "results/camvid")
]
PAGES = {path: (ROOT / path).read_text() for path in PATHS if path not in GENERATED}
WALKTHROUGH = ("docs/getting-started.md", "docs/how-to/experiments.md", "docs/how-to/share.md")
CHECKED_ELSEWHERE = (
    "make ",
    "source ",
    "dvc repro",
    "dvc exp run -S ",
    "sesam ",
    "mv corrected.xml ",
    "git add data/corr",
)


def read_commands(page: str) -> list[str]:
    """Each line of the page's code blocks without a language, unless its comment says what it needs."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", PAGES[page], re.M | re.S)
    lines = [line.strip().partition("  #") for language, block in blocks if not language for line in block.splitlines()]
    return [command.strip() for command, _, comment in lines if "needs " not in comment]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, with photographs and annotators' PNGs where docs/getting-started.md has them."""
    folder = checked_out(tmp_path_factory.mktemp("docs") / "sesam")
    for number, split in enumerate(("train", "train", "train", "val")):
        scene = draw_scene((6, number))
        weak = weak_label(scene.labels, load_preset(ROOT / "presets/demo.yaml").weak_labels)
        labels = {"mine/labels/val": scene.labels} if split == "val" else {"annotated": weak}
        for directory, pixels in (labels | {f"mine/images/{split}": scene.image}).items():
            path = folder / f"data/raw/{directory}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    write_params(folder)
    (folder / ".gitignore").write_text("/data/raw/mine\n/data/raw/annotated\n")
    sh("git", "init", "-q", cwd=folder)
    commit_all(folder)
    return folder


def commit_all(folder: Path) -> None:
    sh("git", "add", "-A", cwd=folder)
    sh("git", "commit", "--allow-empty", "-qm", "all", cwd=folder)


def set_small_params(folder: Path) -> None:
    """What step 2 of the page sets, and a run as small as possible."""
    small = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
    small["schedule"] |= {"max_iters": 2, "batch_size": 2, "crop_size": [64, 64]}
    groups = ("network", "schedule", "sam")
    edit_params(
        folder,
        **{f"{group}__{key}": value for group in groups for key, value in small[group].items()},
        dataset__root=str(folder / "data/raw/mine"),
        weak_labels__source=str(folder / "data/raw/annotated"),
        rounds={"r1": {"teacher": "none", "fill_confident": False}},
        runtime__num_workers=1,
    )


def test_walkthrough_from_first_to_last_command(workspace: Path, tmp_path: Path) -> None:
    replacements = {
        "chgrp lab": "chgrp "
        + subprocess.run(["id", "-gn"], capture_output=True, text=True, check=True).stdout.strip(),
        "/lab/git/sesam": str(workspace),
        "/lab": str(tmp_path),
        " ID ": " 0 ",
        "FOLDER": "data/raw/mine/images/val",
        "road,car": ",".join(CLASSES),
        "r2": "r1",
    }
    # experiments are test_dag's; the queue is DVC's, and its start takes a minute
    skipped = ("source ", "pip ", "dvc exp ", "dvc queue ")
    third = tmp_path / "third"  # a project without SeSAM
    third.mkdir()
    commands = [line for page in WALKTHROUGH for line in read_commands(page) if not line.startswith(skipped)]
    for line in commands:
        command = re.sub("|".join(replacements), lambda match: replacements[match[0]], line)
        if line.startswith("dvc import"):
            command = f"cd {third} && git init -q && dvc init -q && {command}"
        sh("bash", "-c", f"export COLUMNS=120; {re.sub('^sesam ', 'python -m sesam ', command)}", cwd=workspace)
        if line.startswith("sesam init"):
            set_small_params(workspace)
            commit_all(workspace)
    assert (workspace / "metrics/report.html").stat().st_size > 4e6
    assert (workspace / "labeled/labels/3.png").exists()
    label = "r1/labels/0.png"
    assert (third / label).read_bytes() == (workspace / "data/pseudo_labels" / label).read_bytes()
    check_shared_cache(workspace, tmp_path)


def check_shared_cache(workspace: Path, tmp_path: Path) -> None:
    """Stages of another clone with the same cache never write through its links."""
    cache, label = sh("dvc", "cache", "dir", cwd=workspace).strip(), "data/pseudo_labels/r1/labels/0.png"
    assert (workspace / label).is_symlink() and not (workspace / label).stat().st_mode & 0o222
    other = tmp_path / "other"
    sh("git", "clone", "-q", str(workspace), str(other), cwd=tmp_path)
    for option in ("cache.shared group", "cache.type symlink", f"cache.dir {cache}"):
        sh("dvc", "config", "--local", *option.split(), cwd=other)
    sh("dvc", "checkout", cwd=other)
    before = (workspace / label).read_bytes()
    assert (other / label).read_bytes() == before and (other / label).resolve() == (workspace / label).resolve()
    edit_params(other, selection__max_conflict=0.0, selection__tau_weak=1.0)
    assert "Running stage 'merge_labels@r1'" in sh("dvc", "repro", "merge_labels@r1", cwd=other)
    assert (workspace / label).read_bytes() == before
    assert "changed outs" not in sh("dvc", "status", cwd=workspace)


@pytest.mark.parametrize("page", sorted(PAGES.keys() - set(WALKTHROUGH)))
def test_commands_are_run_or_say_what_they_need(page: str) -> None:
    assert [command for command in read_commands(page) if not command.startswith(CHECKED_ELSEWHERE)] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_sesam_fit_its_parser(page: str) -> None:
    from sesam.cli.main import build_parser

    inline = re.findall(r"`(sesam \w+ [A-Za-z-][^`\n]*)`", PAGES[page])
    for command in [*inline, *(line for line in read_commands(page) if line.startswith("sesam "))]:
        build_parser().parse_args(shlex.split(command)[1:])  # SystemExit for a wrong option


def overrides() -> list[list[str]]:
    """What the pages give to `dvc exp run -S`."""
    pattern = r"`([^`\n]*-S [^`\n]*)`|^ *(dvc exp run .*)$"
    commands = ["".join(groups) for text in PAGES.values() for groups in re.findall(pattern, text, re.M)]
    words = [shlex.split(command, comments=True) for command in commands]
    return [[after for option, after in pairwise(line) if option == "-S"] for line in words]


@pytest.mark.parametrize("changes", overrides(), ids=" ".join)
def test_overrides_fit_the_schema(changes: list[str], tmp_path: Path) -> None:
    write_params(tmp_path, "demo")
    apply_overrides(tmp_path / "params.yaml", changes)
    load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("page", PAGES)
def test_named_params_exist(page: str) -> None:
    params = flatten(load_preset(ROOT / "presets/demo.yaml").model_dump(mode="json"))
    groups = {key.split(".")[0] for key in params}
    names = re.findall(r"`([a-z_]+(?:\.[a-z_0-9*]+)+)(?:[=:][^`]*)?`", PAGES[page])
    keys = [name.replace("*", "r1") for name in names if name.split(".")[0] in groups]
    assert [key for key in keys if not any(f"{known}.".startswith(f"{key}.") for known in params)] == []


@pytest.mark.parametrize("page", PATHS)
def test_links_and_named_files_exist(page: str) -> None:
    text, missing = (ROOT / page).read_text(), []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        linked = (ROOT / page).parent / target if target else ROOT / page
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M) if anchor and linked.is_file() else []
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        if "://" not in target and (not linked.exists() or (anchor and anchor not in anchors)):
            missing.append(f"{target}#{anchor}")
    files = re.findall(r"`((?:sesam|stages|tools|tests|benchmarks|presets|docs|examples)/[\w/.]*\w)`", text)
    assert missing + [file for file in files if "NAME" not in file and not (ROOT / file).exists()] == []


def test_pages_are_short_together() -> None:
    assert sum(len(text.split()) for page, text in PAGES.items() if page != "CONTRIBUTING.md") <= 8500
