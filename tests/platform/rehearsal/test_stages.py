"""The parts of a rehearsal: the small recipe, the processes, the stop at a failing stage, the table."""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rehearsal_parts import nano_recipe, rehearsal_of, write_shards
from rich.console import Console
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.datasets.importing.beside import BesideConfig
from siclip_platform.display import Terminal
from siclip_platform.rehearsal import worker
from siclip_platform.rehearsal.job import CPU_BATCH, Rehearsal
from siclip_platform.rehearsal.preparation import Measured, check_recipe, import_rows, rate
from siclip_platform.rehearsal.rehearse import Outcome, prepare_folder, rehearse
from siclip_platform.rehearsal.show import commands, duration, show
from siclip_platform.rehearsal.stages import Result, Stage, StageFailed, State, check_disk, stages
from siclip_platform.rehearsal.training import check_steps
from siclip_platform.rehearsal.watched import Watched, watch

HOUR = 3600


@pytest.fixture
def job(tmp_path: Path, nano_teacher: Path) -> Rehearsal:
    source = write_shards(tmp_path / "cc", 4, 20)
    return rehearsal_of(source, nano_recipe(tmp_path / "whole", nano_teacher), tmp_path / "scratch")


def watched(code: int, text: str, folder: Path) -> Watched:
    log = folder / "stage.log"
    log.write_text(text)
    return Watched(code, 3.0, 5 * 2**30, False, log)


def printed(outcome: Outcome) -> str:
    console = Terminal(width=200, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    show(outcome, console)
    assert isinstance(console, Console)
    return console.export_text()


def test_what_happens_late_happens_within_the_few_steps(job: Rehearsal) -> None:
    schedule = [{"step": step, "weights": {"feature_distillation": step}} for step in (100, 500)]
    values = {"training.thaw_step": 900, "loss.schedule": schedule, "data.limit": 60}
    whole = job.recipe.updated({**values, "training.micro_batch_size": 64, "training.batch_norm": "eval"})
    small = job.model_copy(update={"recipe": whole}).small_recipe()
    assert small.training.steps == 12 and small.data.limit == 0
    assert small.training.thaw_step == 6
    assert [(stage.step, stage.weights) for stage in small.loss.schedule] == [
        (1, {"feature_distillation": 100}),
        (2, {"feature_distillation": 500}),
    ]
    assert (small.training.batch_size, small.training.micro_batch_size) == (CPU_BATCH, CPU_BATCH // 2)
    assert small.training.checkpoint_every == 1
    on_gpu = job.model_copy(update={"recipe": whole, "on_gpu": True}).small_recipe().training
    assert (on_gpu.batch_size, on_gpu.micro_batch_size) == (256, 64)


def test_a_process_is_measured_and_killed_with_its_children(tmp_path: Path) -> None:
    child = "import time; held = bytearray(150 * 2**20); print('held', flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    log, seen = tmp_path / "log", []

    def until() -> bool:
        family = psutil.Process().children(recursive=True)
        seen[:] = family or seen
        return "held" in log.read_text()

    done = watch(["-c", code], log, until)
    assert done.killed and done.code == -9 and done.memory_bytes > 150 * 2**20
    psutil.wait_procs(seen, timeout=10)
    assert len(seen) == 2 and not any(process.is_running() for process in seen)


def test_a_failed_process_says_why(tmp_path: Path) -> None:
    refused = "a line\nerror: checkpoint x.pt does not exist\nname another\n"
    assert watched(2, refused, tmp_path).message == "checkpoint x.pt does not exist\nname another"
    assert (
        watched(1, "Traceback …\nValueError: bad", tmp_path).message == "it ended with exit code 1: ValueError: bad"
    )
    for code, text in ((-9, ""), (1, "torch.OutOfMemoryError: CUDA out of memory.")):
        assert "out of memory" in watched(code, text, tmp_path).message
        assert "5.0 GiB" in watched(code, text, tmp_path).message


def test_a_failing_stage_stops_the_rehearsal_and_says_when_the_job_would_have_failed(
    job: Rehearsal, tmp_path: Path
) -> None:
    begun: list[str] = []

    def fail(job: Rehearsal, state: State) -> Result:
        raise StageFailed("embeddings need 3 TB: use int8", watched(2, "", tmp_path))

    def never(job: Rehearsal, state: State) -> Result:
        raise AssertionError("a stage after the failed one was begun")

    chosen = [
        Stage("import", lambda job, state: Result(9.0, 2**30, whole_seconds=30 * HOUR)),
        Stage("captions coca", lambda job, state: Result(5.0, 2**30, whole_seconds=70 * HOUR)),
        Stage("embeddings dfn", fail),
        Stage("training, killed", never),
    ]
    outcome = rehearse(job, begun.append, chosen)
    assert begun == ["import", "captions coca", "embeddings dfn"]
    text = printed(outcome)
    assert "embeddings dfn failed; in the whole job it would have failed after about 4.2 days:" in text
    assert "embeddings need 3 TB: use int8" in text and "stage.log" in text
    assert re.search(r"captions coca +5 s +1\.0 GiB +2\.9 days", text)


def test_after_success_the_commands_of_the_whole_job(job: Rehearsal) -> None:
    recipe = job.recipe.updated({"data.captions": ["coca"], "data.teacher_embeddings": "nano"})
    whole = job.model_copy(
        update={"recipe": recipe, "changes": ("training.seed=3",), "import_options": ("--validation-share", "0.01")}
    )
    names = [stage.name for stage in stages(whole)]
    assert names[:5] == ["recipe and teacher", "import", "captions coca", "embeddings nano", "training, killed"]
    results = {name: Result(1.0, 2**20) for name in names} | {
        "training, resumed": Result(4.0, 2**20, whole_seconds=7200.0)
    }
    outcome = Outcome(whole, results, None, State(rows=job.whole_rows, bytes=3_210_000_000))
    assert outcome.whole_seconds == 7200 + len(names) - 1
    data, source = recipe.data.path, job.sources[0]
    imported, captioned, embedded, trained = commands(outcome)
    assert imported == f"siclip-platform data import {source} {data} --validation-share 0.01"
    assert captioned.startswith(f"siclip-platform data caption {data} --name coca --model coca_ViT-L-14 ")
    assert embedded.startswith(f"siclip-platform data embed {data} --name nano --teacher {recipe.teacher} ")
    assert embedded.endswith("--augmentations 10 --image-size 64 --captions coca")
    assert trained == "siclip-platform train --recipe nano.yaml --set training.seed=3"
    text = printed(outcome)
    assert text.rstrip().endswith(f"next: {imported}")
    assert "siclip-platform tune --recipe nano.yaml --set training.seed=3 --set data.limit=N" in text
    assert "80 pairs, takes about 2.0 h on this machine and 3.2 GB of disk" in text
    assert (
        "plan --recipe nano.yaml --pairs 80 --pipeline --card NAME" in text
        and f"batch {CPU_BATCH} instead of 256" in text
    )
    given = replace(outcome, job=whole.model_copy(update={"given_captions": ("--from", "x.csv")}))
    assert commands(given)[1] == f"siclip-platform data captions {data} --name coca --from x.csv"


@pytest.mark.parametrize(
    ("steps", "is_right"),
    [
        ([3, 4, 5], True),
        ([1, 2, 3, 4, 5], False),  # it started over
        ([2, 3, 4, 5], False),
        ([4, 5], False),
        ([3, 4], False),
        ([], False),
    ],
)
def test_a_resumed_training_goes_on_after_its_checkpoint(steps: list[int], is_right: bool) -> None:
    if is_right:
        check_steps(steps, saved=2, last=5)
        return
    with pytest.raises(UserError, match="did not go on from there"):
        check_steps(steps, saved=2, last=5)


def test_a_rate_is_without_the_first_shard() -> None:
    assert rate([10, 20, 30], started=0.0, ends=[100.0, 104.0, 110.0]) == 5
    assert rate([10], started=0.0, ends=[4.0]) == 2.5


def test_durations() -> None:
    assert [duration(seconds) for seconds in (3.4, 300, 5 * HOUR, 96 * HOUR)] == ["3 s", "5 min", "5.0 h", "4.0 days"]


def test_an_import_is_extrapolated_and_says_what_it_rejected(job: Rehearsal) -> None:
    started = time.perf_counter()
    found = import_rows(job)
    seconds = time.perf_counter() - started
    assert (found.rows, found.kept) == (40, 40)
    assert found.rows_per_second >= 40 / seconds
    assert re.fullmatch(r"\d+ train, \d+ validation", found.note)


def test_a_disk_that_the_whole_dataset_does_not_fit_on(job: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(job.recipe.data.path)
    whole.mkdir()
    file = whole / "train-00000.parquet"
    file.touch()
    os.truncate(file, 10**9)  # of an earlier import
    disk = shutil.disk_usage(whole)._replace(free=2 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk)
    check_disk(job, State(rows=1, bytes=3 * 10**9), watched(0, "", job.folder.parent))
    with pytest.raises(StageFailed, match=r"stores about 4 GB in .*/whole, whose disk has 3 GB for it"):
        check_disk(job, State(rows=1, bytes=4 * 10**9), watched(0, "", job.folder.parent))


def test_stages_in_their_process_refuse_a_teacher_that_does_not_exist(
    job: Rehearsal, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = job.model_copy(update={"recipe": job.recipe.updated({"teacher": "/nowhere/teacher.pt"})})
    prepare_folder(missing)
    assert worker.main(missing.folder, "recipe") == 2
    assert "error: checkpoint /nowhere/teacher.pt does not exist" in capsys.readouterr().err
    assert not worker.measured_file(missing.folder, "recipe").exists()
    none = job.model_copy(update={"recipe": job.recipe.updated({"teacher": None})})
    prepare_folder(none)  # the earlier one is replaced
    assert worker.main(none.folder, "recipe") == 2
    assert "add --set teacher=FILE" in capsys.readouterr().err
    prepare_folder(job)
    assert worker.main(job.folder, "recipe") == 0
    assert Measured.model_validate_json(worker.measured_file(job.folder, "recipe").read_bytes()).note


def test_bad_input_ends_before_a_stage(tmp_path: Path, job: Rehearsal) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text("data: {path: x}\nmodel: {name: siclip-nano}\ntraining: {steps: 10, batch: 4}\n")
    source, out = job.sources[0], str(tmp_path / "out")
    done = CliRunner().invoke(app, ["rehearse", str(recipe), source, "--out", out])
    assert isinstance(done.exception, UserError)
    assert f"{recipe}:3: training.batch" in str(done.exception)
    recipe.write_text("data: {path: x}\nmodel: {name: siclip-nano}\ntraining: {steps: 10, warmup_steps: 1}\n")
    done = CliRunner().invoke(app, ["rehearse", str(recipe), str(tmp_path / "nothing"), "--out", out])
    assert isinstance(done.exception, UserError) and "nothing" in str(done.exception)
    done = CliRunner().invoke(app, ["rehearse", str(recipe), source, "--out", str(tmp_path)])
    assert isinstance(done.exception, UserError) and "name another --out" in str(done.exception)
    assert not Path(out).exists()


def test_an_imported_dataset_is_refused_with_what_can_be_tried_on_it(tmp_path: Path, digits: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["rehearse", "siclip-nano", str(digits), "--out", str(out)])
    assert isinstance(done.exception, UserError) and not out.exists()
    assert f"{digits} is an imported dataset" in str(done.exception)
    command = str(done.exception).partition("try the training on it: ")[2]
    assert command == (
        f"siclip-platform train --recipe siclip-nano --data {digits} --set training.steps=100 --out runs/trial"
    )


def test_what_the_import_of_datacompdr_writes_is_not_made_again(job: Rehearsal, tmp_path: Path) -> None:
    beside = BesideConfig(name="dr", teachers=("a",), widths=(24,), augmentations=2, operations=0)
    importing = job.importing.model_copy(update={"beside": beside})
    recipe = job.recipe.updated({"data.captions": ["dr", "coca"], "data.teacher_embeddings": "dr"})
    whole = job.model_copy(update={"recipe": recipe, "importing": importing})
    names = [stage.name for stage in stages(whole)]
    assert names[:4] == ["recipe and teacher", "import", "captions coca", "training, killed"]
    lines = commands(Outcome(whole, {}, None, State(rows=80)))
    assert [line.split()[1:3] for line in lines] == [["data", "import"], ["data", "caption"], ["train", "--recipe"]]
    alone = whole.model_copy(update={"recipe": recipe.updated({"data.captions": ["dr"]})})
    assert check_recipe(alone).note == "embeddings of the source"
