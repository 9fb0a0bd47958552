from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from siclip.errors import UserError
from siclip_platform.storage.locking import claim, locked

HOLD = """
import sys, time
from pathlib import Path
from siclip_platform.storage.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="in use: wait"):
            claim(path, "in use: wait")
        holder.kill()
        holder.wait()
    claim(path, "in use: wait").release()


def test_a_second_caller_waits_also_within_the_process(tmp_path: Path) -> None:
    path, order, started = tmp_path / "lock", [], threading.Event()

    def second() -> None:
        started.set()
        with locked(path):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(path):
        thread.start()
        assert started.wait(60)
        # Enough for several attempts of the second caller.
        thread.join(0.3)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_a_claim_is_released_from_another_thread(tmp_path: Path) -> None:
    lock = claim(tmp_path / "lock", "in use")
    with pytest.raises(UserError, match="in use"):
        claim(tmp_path / "lock", "in use")
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    claim(tmp_path / "lock", "in use").release()


def test_a_lock_file_that_is_deleted_while_held_excludes_later_callers(tmp_path: Path) -> None:
    """A build deletes its marker before it releases it; a waiting process must not hold the deleted file."""
    path, held = tmp_path / "lock", []

    def waiting() -> None:
        with locked(path):
            held.append(path.exists())

    thread = threading.Thread(target=waiting)
    with locked(path):
        thread.start()
        thread.join(0.2)
        path.unlink()
    thread.join(60)
    assert held == [True]


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError), locked(tmp_path / "file" / "lock"):
        pass
    with pytest.raises(OSError):
        claim(tmp_path / "file" / "lock", "in use")
