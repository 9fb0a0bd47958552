"""House rules that a test can check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_platform_is_no_package() -> None:
    """With an ``__init__.py``, `platform/` would shadow Python's `platform`.

    From the repository root even ``import uuid`` would fail.
    """
    assert not (ROOT / "platform" / "__init__.py").exists()
    code = "import platform, uuid; print(platform.python_version())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sys.version.split()[0]


def test_the_library_runs_without_ray_mlflow_and_optuna() -> None:
    code = """
import sys, pkgutil, importlib
for name in ("ray", "mlflow", "optuna", "siclip_platform", "pyarrow", "simplejpeg"):
    sys.modules[name] = None
import siclip
names = [m.name for m in pkgutil.walk_packages(siclip.__path__, "siclip.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


@pytest.mark.parametrize(
    "name", ["siclip.config", "siclip.errors", "siclip_platform.recipes.recipe", "siclip_platform.cli"]
)
def test_modules_that_the_command_line_imports_first_do_not_import_torch(name: str) -> None:
    code = f"import sys, {name}; print(sorted({{'torch', 'ray', 'mlflow', 'optuna'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
