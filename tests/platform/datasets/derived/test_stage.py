"""Stages keep finished tasks, run the others, and give the same result after any number of interruptions."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siclip.errors import UserError
from siclip_platform.datasets.derived.stage import (
    DONE,
    PLAN,
    Pool,
    Record,
    Task,
    TaskOutput,
    clear_stage,
    finished,
    run_stage,
)
from siclip_platform.storage.atomic import replacing

HERE = Pool(here=True)
PLAN_A = {"seed": 1, "sizes": [1, 2]}


def tasks(count: int) -> list[Task]:
    return [Task(name=f"t{number:02d}", payload={"number": number}) for number in range(count)]


def recorder(log: list[int] | None = None) -> Callable[[Path, Task], TaskOutput]:
    """Return work that writes a file of ``number`` bytes and logs that it ran."""

    def work(folder: Path, task: Task) -> TaskOutput:
        number = task.payload["number"]
        if log is not None:
            log.append(number)
        with replacing(folder / f"{number}.txt") as temporary:
            temporary.write_text("x" * number)
        return TaskOutput(files=(f"{number}.txt",), result={"square": number**2})

    return work


def test_records_are_in_the_order_of_the_tasks_and_describe_the_files(tmp_path: Path) -> None:
    records = run_stage(tmp_path, PLAN_A, tasks(4)[::-1], recorder(), pool=HERE)
    assert [record.task for record in records] == ["t03", "t02", "t01", "t00"]
    assert [record.result for record in records] == [{"square": n * n} for n in (3, 2, 1, 0)]
    file = records[0].files[0]
    assert (file.path, file.bytes, file.sha256) == ("3.txt", 3, hashlib.sha256(b"xxx").hexdigest())


def test_a_second_run_repeats_only_missing_or_changed_tasks(tmp_path: Path) -> None:
    run_stage(tmp_path, PLAN_A, tasks(5), recorder(), pool=HERE)
    (tmp_path / "1.txt").unlink()
    (tmp_path / "2.txt").write_text("another size")
    # A record that was cut short counts as missing.
    (tmp_path / DONE / "t03.json").write_text('{"task": "t0')
    changed = [*tasks(4), Task(name="t04", payload={"number": 4, "more": True})]
    log: list[int] = []
    seen: list[str] = []
    records = run_stage(tmp_path, PLAN_A, changed, recorder(log), pool=HERE, on_record=lambda r: seen.append(r.task))
    assert log == [1, 2, 3, 4]
    assert seen == ["t00", "t01", "t02", "t03", "t04"]
    assert [record.task for record in records] == ["t00", "t01", "t02", "t03", "t04"]
    assert (tmp_path / "2.txt").read_text() == "xx"


def test_a_stopped_run_keeps_finished_tasks(tmp_path: Path) -> None:
    def stop(record: Record) -> None:
        if record.task == "t02":
            raise UserError("enough")

    log: list[int] = []
    with pytest.raises(UserError, match="enough"):
        run_stage(tmp_path, PLAN_A, tasks(6), recorder(log), pool=HERE, on_record=stop)
    # Left behind by a process that was killed inside `replacing`.
    (tmp_path / ".3.txt.77.tmp").write_text("half")
    run_stage(tmp_path, PLAN_A, tasks(6), recorder(log), pool=HERE)
    assert log == [0, 1, 2, 3, 4, 5]
    assert not list(tmp_path.glob(".*.tmp"))


def test_another_plan_is_refused_with_the_differences(tmp_path: Path) -> None:
    run_stage(tmp_path, PLAN_A, tasks(1), recorder(), pool=HERE)
    with pytest.raises(UserError, match=r"other settings:\n  seed: stored 1, now 2\n") as error:
        run_stage(tmp_path, {**PLAN_A, "seed": 2}, tasks(1), recorder(), pool=HERE)
    assert str(tmp_path) in str(error.value)


def test_foreign_files_are_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run_stage(tmp_path, PLAN_A, tasks(1), recorder(), pool=HERE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="folder that can be written"):
        run_stage(tmp_path / "mine", PLAN_A, tasks(1), recorder(), pool=HERE)


def test_clearing_a_stage_keeps_its_files(tmp_path: Path) -> None:
    run_stage(tmp_path, PLAN_A, tasks(2), recorder(), pool=HERE)
    assert finished(tmp_path, tasks(1)[0])
    clear_stage(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.txt", "1.txt"]
    assert not finished(tmp_path, tasks(1)[0])


def test_a_task_name_must_stay_inside_the_folder() -> None:
    for name in ("../a", "", ".hidden", "a/b"):
        with pytest.raises(ValueError, match="name"):
            Task(name=name, payload={})


def fragile(log: Path) -> Callable[[Path, Task], TaskOutput]:
    """Return work whose process is once killed at task 2; every start creates a file in ``log``."""

    def work(folder: Path, task: Task) -> TaskOutput:
        number = task.payload["number"]
        started = len(list(log.glob(f"{number}-*")))
        (log / f"{number}-{started}").touch()
        if number == 2 and not started:
            os.kill(os.getpid(), signal.SIGKILL)
        with replacing(folder / f"{number}.txt") as temporary:
            temporary.write_text("x" * number)
        return TaskOutput(files=(f"{number}.txt",), result={"square": number**2})

    return work


def fragile_class(log: Path) -> type:
    inner = fragile(log)

    class Fragile:
        def __init__(self, power: int) -> None:
            self.power = power

        def __call__(self, folder: Path, task: Task) -> TaskOutput:
            output = inner(folder, task)
            return TaskOutput(files=output.files, result={"square": task.payload["number"] ** self.power})

    return Fragile


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("actors", [False, True])
def test_a_killed_worker_repeats_no_finished_task(tmp_path: Path, own_ray: None, actors: bool) -> None:
    log = tmp_path / "log"
    log.mkdir()
    work: Any = fragile_class(log) if actors else fragile(log)
    pool = Pool(cpus=0.5, actors=1, arguments=(2,)) if actors else Pool(cpus=0.5)
    records = run_stage(tmp_path / "stage", PLAN_A, tasks(6), work, pool=pool)
    here = run_stage(tmp_path / "here", PLAN_A, tasks(6), recorder(), pool=HERE)
    assert records == here
    starts = {number: len(list(log.glob(f"{number}-*"))) for number in range(6)}
    assert starts[2] == 2
    assert all(count == 1 for number, count in starts.items() if number != 2)


@pytest.mark.slow
def test_a_user_error_in_a_worker_is_raised_and_other_tasks_are_kept(tmp_path: Path, own_ray: None) -> None:
    def work(folder: Path, task: Task) -> TaskOutput:
        if task.payload["number"] == 3:
            raise UserError("row 7 of the source is missing")
        return TaskOutput(result={})

    with pytest.raises(UserError, match="row 7 of the source"):
        run_stage(tmp_path, PLAN_A, tasks(4), work, pool=Pool(cpus=4))
    assert (tmp_path / PLAN).is_file()
    assert {path.stem for path in (tmp_path / DONE).iterdir()} >= {"t00"}
