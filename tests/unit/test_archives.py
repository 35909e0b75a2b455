"""Files packed in archives: equal files make equal archives, and are read from them as they were."""

import os
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesam.artifacts import archives
from sesam.artifacts.atomic_io import atomic_directory, read_bytes, read_json, write_text
from sesam.errors import SesamError

NAMES = [f"{kind}/street {k % 3}/{k}.json" for kind in ("labels", "confidence") for k in range(600)]


def pack_files(folder: Path, files: list[str] | dict[str, bytes]) -> Path:
    """folder/packed with the archives of the files in folder/loose."""
    for child in ("loose", "packed"):
        (folder / child).mkdir(parents=True)
    for name in files:
        (folder / "loose" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "loose" / name).write_bytes(files[name] if isinstance(files, dict) else f"of {name}".encode())
    archives.pack(folder / "loose", folder / "packed")
    return folder / "packed"


def test_archives_do_not_depend_on_order_and_time(tmp_path: Path) -> None:
    packed = [pack_files(tmp_path / "0", NAMES), pack_files(tmp_path / "1", NAMES[::-1])]
    os.utime(tmp_path / "1/loose" / NAMES[0], (1e9, 1e9))
    archives.pack(tmp_path / "1/loose", packed[1])
    files = [sorted((path.name, path.read_bytes()) for path in folder.iterdir()) for folder in packed]
    assert [name for name, _ in files[0]] == ["files-0000.zip", "files-0001.zip"] and files[0] == files[1]
    for name in NAMES:
        assert read_bytes(packed[0] / name) == f"of {name}".encode()
    with ZipFile(packed[0] / "files-0001.zip") as archive:  # with other tools
        assert archive.namelist() == sorted(NAMES)[1000:] and archive.testzip() is None
    with pytest.raises(SesamError, match="labels/none is missing"):
        read_bytes(packed[0] / "labels/none")


@given(st.dictionaries(st.text("abcé ", min_size=1, max_size=8), st.binary(max_size=200), max_size=5))
def test_any_content_is_read_as_it_was(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    files = {f"{name.strip()}/x".removeprefix("/"): content for name, content in files.items()}
    packed = pack_files(tmp_path_factory.mktemp("files"), files)
    assert len(list(packed.iterdir())) == 1
    assert {name: read_bytes(packed / name) for name in files} == files


def test_only_a_few_archives_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FILES_PER_ARCHIVE", 2)
    names = sorted(f"{k}.json" for k in range(401))
    packed = pack_files(tmp_path, names)
    assert len(list(packed.iterdir())) == 201
    for name in [*names, *names[::7]]:
        assert read_bytes(packed / name) == f"of {name}".encode()
    cache = archives._members.cache_info()
    assert cache.currsize <= cache.maxsize == 64
    for missing in (".json", "1.jso", "99.jsonx", "é"):  # before, between and after the others
        assert archives.read_packed(packed / missing) is None


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    intact = pack_files(tmp_path / "intact", ["1.json", "2.json"])
    content = (intact / "files-0000.zip").read_bytes()
    start = content.index(b"of 1.json")
    with ZipFile(tmp_path / "deflated.zip", "w", ZIP_DEFLATED) as archive:
        archive.writestr("1.json", "x" * 1000)
    oversized = bytearray(content)
    entry = content.index(b"PK\x01\x02")
    oversized[entry + 20 : entry + 28] = b"\xfe\xff\xff\x7f" * 2  # sizes of the first file
    damaged = {
        "oversized": bytes(oversized),
        "checksum": content[:start] + b"OF" + content[start + 2 :],
        "truncated": content[:-30],
        "empty": b"",
        "compressed": (tmp_path / "deflated.zip").read_bytes(),
    }
    for name, data in damaged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "files-0000.zip").write_bytes(data)
        with pytest.raises(SesamError, match=r"0000\.zip is damaged .*Delete it and run `dvc repro`"):
            read_bytes(tmp_path / name / "1.json")
    assert read_bytes(intact / "2.json") == b"of 2.json"


def test_an_index_that_contradicts_the_files_is_refused(tmp_path: Path) -> None:
    """Zeros in the index at the end: an empty file has the checksum 0."""
    archive = pack_files(tmp_path, {"a.json": b"{}", "b.json": b"[1, 2]"}) / "files-0000.zip"
    content = bytearray(archive.read_bytes())
    last = content.rindex(b"PK\1\2")
    content[last + 16 : last + 28] = bytes(12)  # CRC-32, sizes
    archive.write_bytes(content)
    assert read_bytes(archive.parent / "a.json") == b"{}"
    with pytest.raises(SesamError, match="checksum mismatch"):
        read_bytes(archive.parent / "b.json")


def test_what_to_delete_is_reported_for_invalid_json(tmp_path: Path) -> None:
    pack_files(tmp_path, ["a.json"])
    for folder, advice in (("loose", "Delete it"), ("packed", "Delete .*packed")):
        with pytest.raises(SesamError, match=rf"a\.json cannot be read as JSON .*{advice} and run `dvc repro`"):
            read_json(tmp_path / folder / "a.json")


def test_an_interrupted_packed_folder_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, runs = tmp_path / "artifact", []

    def run() -> None:
        with atomic_directory(path, {"seed": "1"}, packed=True) as folder:
            assert (folder / "1.json").exists() == bool(runs)
            runs.append(1)
            write_text(folder / "1.json", "one")
            if len(runs) == 1:
                raise KeyboardInterrupt

    def killed(folder: Path, into: Path) -> None:
        (into / "files-0000.zip").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sesam.artifacts.atomic_io.pack", killed)
        run()
    assert not path.exists()
    run()
    assert read_bytes(path / "1.json") == b"one"
    assert [child.name for child in tmp_path.iterdir()] == ["artifact"]
