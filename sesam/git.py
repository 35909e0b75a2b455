"""Git's commands."""

import subprocess
from pathlib import Path


def git(*command: str, cwd: Path) -> str:
    """A git command's output; "" where git fails or is not installed."""
    try:
        return subprocess.run(("git", *command), cwd=cwd, capture_output=True, check=True, encoding="utf-8").stdout
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return ""
