"""The bookkeeping of very many images: the manifest, archives, and DVC; no image is computed.

    python -m benchmarks.many_images --images 1000000     (about 8 GB of disk below --folder)

An image has a file of 1 KB in each of prompts, masks and selected and two in predictions, as archives, and two
pseudo-label PNGs. One of these artifacts is made, for the others take as long; PNGs are made for the first --pngs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from sesam.artifacts.atomic_io import atomic_directory, read_bytes, write_text
from sesam.artifacts.manifest import ImageRecord, Manifest


def name_of(k: int) -> str:
    return f"street {k // 10000:03d}/{k:07d}"


def save_manifest(folder: Path, images: int) -> None:
    items = tuple(
        ImageRecord(
            name_of(k),
            f"data/raw/mine/images/train/{name_of(k)}.jpg",
            1024,
            2048,
            hashlib.sha256(b"%d" % k).hexdigest(),
        )
        for k in range(images)
    )
    Manifest("mine", ("road", "car"), ((0, 0, 0), (1, 1, 1)), items, ()).save(folder / "dataset")


def load_manifest(folder: Path, images: int) -> None:
    assert len(Manifest.load(folder / "dataset").train) == images


def make_archives(folder: Path, images: int) -> None:
    """An artifact as a stage makes it: small files, then archives of them."""
    content = os.urandom(512).hex()
    with atomic_directory(folder / "prompts", {"seed": "0"}, packed=True) as unfinished:
        for k in range(images):
            write_text(unfinished / f"{name_of(k)}.json", content)


def read_archives(folder: Path, images: int) -> None:
    for k in range(images):
        read_bytes(folder / f"prompts/{name_of(k)}.json")


def make_pngs(folder: Path, images: int) -> None:
    for k in range(images):
        path = folder / f"labels/{name_of(k)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % k + bytes(4096))


def measured(work: Callable[[Path, int], None], folder: Path, images: int) -> tuple[float, float]:
    """Seconds, and peak memory in GB of this process and of what it ran."""
    started = time.perf_counter()
    work(folder, images)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.perf_counter() - started, peak / 1e6


def run_dvc(*command: str, folder: Path) -> None:
    subprocess.run(["dvc", *command, "--quiet"], cwd=folder, check=True)


def add_archives(folder: Path, images: int) -> None:
    run_dvc("add", "prompts", folder=folder)


def add_pngs(folder: Path, images: int) -> None:
    run_dvc("add", "labels", folder=folder)


def compare(folder: Path, images: int) -> None:
    run_dvc("status", folder=folder)


def push(folder: Path, images: int) -> None:
    run_dvc("push", folder=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--pngs", type=int, default=100_000, help="images whose label is made")
    parser.add_argument("--folder", type=Path, help="where there is disk; what is made in it is removed")
    options = parser.parse_args()
    work = [
        ("manifest saved, as by prepare", save_manifest, options.images),
        ("manifest loaded, as by every stage", load_manifest, options.images),
        ("files made and packed, as by prompts", make_archives, options.images),
        ("files read, as by the next stage", read_archives, options.images),
        ("dvc add of the archives", add_archives, options.images),
        ("label PNGs made", make_pngs, options.pngs),
        ("dvc add of the PNGs", add_pngs, options.pngs),
        ("dvc status, nothing changed", compare, options.pngs),
        ("dvc push to a folder", push, options.pngs),
    ]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name, "repository")
        folder.mkdir()
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        run_dvc("init", folder=folder)
        run_dvc("remote", "add", "-d", "lab", f"{name}/lab", folder=folder)
        print("| | images | seconds | peak memory, GB |\n| --- | --- | --- | --- |")
        for title, function, images in work:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a process each, for its peak
                seconds, peak = pool.submit(measured, function, folder, images).result()
            print(f"| {title} | {images} | {seconds:.1f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
