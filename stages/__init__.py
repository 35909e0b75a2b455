"""The nodes of dvc.yaml, one file each: read, call the library `sesam`, write."""

import sesam  # noqa: F401  (its settings of PyTorch's memory, before PyTorch)
from sesam.artifacts.stage_guard import guard_stage as around_main  # noqa: F401  (`run_main` enters it)
