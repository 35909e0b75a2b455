"""Links that come with git do not lead writes and removals out of the repository."""

from pathlib import Path

import numpy as np
import pytest
from conftest import write_params

from sesam.artifacts.atomic_io import atomic_directory, atomic_path, write_text
from sesam.artifacts.image_io import write_gray
from sesam.errors import SesamError
from stages import check_inputs


def replace_folder(path: Path) -> None:
    with atomic_directory(path) as folder:
        (folder / "new").touch()


WRITERS = {
    "a text": lambda folder: write_text(folder / "a.json", "{}"),
    "an image": lambda folder: write_gray(folder / "b/c.png", np.zeros((2, 2), np.uint8)),
    "a folder": replace_folder,
    "a folder below": lambda folder: replace_folder(folder / "r1"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("link", ["metrics", "metrics/report_images", "models/../metrics/report_images"])
def test_nothing_is_written_behind_a_link(write, link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside, repository = tmp_path / "outside", tmp_path / "repository"
    for folder in (outside / "report_images", repository / "models"):
        folder.mkdir(parents=True)
    (outside / "report_images/precious").touch()
    monkeypatch.chdir(repository)
    Path(link).parent.mkdir(exist_ok=True, parents=True)
    Path(link).symlink_to(outside if link == "metrics" else outside / "report_images")
    with pytest.raises(SesamError, match=r"is a link, and .* would be written behind it"):
        write(Path("metrics/report_images"))
    assert sorted(outside.rglob("*")) == [outside / "report_images", outside / "report_images/precious"]


def test_unfinished_folders_and_previous_ones_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").touch()
    Path("data").mkdir()
    Path("data/.masks.partial").symlink_to(tmp_path / "outside")
    with pytest.raises(SesamError, match="is a link"):
        replace_folder(Path("data/masks"))
    assert (tmp_path / "outside/precious").exists()


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("link", lambda path: path.symlink_to("missing")),
        ("link", lambda path: path.symlink_to("precious")),
        ("file", lambda path: path.touch()),
    ],
    ids=["dangling", "to a file", "file"],
)
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_is_no_folder_is_not_replaced(write, kind, make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("precious").touch()
    make(Path("masks"))
    with pytest.raises(SesamError, match=f"masks is a {kind}.*Replace it with a folder"):
        write(Path("masks"))
    assert {path.name for path in tmp_path.iterdir()} == {"masks", "precious"}


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(SesamError, match=r"a\.json is a folder; a file would be written there\. Remove it"):
        write_text(tmp_path / "a.json", "{}")


def test_a_repository_behind_a_link_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Home folders and scratch disks often are."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path / "home")
    write_text(Path("a/b.json"), "{}")
    write_text(tmp_path / "home/a/c.json", "{}")
    replace_folder(Path("a/d"))
    replace_folder(Path("a/d"))
    with atomic_path(Path("b.json")) as path:  # a file that is a link is replaced, as before
        path.touch()


def test_links_are_found_before_dvc_removes_what_is_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    Path("elsewhere").mkdir()
    for inputs in ("data/raw", "data/corrections"):
        Path(inputs).parent.mkdir(exist_ok=True)
        Path(inputs).symlink_to(tmp_path / "elsewhere")
    check_inputs.main()
    for output in ("metrics", "models/r1", "data/rounds/r1/masks"):
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(SesamError, match=f"{output} is a link to a folder"):
            check_inputs.main()
        Path(output).unlink()
