"""A few injected faults; `make fault-injection` tries thousands."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

QUICK = ("prepare", "weak_labels", "embed", "prompts", "sam_masks", "select_masks", "merge_labels")


@pytest.mark.long
def test_faults_are_survived() -> None:
    """In a separate process: its stages run in forks, which do not have their parent's threads."""
    command = [sys.executable, "-m", "tests.robustness.fault_injection", "--cases", "4", "--stages", *QUICK]
    env = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 survived" in done.stdout
