"""Pull what a colleague has pushed, as `dvc pull` does, and check it before it is written.

    sesam pull
    sesam pull data/pseudo_labels/r1/labels --remote lab

DVC writes wherever a list of files in the remote says, also over code. This command first fetches the lists alone.
Nothing is checked out unless each is the one that dvc.lock or a .dvc file names, and stays inside its output. Then the
files are fetched, compared with their MD5, and checked out.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from sesam.artifacts import dvc_outputs
from sesam.artifacts.atomic_io import reraise_disk_errors
from sesam.errors import MAX_SHOWN, SesamError
from sesam.execution.progress import ProgressBar
from sesam.git import git

REPOSITORY_FILES = ("dvc.yaml",)
PUSH_AGAIN = "Whoever has a good copy can remove the object from the remote and run `dvc push`."
WHO = "Ask who committed it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="outputs, stages or .dvc files (default: all)")
    parser.add_argument("-r", "--remote", metavar="NAME", help="the DVC remote to fetch from (default: DVC's default)")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="number of files to fetch at a time")


def run(options: argparse.Namespace) -> None:
    # After a check, nobody can change what was checked, except those who write to this clone or its cache: they can run
    # code anyway. The remote cannot: DVC reads lists and files from the cache if they are there.
    objects = check_outputs(options.targets, options.remote)
    remote = ["--remote", options.remote] if options.remote else []
    jobs = ["--jobs", str(options.jobs)] if options.jobs else []
    run_dvc("fetch", *remote, *jobs, "--", *options.targets)
    check_objects(objects)
    run_dvc("checkout", "--", *options.targets)
    print(f"pull: {len(objects)} files, checked")


def run_dvc(*arguments: str) -> None:
    """Run a command of DVC, which prints what it does; SesamError if it fails."""
    from dvc.cli import main  # in this process: DVC takes a second to import

    if main(list(arguments)):
        rest = " Nothing was checked out." if arguments[0] == "fetch" else ""
        raise SesamError(f"`dvc {arguments[0]}` failed; its message is above.{rest}")


def refuse(problems: Sequence[str]) -> None:
    """SesamError that lists the problems, if there are any."""
    if problems:
        rest = [f"and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
        raise SesamError("\n  ".join(["nothing was checked out:", *problems[:MAX_SHOWN], *rest]))


def check_outputs(targets: Sequence[str], remote: str | None) -> dict[str, Path]:
    """The file in DVC's cache of each file that the targets have in the workspace.

    Puts the lists of files that the cache lacks into it. SesamError if DVC would write where it must not.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    tracked = git("ls-files", "-z", cwd=Path()).split("\0")[:-1]
    if not tracked:
        raise SesamError(f"git lists no files in {Path.cwd()}. Run sesam pull in a clone of the repository.")
    try:
        with Repo() as repo, repo.lock:
            if not Path.cwd().samefile(repo.root_dir):
                raise SesamError(f"the root of the repository is {repo.root_dir}. Run sesam pull there.")
            view = repo.index.targets_view(list(targets))
            outs = sorted((out for out in view.outs if out.use_cache), key=str)
            md5s = load_files(repo, outs, tracked, remote)
            repo.drop_data_index()  # has lists that DVC read earlier, also without these checks
            wanted = {"/".join(key) for key in view.data_keys["repo"]}
            cached = repo.cache.repo.oid_to_path
            return {path: Path(cached(md5)) for path, md5 in md5s.items() if is_wanted(path, wanted)}
    except DvcException as problem:
        raise SesamError(f"DVC cannot pull: {problem}") from None


def is_wanted(path: str, wanted: set[str]) -> bool:
    """A target, or in one."""
    return path in wanted or not wanted.isdisjoint(dvc_outputs.parents_of([path]))


def load_files(repo: Any, outs: Sequence[Any], tracked: Sequence[str], remote: str | None) -> dict[str, str]:
    """The MD5 of each file of DVC's `outs`, by its path from the repository's root; SesamError for a bad output."""
    open_remote = cache(partial(open_odb, repo))  # connects once
    md5s: dict[str, str] = {}
    problems = []
    for out in outs:
        try:
            check_out(out, tracked)
            md5s |= files_of(out, partial(open_remote, out.remote or remote))
        except ValueError as problem:
            problems.append(f"{out} of {out.stage.addressing}: {problem}")
    for link in dvc_outputs.find_links([*md5s, *(path_of(out) for out in outs)]):
        problems.append(f"{link} is a symbolic link, through which DVC would write. Remove it, or pull other targets.")
    refuse(problems)
    if not md5s:
        raise SesamError(
            "nothing to pull: no dvc.lock or .dvc file has an output's MD5. Run `git pull` or `dvc repro`."
        )
    return md5s


def open_odb(repo: Any, remote: str | None) -> Any:
    """DVC's objects in a remote; SesamError if its library is missing, or its address is wrong."""
    from dvc.exceptions import DvcException

    try:
        return repo.cloud.get_remote_odb(remote, "pull")
    except DvcException:
        raise
    except Exception as problem:  # of any kind, because remotes have libraries of their own
        raise SesamError(f"the remote {remote or ''} cannot be opened: {problem}".replace("  ", " ")) from None


def path_of(out: Any) -> str:
    """From the repository's root, as DVC writes it."""
    return "/".join(out.index_key[1])


def check_out(out: Any, tracked: Sequence[str]) -> None:
    """ValueError if DVC must not write to this output's path, or if its content cannot be checked."""
    if not out.is_in_repo:
        raise ValueError(f"it is outside this repository. {WHO}")
    if out.stage.is_import or out.files:
        raise ValueError("imports and cloud versioning cannot be checked before DVC fetches them. Pull other targets.")
    if out.hash_info and (out.hash_info.name != "md5" or not is_object_name(out.hash_info.value)):
        raise ValueError(f"{out.hash_info} is not an MD5 as DVC 3 writes it. {WHO} `dvc commit` writes it again.")
    try:
        dvc_outputs.check_output(path_of(out), tracked)
    except ValueError as problem:
        raise ValueError(f"{problem}. {WHO} Move your own data with `dvc move`.") from None


def is_object_name(name: str) -> bool:
    return dvc_outputs.is_md5(name.removesuffix(dvc_outputs.DIR))


def files_of(out: Any, open_remote: Callable[[], Any]) -> dict[str, str]:
    """The MD5 of each file of one output, by its path from the repository's root; ValueError for a bad list."""
    if not out.hash_info:  # of a stage that has never run
        return {}
    path, name = path_of(out), out.hash_info.value
    if not name.endswith(dvc_outputs.DIR):
        return {path: name}
    return {f"{path}/{relative}": md5 for relative, md5 in load_listing(name, out.cache, open_remote).items()}


def load_listing(name: str, local: Any, open_remote: Callable[[], Any]) -> dict[str, str]:
    """The MD5 of each path in the `.dir` object `name`; ValueError if it is bad or missing.

    A good one is put into the cache, `local`. A bad one is not, because `dvc repro` would write it too.
    """
    cached = Path(local.oid_to_path(name))
    if cached.exists():
        return parse_listing(read_cached(cached), name, str(cached), "Delete it and pull again.")
    odb = open_remote()
    source = odb.oid_to_path(name)
    content = fetch_listing(odb.fs, source)
    files = parse_listing(content, name, f"{source} in the remote", PUSH_AGAIN)
    with reraise_disk_errors(cached), tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "listing")
        copy.write_bytes(content)
        local.add(str(copy), local.fs, name)
    return files


def read_cached(path: Path) -> bytes:
    """The content of an object in the cache; ValueError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as problem:
        raise ValueError(f"{path} cannot be read ({problem.strerror})") from None


def fetch_listing(filesystem: Any, path: str) -> bytes:
    """The content of an object in a remote; ValueError if it cannot be had."""
    try:
        size = filesystem.size(path)
        if size <= dvc_outputs.MAX_LISTING_BYTES:
            return filesystem.cat_file(path)
    except FileNotFoundError:
        missing = f"neither the cache nor the remote has {path}, or the remote cannot be reached"
        raise ValueError(f"{missing}. Check the connection, or ask for a `dvc push`.") from None
    except Exception as problem:  # of any kind, because remotes have libraries of their own
        raise ValueError(f"{path} in the remote cannot be read: {problem}") from None
    raise ValueError(f"{path} in the remote has {size} bytes, more than {dvc_outputs.MAX_LISTING_BYTES}. {PUSH_AGAIN}")


def parse_listing(content: bytes, name: str, source: str, advice: str) -> dict[str, str]:
    """What a `.dir` object lists; ValueError, with advice, if its MD5 is not its name, or it is forged."""
    if (md5 := hashlib.md5(content).hexdigest() + dvc_outputs.DIR) != name:
        raise ValueError(f"{source} is damaged or forged: its MD5 is {md5}. {advice}")
    try:
        return dvc_outputs.read_listing(content)
    except ValueError as problem:
        raise ValueError(f"{source} is forged: {problem}. {WHO}") from None


def check_objects(objects: Mapping[str, Path]) -> None:
    """Compare each file in DVC's cache with the MD5 that is its name; SesamError if one differs or is missing.

    DVC does not: it takes an object that is read-only for a good one.
    """
    paths = {file: path for path, file in objects.items()}  # several may have the same content
    problems = []
    for file, path in ProgressBar(paths.items(), "check", unit="file"):
        try:
            md5 = dvc_outputs.file_md5(file)
        except OSError as problem:
            problems.append(f"{path}: {file} cannot be read ({problem.strerror}). Ask for a `dvc push`.")
            continue
        if md5 != file.parent.name + file.name:
            problems.append(f"{path}: {file} has the MD5 {md5}. Delete it and pull again; if that fails: {PUSH_AGAIN}")
    refuse(problems)
