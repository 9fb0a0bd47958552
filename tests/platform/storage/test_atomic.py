from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from siclip_platform.storage.atomic import TEMPORARY, replacing, write_text_atomically


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert list(tmp_path.glob(TEMPORARY)) == [temporary]
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_in_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_text_is_written_as_utf8_in_any_locale(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from siclip_platform.storage.atomic import write_text_atomically\n"
    code += "write_text_atomically(Path(sys.argv[1]), '\\u00d7\\u03b1')"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True, env=environment)
    assert (tmp_path / "a").read_bytes() == "×α".encode()
    write_text_atomically(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "second"


def test_importing_storage_loads_neither_torch_nor_ray() -> None:
    code = "import sys, siclip_platform.storage, siclip_platform.storage.atomic, siclip_platform.storage.hashing\n"
    code += "import siclip_platform.storage.listing\n"
    code += "print(sorted({'torch', 'ray', 'mlflow', 'fsspec'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
