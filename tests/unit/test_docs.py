"""Commands in README and docs run, what they name exists, and no page is over its size."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import ROOT, write_params
from dvc.utils.hydra import apply_overrides

from sesam.params import flatten, load_params
from sesam.presets import load_preset

PATHS = ("README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md"))))
GENERATED = [
    *(f"docs/reference/{p}.md" for p in ("params", "cli", "networks")),
    *(f"docs/results/{p}.md" for p in ("demo", "idd", "label-rules")),
]
PAGES = {path: (ROOT / path).read_text() for path in PATHS if path not in GENERATED}
WALKTHROUGH = ("docs/getting-started.md", "docs/how-to/experiments.md", "docs/how-to/share.md")  # run by test_dag.py
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
