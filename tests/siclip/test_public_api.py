"""The names that the documentation promises, in a fresh interpreter that has imported nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

import siclip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "models.shaped_attention",
        "diagnostics.jensen_shannon_divergence",
        "losses.contrastive_loss",
        "config.ModelConfig",
        "create_model",
        "export_onnx",
        "preprocess",
    ],
)
def test_names_resolve_after_a_bare_import(name: str) -> None:
    code = f"import siclip; print(siclip.{name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == name.rpartition(".")[2], done.stderr


def test_public_names_are_listed() -> None:
    assert {"create_model", "models", "inherit", "diagnostics"} <= set(dir(siclip))
    with pytest.raises(AttributeError, match="no attribute 'modles'"):
        siclip.modles  # noqa: B018
