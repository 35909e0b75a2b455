"""Progress bars: on a terminal tqdm's, in a log a line every half minute."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 30


class ProgressBar(tqdm):  # type: ignore[type-arg]
    """tqdm; where stderr is no terminal, as in Slurm's and CI's logs, lines with rate and time left."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options: dict[str, Any] = {"leave": False, "dynamic_ncols": True, "mininterval": 0.5}
        if not sys.stderr.isatty():
            options |= {"dynamic_ncols": False, "mininterval": LOG_SECONDS, "delay": LOG_SECONDS, "miniters": 1}
        super().__init__(*args, **options | kwargs)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """A function that shows the text; see tqdm."""
        if file.isatty():
            return tqdm.status_printer(file)
        return lambda text: print(text, file=file, flush=True) if text.strip() else None
