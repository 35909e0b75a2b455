"""Every open figure of docs/results/performance.md that needs a GPU, in one call of at most nine minutes.

    python -m benchmarks.gpu --out gpu.md
    python -m benchmarks.gpu --small              # the same parts, as small as they go: a trial on a CPU

Each part is a benchmark of its own with the time that is left for it; one that fails or runs out of time says so and
loses nothing of the others. The page names card, versions and commit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

MINUTES = 9.0
SEGFORMER = "segformer_mit-b2_8xb2-160k_ade20k-512x512"
WORKERS = str(max(2, (os.cpu_count() or 2) - 2))


class Part(NamedTuple):
    """A benchmark. share: of the time, at most; small: what replaces its options in a trial."""

    title: str
    module: str
    options: tuple[str, ...]
    small: tuple[str, ...]
    share: float


NETWORKS = ("--times", "1", "--workers", WORKERS)
FEW = ("--times", "1", "--workers", "1", "--iterations", "6", "--images", "4")
PARTS = [
    Part(
        "SAM's stages: encoder's share of the matrix rate, SamPredictor, segment-anything-fast's recipe",
        "benchmarks.sam_engine",
        ("--model", "vit_h", "--images", "192", "--peer-images", "3", "--workers", WORKERS, "--whole"),
        ("--model", "bundled", "--images", "2", "--peer-images", "1", "--workers", "1", "--whole", "--prompts", "4"),
        0.35,
    ),
    Part(
        "SAM 2.1-L and SAM 3's tracker beside transformers",
        "benchmarks.sam_families",
        (
            *("--model", "sam2_large", "sam3_tracker", "--images", "64", "--peer-images", "4"),
            *("--workers", WORKERS),
        ),
        ("--model", "sam2_tiny", "--images", "1", "--prompts", "2", "--size", "128", "256", "--workers", "1"),
        0.15,
    ),
    Part(
        "The published network beside mmsegmentation's float32",
        "benchmarks.networks",
        (
            *("--preset", "cityscapes", "--size", "2048", "1024", "--iterations", "45", "--images", "240"),
            *("--precisions", "bfloat16", "--against", "float32", *NETWORKS),
        ),
        FEW,
        0.3,
    ),
    Part(
        "SegFormer-B2, crops of 512 × 512, eight a step, beside mmsegmentation's",
        "benchmarks.networks",
        (
            *("--preset", "folder", "--configs", SEGFORMER, "--size", "1024", "512", "--iterations", "45"),
            *("--images", "60", "--precisions", "bfloat16", *NETWORKS),
        ),
        ("--configs", "segformer_mit-b0_8xb2-160k_ade20k-512x512", *FEW),
        0.1,
    ),
    Part(
        "DINOv2's ViT-B/14 with a linear head, crops of 512 × 512, eight a step, all of it trained, the same",
        "benchmarks.networks",
        (
            *("--preset", "folder", "--network", "dinov2", "--size", "1024", "512", "--iterations", "45"),
            *("--images", "60", "--precisions", "bfloat16", *NETWORKS),
        ),
        ("--network", "dinov2", *FEW, "--iterations", "3"),
        0.1,
    ),
]


def header() -> str:
    """Card, versions and commit."""
    gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if gpu else f"a CPU, {os.cpu_count()} threads (a trial)"
    commit = subprocess.run(("git", "describe", "--always", "--dirty"), capture_output=True, text=True, check=False)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "onedl-mmsegmentation")]
    words = [f"One {machine}", f"{os.cpu_count()} cores", *versions, f"CUDA {torch.version.cuda}" if gpu else "no CUDA"]
    return f"{', '.join(words)}; commit `{commit.stdout.strip()}`, {time.strftime('%Y-%m-%d')}."


def run_part(part: Part, options: tuple[str, ...], seconds: float) -> str:
    """A section of the page: the command and what it printed, also where it failed or its time ended."""
    command = ("python", "-m", part.module, *options)
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    started, pipe = time.monotonic(), subprocess.PIPE
    process = subprocess.Popen(
        (sys.executable, *command[1:]), env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=seconds)
        end = "" if process.returncode == 0 else f"Failed:\n{errors[-2000:]}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # benchmarks run processes of their own, which would go on
        output, _ = process.communicate()
        end = f"Stopped after {seconds:.0f} seconds."
    body = "\n\n".join(text.strip() for text in (f"`{' '.join(command)}`", output, end) if text.strip())
    return f"## {part.title}\n\n{body}\n\n({time.monotonic() - started:.0f} s)\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of all parts (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a trial, on a CPU too")
    parser.add_argument("--out", type=Path, help="a file for the page, beside the output")
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.small):
        parser.error("this machine has no GPU; --small tries the parts on a CPU")
    end, page = time.monotonic() + 60 * options.minutes, f"# GPU figures\n\n{header()}\n\n"
    print(page, flush=True)
    for k, part in enumerate(PARTS):
        shares = [other.share for other in PARTS[k:]]  # what a part does not use is left to the next ones
        seconds = max(1.0, (end - time.monotonic()) * part.share / sum(shares))
        section = run_part(part, part.small if options.small else part.options, seconds)
        print(section, flush=True)
        page += f"{section}\n"
        if options.out:
            options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
