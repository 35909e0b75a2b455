"""`sesam pull` against those who can write to a lab's remote, and those who can also commit; and its ordinary use."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
from conftest import sh
from dvc.cli import main as dvc_main

from sesam.artifacts.dvc_outputs import check_output, find_links, read_listing
from sesam.cli.main import main
from sesam.errors import SesamError

CODE = "print('good')\n"
EVIL = b"print('evil')\n"
PIPELINE = """stages:
  make:
    cmd: mkdir -p data/out/sub && echo a > data/out/a.txt && echo b > data/out/sub/b.txt && echo c > data/c.txt
    deps: [stages/__init__.py]
    outs: [data/out, data/c.txt]
"""
FILES = {"data/out/a.txt": "a\n", "data/out/sub/b.txt": "b\n", "data/c.txt": "c\n", "data/raw/mine/0.png": "photo"}

TARGETS = {
    "data/raw/mine": {"data/raw/mine/0.png"},
    "data/raw/mine.dvc": {"data/raw/mine/0.png"},
    "make": FILES.keys() - {"data/raw/mine/0.png"},
    "data/out": {"data/out/a.txt", "data/out/sub/b.txt"},
    "data/out/sub/b.txt": {"data/out/sub/b.txt"},
}


def dvc(*arguments: str) -> None:
    assert dvc_main(list(arguments)) == 0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lab`, a repository whose outputs are pushed, and `remote`."""
    folder = tmp_path_factory.mktemp("pull")
    for name, text in {"stages/__init__.py": CODE, "dvc.yaml": PIPELINE, "data/raw/mine/0.png": "photo"}.items():
        (folder / "lab" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "lab" / name).write_text(text)
    sh("git", "init", "-q", cwd=folder / "lab")
    with chdir(folder / "lab"):
        dvc("init", "-q")
        dvc("config", "core.analytics", "false")
        dvc("add", "-q", "data/raw/mine")
        dvc("repro", "-q")
        dvc("remote", "add", "-q", "-d", "lab", "../remote")
        dvc("push", "-q")
    sh("git", "add", "-A", cwd=folder / "lab")
    sh("git", "commit", "-qm", "lab", cwd=folder / "lab")
    return folder


@pytest.fixture
def clone(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A colleague's new clone, the current folder; the remote beside it is a copy that a test may change."""
    shutil.copytree(lab / "remote", tmp_path / "remote")
    sh("git", "clone", "-q", str(lab / "lab"), "clone", cwd=tmp_path)
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


def state(folder: Path) -> dict[str, bytes]:
    """All files beside and in a clone, without what git and DVC keep for themselves, except hooks."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kept = (path for path in paths if path.parts[0] != "remote" and not {"objects", "cache", "tmp"} & {*path.parts})
    return {str(path): (folder / path).read_bytes() for path in kept if path.name not in ("index", "config.local")}


def objects(folder: Path, md5: str) -> Path:
    return folder / "files/md5" / md5[:2] / md5[2:]


def put(content: bytes, ending: str = "") -> str:
    """Put an object with its right name into the remote."""
    name = hashlib.md5(content).hexdigest() + ending
    objects(Path("../remote"), name).parent.mkdir(exist_ok=True)
    objects(Path("../remote"), name).write_bytes(content)
    return name


def list_files(*paths: str) -> bytes:
    return json.dumps([{"md5": hashlib.md5(EVIL).hexdigest(), "relpath": path} for path in paths]).encode()


def folder_md5() -> str:
    """The MD5 of data/out in dvc.lock."""
    return Path("dvc.lock").read_text().split("path: data/out\n")[1].split("md5: ")[1].split()[0]


def forge_remote(content: bytes, name: str | None = None) -> None:
    """Attack with the remote alone: an object gets another content."""
    put(EVIL)
    path = objects(Path("../remote"), name or folder_md5())
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)  # DVC compares writable objects of a remote on disk with their MD5


def forge_lock(content: bytes) -> None:
    """Attack with the remote and git: dvc.lock names a list of files that was pushed in the regular way."""
    put(EVIL)
    lock = Path("dvc.lock")
    lock.write_text(lock.read_text().replace(folder_md5(), put(content, ".dir")))


def forge_dvc_file(path: str, md5: str | None = None) -> None:
    """Attack with the remote and git: a .dvc file with an output of another path."""
    entry = f"- md5: {md5 or put(EVIL)}\n  hash: md5\n  size: {len(EVIL)}\n  path: {path}\n"
    Path("data/raw/new.dvc").write_text(f"wdir: ../..\nouts:\n{entry}")


def link_to_code() -> None:
    Path("data/out").mkdir()
    Path("data/out/link").symlink_to("../../stages")
    forge_lock(list_files("link/x.py"))


CODE_PATHS = ("../../stages/__init__.py", "../../.git/hooks/post-checkout", "../../../outside.py")
ATTACKS: dict[str, tuple[Callable[[], object], str]] = {
    **{
        f"{path}, {who.__name__}": (lambda path=path, who=who: who(list_files("a.txt", path)), message)
        for path in CODE_PATHS
        for who, message in (
            (forge_remote, "in the remote is damaged or forged: its MD5"),
            (forge_lock, "forged: it lists .* leads out"),
        )
    },
    "an absolute path": (
        lambda: forge_lock(list_files(str(Path("../outside.py").resolve()))),
        "forged: it lists .* leads out",
    ),
    "a link on the way": (link_to_code, "data/out/link is a symbolic link"),
    "a program as an MD5": (lambda: forge_lock(b'[{"md5": "../../x", "relpath": "a"}]'), "has the MD5 '../../x'"),
    "an output that is code": (lambda: forge_dvc_file("stages/x.py"), "not inside data, models, metrics"),
    "an output beside the code": (
        lambda: forge_dvc_file("torch", put(list_files("__init__.py"), ".dir")),
        "not inside",
    ),
    "an output of git's": (lambda: forge_dvc_file("data/raw/.gitignore"), "is hidden"),
    "an output around git's files": (lambda: forge_dvc_file("data/raw", put(list_files("a"), ".dir")), "git tracks"),
    "an output outside": (lambda: forge_dvc_file("../outside.py"), "outside this repository"),
    "checkpoints": (lambda: forge_dvc_file("models/.work/r1/last.pth"), "is hidden"),
    "an MD5 that is a path": (lambda: forge_dvc_file("data/x", "../../../../stages/x.py"), "is not an MD5"),
    "another file's content": (lambda: forge_remote(EVIL, hashlib.md5(b"a\n").hexdigest()), "has the MD5"),
    "a truncated file": (lambda: forge_remote(b"", hashlib.md5(b"c\n").hexdigest()), "data/c.txt: .* has the MD5"),
    "a truncated list": (lambda: forge_remote(b'[{"md5": "60b7'), "its MD5 is"),
    "a list that is no JSON": (lambda: forge_lock(b"[" * 100_000), "not a list of files"),
    "a missing list": (
        lambda: objects(Path("../remote"), folder_md5()).unlink(),
        "neither the cache nor the remote has",
    ),
}


@pytest.mark.parametrize(("attack", "message"), ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_refused_and_nothing_is_written(clone: Path, attack: Callable[[], object], message: str) -> None:
    attack()
    before = state(clone.parent)
    with pytest.raises(SesamError, match=f"(?s)^nothing was checked out:.*{message}"):
        main(["pull"])
    assert state(clone.parent) == before


@pytest.mark.parametrize("who", [forge_remote, forge_lock])
def test_a_bare_dvc_pull_writes_code(clone: Path, who: Callable[[bytes], None]) -> None:
    """What the tests above guard against. If DVC refuses it one day, the docs can say so."""
    who(list_files("../../stages/x.py"))
    dvc("pull", "-q")
    assert Path("stages/x.py").read_bytes() == EVIL


def test_a_bad_list_does_not_get_into_the_cache(clone: Path) -> None:
    """From there `dvc repro` or `dvc checkout` would write it."""
    forge_lock(list_files("../../stages/x.py"))
    with pytest.raises(SesamError, match=r"forged: it lists .* leads out"):
        main(["pull"])
    assert not objects(Path(".dvc/cache"), folder_md5()).exists()


def test_dvc_does_not_remember_a_bad_list(clone: Path) -> None:
    """It keeps the lists that it has read in an index of its own, also those of a bare `dvc fetch`."""
    main(["pull"])
    lists = [objects(folder, folder_md5()) for folder in (Path(".dvc/cache"), Path("../remote"))]
    good = lists[0].read_bytes()
    lists[0].unlink()
    forge_remote(list_files("../../stages/x.py"))
    for _ in range(3):  # the list, its file, and once more: DVC forgets all when it fetches something
        dvc("fetch", "-q")
    with pytest.raises(
        SesamError, match=r"cache/files/md5/\S+ is damaged or forged: its MD5 is .*Delete it and pull again"
    ):
        main(["pull"])
    for path in lists:  # what the message says
        path.unlink()
    lists[1].write_bytes(good)
    main(["pull"])
    assert not Path("stages/x.py").exists()
    assert {name: Path(name).read_text() for name in FILES} == FILES


def test_paths_in_dvc_lock_decide_nothing(clone: Path) -> None:
    """DVC takes an output's path from dvc.yaml, and its MD5 from the entry of this path."""
    entries = "".join(
        f"    - path: {path}\n      hash: md5\n      md5: {put(EVIL)}\n" for path in ("../outside.py", "stages/x.py")
    )
    lock = Path("dvc.lock")
    lock.write_text(lock.read_text() + entries)
    main(["pull"])
    assert not Path("stages/x.py").exists() and not Path("../outside.py").exists()


def test_an_ordinary_pull(clone: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for target, files in TARGETS.items():
        main(["pull", target])
        assert {name for name in FILES if Path(name).exists()} == files
        sh("git", "clean", "-fdxq", "data", cwd=clone)
    main(["pull", "--remote", "lab", "--jobs", "2"])
    assert {name: Path(name).read_text() for name in FILES} == FILES
    capfd.readouterr()
    main(["pull"])
    assert "up to date" in capfd.readouterr().out
    Path("data/out/a.txt").unlink()
    main(["pull"])
    assert {name: Path(name).read_text() for name in FILES} == FILES
    assert sh("git", "status", "--porcelain", cwd=clone) == ""


def test_a_damaged_object_is_named_and_healed(clone: Path) -> None:
    main(["pull"])
    file = objects(Path(".dvc/cache"), hashlib.md5(b"a\n").hexdigest())
    file.chmod(0o644)
    file.write_bytes(b"damaged")
    file.chmod(0o444)  # DVC trusts it
    with pytest.raises(SesamError, match=rf"data/out/a\.txt: \S+{file.name} has the MD5 .*Delete it and pull again"):
        main(["pull"])
    file.unlink()
    main(["pull"])
    assert Path("data/out/a.txt").read_text() == "a\n"


def no_git() -> None:
    shutil.rmtree(".git")


def no_remote() -> None:
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")


def no_library() -> None:
    config = Path(".dvc/config")
    config.write_text(config.read_text().replace("url = ", "url = oss://host/"))


def a_repository_below() -> None:
    Path("below").mkdir()
    shutil.copy("dvc.yaml", "below")
    sh("git", "add", "below", cwd=Path())
    os.chdir("below")


def remove_object(content: bytes) -> None:
    objects(Path("../remote"), hashlib.md5(content).hexdigest()).unlink()


def no_outputs() -> None:
    Path("dvc.lock").unlink()
    Path("data/raw/mine.dvc").unlink()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (no_git, (), "git lists no files in"),
        (no_remote, (), "DVC cannot pull: .*no remote specified"),
        (no_library, (), "the remote cannot be opened: oss is supported, but requires 'dvc-oss'"),
        (a_repository_below, (), "the root of the repository is .*clone. Run sesam pull there"),
        (no_outputs, (), "nothing to pull: no dvc.lock"),
        (lambda: shutil.rmtree(".dvc"), (), "DVC cannot pull: you are not inside of a DVC repository"),
        (lambda: Path("dvc.lock").write_text("stages: ["), (), "DVC cannot pull: .*dvc.lock"),
        (lambda: Path("dvc.yaml").unlink(), (), "sesam pull needs dvc.yaml"),
        (lambda: None, ("data/nothing",), "DVC cannot pull: .*data/nothing"),
        (lambda: None, ("--remote", "other"), "DVC cannot pull: .*other"),
        (lambda: remove_object(b"a\n"), (), "`dvc fetch` failed; its message is above. Nothing was checked out"),
        (lambda: remove_object(b"c\n"), (), r"data/c.txt: .* cannot be read \(No such file .*Ask for a `dvc push`"),
    ],
)
def test_messages(clone: Path, change: Callable[[], object], arguments: tuple[str, ...], message: str) -> None:
    change()
    with pytest.raises(SesamError, match=f"(?s){message}"):
        main(["pull", *arguments])


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", ".", "./a", "a/..", "a\\b", "C:/a", "a\nb", "a\0b", "a/.git/b", ".GIT", "a/.dvc/config",
     "a.dvc", "a/dvc.yaml", "dvc.lock", ".dvcignore"],
)  # fmt: skip
def test_paths_that_no_list_may_have(path: str) -> None:
    content = list_files("a.txt", path)
    with pytest.raises(ValueError, match="it lists"):
        read_listing(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b'[{"relpath": "a"}]', b'[{"md5": 1, "relpath": "a"}]', list_files("a", "a"),
     list_files("a", "a/b"), list_files("é").replace(b"\\u00e9", "é".encode()),
     b'[{"md5": "%s", "relpath": "a", "isexec": true}]' % (b"0" * 32)],
)  # fmt: skip
def test_lists_that_dvc_does_not_write(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"list|entry|MD5"):
        read_listing(content)


def test_lists_that_dvc_writes() -> None:
    content = list_files("é 1:2/.gitkeep", "a..b", "git/c")
    assert [*read_listing(content)] == ["é 1:2/.gitkeep", "a..b", "git/c"]


def test_outputs_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_output("data/raw/mine", ["data/raw/.gitignore", "data/raw/mine.dvc", "data/raw/mine2"])
    for tracked in ("data/raw/mine", "data/raw/mine/a", "data/raw"):
        with pytest.raises(ValueError, match="git tracks"):
            check_output("data/raw/mine", [tracked])
    Path("data").mkdir()
    Path("data/link").symlink_to(tmp_path)
    Path("data/file").symlink_to(tmp_path / "cached")  # of cache.type symlink: DVC replaces it
    assert find_links(["data/file", "data/a/b"]) == []
    assert find_links(["data/link/a/b"]) == find_links(["data/link"]) == ["data/link"]
