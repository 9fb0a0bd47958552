"""The documented public names, each in a process that has imported nothing else of the project."""

from __future__ import annotations

import subprocess
import sys

import pytest

import siclip

NAMES = (
    "models.shaped_attention",
    "diagnostics.jensen_shannon_divergence",
    "losses.contrastive_loss",
    "config.ModelConfig",
    "create_model",
    "export_onnx",
    "preprocess",
)
EACH_IN_A_CHILD = """
import os, sys
# Once for all children, because it takes seconds.
import torch
for name in sys.argv[1:]:
    if os.fork() == 0:
        import siclip
        print(eval("siclip." + name).__name__, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
def test_names_resolve_after_a_bare_import() -> None:
    command = [sys.executable, "-c", EACH_IN_A_CHILD, *NAMES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [name.rpartition(".")[2] for name in NAMES], done.stderr


def test_public_names_are_listed() -> None:
    assert {"create_model", "models", "inherit", "diagnostics"} <= set(dir(siclip))
    with pytest.raises(AttributeError, match="no attribute 'modles'"):
        siclip.modles  # noqa: B018
