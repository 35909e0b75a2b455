"""Files from servers, kept in the user's cache folder."""

from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import Any

import pooch

from sesam.execution.progress import ProgressBar

TIMEOUT = 30  # seconds without CHUNK bytes: requests' own timeout begins again with each byte
CHUNK = 1 << 16


class _Bar(ProgressBar):
    def __bool__(self) -> bool:  # pooch asks whether there is a bar; tqdm answers whether it has a total
        return True


def fetch(url: str, known_sha256: str | None, name: str | None = None) -> Path:
    """The path of the file at an address, downloaded if it is missing; name: None makes one of the whole address.

    OSError for a server that does not answer, is too slow or breaks off, ValueError for another SHA-256.
    """
    known = f"sha256:{known_sha256}" if known_sha256 else None
    return Path(pooch.retrieve(url, known, fname=name, path=pooch.os_cache("sesam"), downloader=_download))


def _download(url: str, output: Any, pup: Any) -> None:
    """pooch's own download to a file; TimeoutError if fewer than CHUNK bytes arrive in TIMEOUT seconds."""
    bar = _Bar(unit="B", unit_scale=True)
    download = pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, timeout=TIMEOUT)
    done: Future[None] = Future()

    def run() -> None:
        try:
            done.set_result(download(url, output, pup))
        except Exception as problem:  # of many kinds; the waiting thread raises it
            done.set_exception(problem)

    Thread(target=run, daemon=True).start()  # nothing else ends a server that sends a byte now and then
    received = -1.0
    while not wait([done], TIMEOUT).done:
        if bar.n == received:
            bar.close()
            raise TimeoutError(f"it sent fewer than {CHUNK} bytes in {TIMEOUT} seconds")
        received = bar.n
    done.result()
