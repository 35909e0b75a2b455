"""Progress bars on a terminal and in a log."""

import io
import sys
import time

import pytest

from sesam.execution import progress
from sesam.execution.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    """What is written while 20 items take 10 ms each."""
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in ProgressBar(range(20), "embed", unit="image"):
        time.sleep(0.01)
    return stream.getvalue()


def test_a_log_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO()) == ""  # it took less than half a minute
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.05)
    lines = shown(monkeypatch, io.StringIO()).strip().splitlines()
    assert 1 <= len(lines) < 20
    assert all(line.startswith("embed: ") and "image/s" in line and "<" in line for line in lines)


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, Terminal())
    assert text.startswith("\rembed:   0%") and "\n" not in text
