"""Weak labels to semantic pseudo-labels with Segment Anything: the library behind the stages."""

import os

# PyTorch reads it when it first makes a large tensor: huge pages save a page fault every 4 KiB
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
