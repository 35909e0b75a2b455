"""Git's commands."""

import subprocess
from pathlib import Path

from sesam.errors import SesamError


def git(*command: str, cwd: Path) -> str:
    """A git command's output; "" where git fails or is not installed. SesamError where it distrusts the folder."""
    try:
        return subprocess.run(("git", *command), cwd=cwd, capture_output=True, check=True, encoding="utf-8").stdout
    except subprocess.CalledProcessError as problem:
        if "dubious ownership" not in problem.stderr:
            return ""
        reason = problem.stderr.partition("\n")[0]
        remedy = f"git config --global --add safe.directory {cwd.absolute()}"
        raise SesamError(f"git: {reason}. If you trust its owner, run `{remedy}`.") from None
    except (OSError, UnicodeDecodeError):
        return ""
