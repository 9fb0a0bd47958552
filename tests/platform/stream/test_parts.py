"""What tasks of Ray Data read, and what they import for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from siclip.errors import UserError
from siclip.models import model_config
from siclip_platform.recipes.digits import digits_student
from siclip_platform.stream import Stream
from siclip_platform.stream.parts import Part, PartReader, parts_of
from siclip_platform.stream.ray_reader import ReceivedWindows
from siclip_platform.stream.windows import Group

MODEL = model_config("siclip-nano")
TASK = """\
import pickle, sys
with open(sys.argv[1], "rb") as file:
    read = pickle.load(file)
rows = sum(table.num_rows for table in read({"item": [0]}))
print(rows, [name for name in ("torch", "torchvision", "timm", "open_clip", "mlflow") if name in sys.modules])
"""


def stream_of(digits: Path) -> Stream:
    return Stream.of(digits_student(digits).updated({"data.window_row_groups": 3}), MODEL)


def parts(stream: Stream, stop: int) -> list[Part]:
    return list(parts_of(stream.sources, stream.mixture, 50, 0, stop))


@pytest.mark.parametrize("decode", ["trainer", "reader"])
def test_a_task_imports_no_torch(decode: str, digits: Path, tmp_path: Path) -> None:
    """Its import takes seconds of CPU time in every reading process."""
    stream = stream_of(digits)
    decoder = stream.decoder if decode == "reader" else None
    reader = PartReader(stream.sources, stream.captions, 0, decoder)
    (tmp_path / "task").write_bytes(cloudpickle.dumps(reader.task(parts(stream, 100))))
    done = subprocess.run(
        [sys.executable, "-c", TASK, str(tmp_path / "task")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split(maxsplit=1) == ["90", "[]\n"]  # three row groups of 30


def test_rows_are_released_when_no_batch_needs_them(digits: Path) -> None:
    stream = stream_of(digits)
    reader = PartReader(stream.sources, stream.captions, 0)
    needed = parts(stream, 180)
    assert [part.rows for part in needed] == [90, 90]
    blocks = [(part, 0, Group.of_table(table)) for part in needed for table in reader.blocks(part)]
    windows = ReceivedWindows(iter(blocks))
    for part in needed:
        assert len(windows.get(0, part.window).samples(0, 90)) == 90
    windows.forget(50)
    assert set(windows.held) == {part.key for part in needed}
    windows.forget(100)  # the second batch has the last samples of the first window
    assert set(windows.held) == {needed[1].key}
    windows.forget(180)
    assert not windows.held


def test_a_task_that_fails_raises_its_own_error_in_every_thread(digits: Path) -> None:
    stream = stream_of(digits)

    def failing() -> object:
        try:
            raise UserError("shard x is damaged")
        except UserError as error:
            raise RuntimeError("many lines of Ray's own") from error
        yield

    windows = ReceivedWindows(failing())  # type: ignore[arg-type]
    (part,) = parts(stream, 50)
    for _ in range(2):
        with pytest.raises(UserError, match=r"^shard x is damaged$"):
            windows.get(0, part.window).samples(0, 1)


def test_rows_that_do_not_come_are_an_error(digits: Path) -> None:
    (part,) = parts(stream_of(digits), 50)
    with pytest.raises(RuntimeError, match="ended before all requested rows"):
        ReceivedWindows(iter(())).get(0, part.window).samples(0, 1)
