"""Small data sets and a way to run stages as a person would."""

import os
import shutil
import subprocess
import sys
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import settings
from PIL import Image

from sesam.demo.scenes import draw_scene
from sesam.params import Params, RoundParams
from sesam.presets import load_preset, render_params

SLOWEST = ("dag", "segmentation", "sam", "backbones", "sam_stages", "networks", "prepare", "evaluation", "ablations")
ROOT = Path(__file__).parent.parent
os.environ["PYTHONPATH"] = str(ROOT)  # workers import this tree too, not an installed package
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# on a busy machine an example may take any time; half of the usual examples, for the suite to stay under five minutes
settings.register_profile("default", deadline=None, max_examples=50)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first, so that no worker of xdist runs one alone at the end."""
    slowest = [f"test_{name}.py" for name in SLOWEST]
    items.sort(key=lambda item: slowest.index(item.path.name) if item.path.name in slowest else len(slowest))


@pytest.fixture(scope="session")
def params() -> Params:
    """The demo's params, with a second round."""
    demo = load_preset(ROOT / "presets/demo.yaml")
    return demo.model_copy(update={"rounds": demo.rounds | {"r2": RoundParams(teacher="r1")}})


@pytest.fixture(scope="session")
def scene():
    return draw_scene(11)


# a checkout's pipeline without its user's settings: params, data, remote, cache directory
PIPELINE = (
    ".dvc/.gitignore",
    ".dvcignore",
    "*.gitignore",
    "dvc.yaml",
    "data/corrections",
    "models/none",
    "presets",
    "sesam",
    "stages",
)


def checked_out(folder: Path) -> Path:
    """A copy of this checkout's pipeline, including uncommitted files."""
    folder.mkdir()
    for name in sh("git", "ls-files", "-co", "--exclude-standard", "--", *PIPELINE, cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc/config").write_text("[core]\nanalytics = false\ncheck_update = false\n")
    return folder


def sh(*command: str, cwd: Path, code: int = 0) -> str:
    """The output of a command, which must end with this exit code."""
    git = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = os.environ | git | {"DVC_NO_ANALYTICS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a module of this checkout in another folder."""
    env = os.environ | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def write_params(folder: Path, preset: str = "demo") -> None:
    """folder/params.yaml as `sesam init PRESET` writes it."""
    (folder / "params.yaml").write_text(render_params(load_preset(ROOT / f"presets/{preset}.yaml")))


def edit_params(folder: Path, **changes: object) -> None:
    """Set dotted keys (with __ for the dot) in folder/params.yaml."""
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    for key, value in changes.items():
        *groups, last = key.split("__")
        reduce(dict.__getitem__, groups, raw)[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


@pytest.fixture
def folder_dataset(tmp_path: Path) -> Path:
    """A workspace with params.yaml and a folder data set of three training and one validation image, two classes."""
    write_params(tmp_path, "demo")
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for kind in ("images", "labels"):
            (tmp_path / "mine" / kind / split).mkdir(parents=True)
        for k in range(count):
            label = np.zeros((40, 60), np.uint8)
            label[:, 25:] = 1
            label[:4] = 9
            photo = np.where(label[..., None] == 1, 200, 60) + rng.integers(0, 30, (40, 60, 3))
            Image.fromarray(photo.astype(np.uint8)).save(tmp_path / f"mine/images/{split}/{k}.png")
            Image.fromarray(label).save(tmp_path / f"mine/labels/{split}/{k}.png")
    edit_params(
        tmp_path,
        dataset__root="mine",
        dataset__classes=["left", "right"],
        dataset__palette=None,
        dataset__ignore_values=[9],
    )
    return tmp_path
