"""Presets fit the schema; `sesam init` writes params.yaml, and never over what a user has not committed."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT, sh
from dvc.utils.hydra import apply_overrides

from sesam.cli.main import main
from sesam.errors import SesamError
from sesam.params import flatten, load_params
from sesam.presets import load_preset, render_params

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The part of the repository that `sesam init` needs, params.yaml committed."""
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml", "presets"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "params.yaml").unlink()
    main(["init", "demo"])
    sh("git", "init", "-q", cwd=tmp_path)
    sh("git", "add", "params.yaml", cwd=tmp_path)
    sh("git", "commit", "-qm", "params", cwd=tmp_path)
    return tmp_path


def test_params_yaml_is_the_demo_preset(clone: Path) -> None:
    assert (ROOT / "params.yaml").read_text() == (clone / "params.yaml").read_text()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_short_and_valid(path: Path, tmp_path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40
    params = load_preset(path)
    (tmp_path / "params.yaml").write_text(render_params(params))
    assert load_params(tmp_path / "params.yaml") == params


def test_experiments_can_set_every_key_and_keep_the_comments(clone: Path) -> None:
    values = flatten(yaml.safe_load((clone / "params.yaml").read_text()))
    changes = [f"{key}={'null' if value is None else value}" for key, value in values.items() if value != {}]
    comments = [line.partition("  # ")[2] for line in (clone / "params.yaml").read_text().splitlines()]
    apply_overrides(clone / "params.yaml", changes)
    text = (clone / "params.yaml").read_text()
    assert all(comment in text for comment in comments)
    assert load_params(clone / "params.yaml") == load_preset(ROOT / "presets/demo.yaml")


def test_init_for_custom_data(clone: Path) -> None:
    (clone / "photographs").mkdir()
    main(["init", "idd", "--data", "photographs", "--classes", "road, car"])
    dataset = load_params().dataset
    assert dataset.root == "photographs" and dataset.classes == ["road", "car"]
    assert dataset.palette is None and dataset.subset is None
    main(["init", "demo", "--data", "photographs", "--force"])
    params = load_params()
    assert params.demo == {} and params.dataset.root == "photographs" and params.dataset.classes


def test_init_keeps_uncommitted_changes(clone: Path) -> None:
    path = clone / "params.yaml"
    committed = path.read_text()
    main(["init", "folder"])
    for state in ("changed", "staged"):
        before = path.read_text()
        if state == "staged":
            sh("git", "add", "params.yaml", cwd=clone)
        with pytest.raises(SesamError, match=r"params\.yaml is not committed as it is"):
            main(["init", "demo"])
        assert path.read_text() == before
    main(["init", "folder"])  # the same content
    main(["init", "demo", "--force"])
    assert path.read_text() == committed
    sh("git", "rm", "-qf", "--cached", "params.yaml", cwd=clone)
    sh("git", "commit", "-qm", "not tracked", cwd=clone)
    with pytest.raises(SesamError, match=r"params\.yaml is not committed as it is"):
        main(["init", "folder"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("idd2",), r"presets/idd2\.yaml does not exist. Presets: ade20k, camvid"),
        (("idd", "--data", "nowhere"), "--data: nowhere is not a folder"),
        (("voc", "--classes", "a,b"), "voc defines its own classes"),
        (("idd", "--classes", "a"), "at least 2 items"),
    ],
)
def test_wrong_arguments_of_init_are_reported(clone: Path, arguments: tuple[str, ...], message: str) -> None:
    before = (clone / "params.yaml").read_text()
    with pytest.raises(SesamError, match=message):
        main(["init", *arguments])
    assert (clone / "params.yaml").read_text() == before
