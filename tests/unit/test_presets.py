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
from sesam.segmentation.network import network_config
from sesam.segmentation.zoo import build_without_memory, read_config

PRESETS, NETWORKS = (sorted((ROOT / folder).glob("*.yaml")) for folder in ("presets", "presets/networks"))


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


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_networks_fit_every_preset(path: Path) -> None:
    assert yaml.safe_load(path.read_text()).keys() == {"network", "schedule"}
    for preset in PRESETS:
        with_network, without = load_preset(preset, network=path), load_preset(preset)
        assert with_network.schedule.max_iters == without.schedule.max_iters
        assert with_network.network.dtype == without.network.dtype
        assert with_network.schedule.lr < without.schedule.lr and with_network.dataset == without.dataset
    build_without_memory(network_config(with_network.network, 3))


def test_the_weights_of_segformer_are_those_of_its_config() -> None:
    network = load_preset(ROOT / "presets/demo.yaml", network=ROOT / "presets/networks/segformer.yaml").network
    assert read_config(network)[0]["backbone"]["init_cfg"]["checkpoint"] == network.pretrained


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
    main(["init", "idd", "--data", "photographs", "--network", "dinov2", "--force"])
    params = load_params()
    assert params.network.head == "linear" and params.dataset.root == "photographs"


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
        (("idd", "--network", "dinov3"), r"presets/networks/dinov3\.yaml does not exist. Presets: dinov2, segformer"),
        (("networks/dinov2", "--classes", "a,b"), "Presets: ade20k"),
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
