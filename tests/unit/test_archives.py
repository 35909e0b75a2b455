"""Files of an artifact packed in archives: the same archives of the same files, and the same files out of them."""

from __future__ import annotations

import os
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesam.artifacts import archives as shards
from sesam.artifacts.atomic_io import atomic_directory, read_bytes, read_json, write_text
from sesam.errors import SesamError

NAMES = [f"{kind}/street {k % 3}/{k}.json" for kind in ("labels", "confidence") for k in range(600)]


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        write = folder / name
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(f"of {name}")


def archives(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_archives_in_whatever_order_and_whenever(tmp_path: Path) -> None:
    for number, names in enumerate((NAMES, NAMES[::-1])):
        fill(tmp_path / f"loose{number}", names)
        os.utime(tmp_path / f"loose{number}" / names[0], (1e9, 1e9 + number))
        (tmp_path / f"packed{number}").mkdir()
        shards.pack(tmp_path / f"loose{number}", tmp_path / f"packed{number}")
    found = archives(tmp_path / "packed0")
    assert list(sorted(found)) == ["files-0000.zip", "files-0001.zip"] and found == archives(tmp_path / "packed1")
    for name in NAMES:
        assert read_bytes(tmp_path / "packed0" / name) == f"of {name}".encode()
    with ZipFile(tmp_path / "packed0/files-0001.zip") as archive:  # as anybody reads it
        assert archive.namelist() == sorted(NAMES)[1000:] and archive.testzip() is None
    with pytest.raises(SesamError, match="labels/none is missing"):
        read_bytes(tmp_path / "packed0/labels/none")


@given(st.dictionaries(st.text("abcé ", min_size=1, max_size=8), st.binary(max_size=200), max_size=5))
def test_whatever_is_in_them(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("files")
    for name, content in files.items():
        (folder / "loose" / name.strip() / "x").parent.mkdir(parents=True, exist_ok=True)
        (folder / "loose" / name.strip() / "x").write_bytes(content)
    (folder / "loose").mkdir(exist_ok=True)
    (folder / "packed").mkdir()
    shards.pack(folder / "loose", folder / "packed")
    assert len(list((folder / "packed").iterdir())) == 1
    for path in (folder / "loose").rglob("x"):
        assert read_bytes(folder / "packed" / path.relative_to(folder / "loose")) == path.read_bytes()


def test_however_many_archives_a_process_holds_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "FILES", 2)
    names = sorted(f"{k}.json" for k in range(401))
    fill(tmp_path / "loose", names)
    packed = tmp_path / "packed"
    packed.mkdir()
    shards.pack(tmp_path / "loose", packed)
    assert len(list(packed.iterdir())) == 201
    for name in [*names, *names[::7]]:
        assert read_bytes(packed / name) == f"of {name}".encode()
    held = shards._members.cache_info()
    assert held.currsize <= held.maxsize == 64
    for missing in (".json", "1.jso", "99.jsonx", "é"):  # before all, between, behind all
        assert shards.read_packed(packed / missing) is None


def test_damaged_archives_are_told(tmp_path: Path) -> None:
    fill(tmp_path / "loose", ["1.json", "2.json"])
    good = tmp_path / "good"
    good.mkdir()
    shards.pack(tmp_path / "loose", good)
    content = (good / "files-0000.zip").read_bytes()
    place = content.index(b"of 1.json")
    with ZipFile(tmp_path / "deflated.zip", "w", ZIP_DEFLATED) as archive:
        archive.writestr("1.json", "x" * 1000)
    far = bytearray(content)
    entry = content.index(b"PK\x01\x02")
    far[entry + 20 : entry + 28] = b"\xfe\xff\xff\x7f" * 2  # sizes of the first file
    damaged = {
        "far larger": bytes(far),
        "check sums": content[:place] + b"OF" + content[place + 2 :],
        "cut off": content[:-30],
        "nothing": b"",
        "compressed": (tmp_path / "deflated.zip").read_bytes(),
    }
    for name, what in damaged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "files-0000.zip").write_bytes(what)
        with pytest.raises(SesamError, match=r"0000\.zip is damaged .*Delete it and run `dvc repro`"):
            read_bytes(tmp_path / name / "1.json")
    assert read_bytes(good / "2.json") == b"of 2.json"
    fill(tmp_path / "bad", ["a.json"])
    (tmp_path / "bad packed").mkdir()
    shards.pack(tmp_path / "bad", tmp_path / "bad packed")
    for folder, advice in (("bad", "Delete it"), ("bad packed", "Delete .*bad packed")):
        with pytest.raises(SesamError, match=rf"a\.json cannot be read as JSON .*{advice} and run `dvc repro`"):
            read_json(tmp_path / folder / "a.json")


def test_a_packed_folder_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, made_of = tmp_path / "artifact", {"seed": "1"}

    def begin() -> None:
        with atomic_directory(path, made_of, packed=True) as folder:
            assert (folder / "1.json").exists() == bool(begun)
            begun.append(1)
            write_text(folder / "1.json", "one")
            if len(begun) == 1:
                raise KeyboardInterrupt

    def killed(folder: Path, into: Path) -> None:
        (into / "files-0000.zip").write_bytes(b"half")
        raise KeyboardInterrupt

    begun: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        begin()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sesam.artifacts.atomic_io.pack", killed)
        begin()
    assert not path.exists()
    begin()
    assert read_bytes(path / "1.json") == b"one"
    assert [one.name for one in tmp_path.iterdir()] == ["artifact"]
