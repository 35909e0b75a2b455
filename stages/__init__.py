"""The nodes of dvc.yaml, one file each: read, call the library `sesam`, write."""

import sesam  # noqa: F401  (its settings of PyTorch's memory, before PyTorch)
