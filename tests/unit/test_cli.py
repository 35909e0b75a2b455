"""The command `sesam`: help, messages outside a clone, the generated reference, and what a wheel contains."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import ROOT

from sesam.artifacts.atomic_io import claim_folder, write_text
from sesam.cli.main import COMMANDS, main
from sesam.errors import SesamError
from sesam.git import git
from tools.reference import FOLDER, PAGES


def test_python_m_sesam_runs_without_torch(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from sesam.__main__ import run; run()"
    command = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(re.search(rf"^    {command} ", done.stdout, re.M) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_argument(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    page = (FOLDER / "cli.md").read_text()
    section = page.partition(f"\n## sesam {command}\n")[2].partition("\n## ")[0]
    assert section and "None |" not in section
    assert capsys.readouterr().out.startswith(f"usage: sesam {command}")


@pytest.mark.parametrize(
    "arguments", [("init", "demo"), ("explain", "0"), ("export", "r1", "--format", "coco", "--out", "a")]
)
def test_commands_that_need_the_repository_say_so(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SesamError, match=rf"sesam {arguments[0]} needs \w+\.yaml, .*root of a clone"):
        main(arguments)


def test_a_folder_that_git_distrusts_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"fatal: detected dubious ownership in repository at '{tmp_path}'\nTo add an exception"
    distrust = subprocess.CalledProcessError(128, "git", stderr=said)
    monkeypatch.setattr(subprocess, "run", Mock(side_effect=distrust))
    with pytest.raises(SesamError, match=r"git: fatal: detected dubious ownership.*safe\.directory"):
        git("ls-files", cwd=tmp_path)


def test_a_folder_belongs_to_one_command(tmp_path: Path) -> None:
    claim_folder(tmp_path / "out", "sesam tile merge")
    claim_folder(tmp_path / "out", "sesam tile merge")
    with pytest.raises(SesamError, match="has files that sesam export did not write"):
        claim_folder(tmp_path / "out", "sesam export")
    (tmp_path / "file").touch()
    with pytest.raises(SesamError, match=r"/file is a file. Replace it with a folder"):
        write_text(tmp_path / "file/folder/a.txt", "a")


@pytest.mark.parametrize("name", PAGES)
def test_reference_is_in_step(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name](), "run python -m tools.reference"


def test_wheel_contains_the_data_files_that_code_opens() -> None:
    """Every file of the library that is not Python is in the wheel, and every pattern matches a file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert project["packages"]["find"]["include"] == ["sesam", "sesam.*"]
    patterns = project["package-data"]["sesam"]
    packaged = {pattern: set((ROOT / "sesam").glob(pattern)) for pattern in patterns}
    assert all(packaged.values()), packaged
    files = subprocess.run(["git", "ls-files", "sesam"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    data = {ROOT / name for name in files.splitlines() if not name.endswith(".py") and (ROOT / name).exists()}
    assert data == set().union(*packaged.values())
    folders = {path.parent for path in (ROOT / "sesam").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_output_that_nobody_reads_ends_without_a_traceback() -> None:
    program = "from sesam.errors import run_main\nrun_main(lambda: [print(k) for k in range(100_000)])"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
