"""Every command in README and docs is parsed by its program and run by a test.

A command that cannot be run here has a reason. The long test runs the `siclip-platform` lines of the guides verbatim.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from docs_commands import DOCUMENTS, ROOT, SHELL, Command, check, commands
from typer.testing import CliRunner

from siclip.checkpoints.formats import save_checkpoint
from siclip.models import create_model
from siclip_platform.cli import app
from siclip_platform.tracking import Tracker

# Command → a string that only a test that runs the command contains.
RUN_BY = {
    "siclip-platform compare": '"compare"',
    "siclip-platform data caption": '"caption"',
    "siclip-platform data captions": '"captions"',
    "siclip-platform data embed": '"embed"',
    "siclip-platform data import": '"import"',
    "siclip-platform data inspect": '"inspect"',
    "siclip-platform data negatives": '"negatives"',
    "siclip-platform data push": '"push"',
    "siclip-platform data verify": '"verify"',
    "siclip-platform doctor": '"doctor"',
    "siclip-platform evaluate": '"evaluate"',
    "siclip-platform model convert": '"convert"',
    "siclip-platform model describe": '"describe"',
    "siclip-platform model export": '"export"',
    "siclip-platform model propose-sharing": '"propose-sharing"',
    "siclip-platform plan": '"plan"',
    "siclip-platform rehearse": '"rehearse"',
    "siclip-platform recipe check": '"recipe", "check"',
    "siclip-platform recipe init": 'run("init"',
    "siclip-platform recipe list": 'run("list")',
    "siclip-platform recipe show": 'run("show"',
    "siclip-platform report": '"report"',
    "siclip-platform search": '"search"',
    "siclip-platform simulate": '"simulate"',
    "siclip-platform submit": '"submit"',
    "siclip-platform tune": '"tune"',
    "python benchmarks/emoji_dataset.py": "main(",
    "python benchmarks/pair_matching.py": '"pair_matching.py"',
    "python benchmarks/wikd_ablation.py": '"wikd_ablation.py"',
    "make demo": '"demo", "--space"',
    "make docs": '"mkdocs"',
    "make head": '"--head"',
    "mlflow models serve": "scoring_server",
    "ray start": '"--head"',
    "ray job submit": '"job", "submit"',
}
# Run by this file, mostly by its long tests.
RUN_HERE = {
    "siclip-platform ablate",
    "siclip-platform data build",
    "siclip-platform embed",
    "siclip-platform job",
    "siclip-platform sync",
    "siclip-platform train",
    "python benchmarks/search_policies.py",
    "python benchmarks/streaming.py",
    "python benchmarks/text_context.py",
    "python benchmarks/training_step.py",
    "python benchmarks/tune_overhead.py",
    "python benchmarks/object_storage.py",
    "python benchmarks/plan.py",
    "python benchmarks/storage.py",
}
NOT_RUN = {
    "make audit": "queries a server; make check runs it in CI",
    "make check": "CI itself",
    "make chromium": "installs a package of the system; make test runs it in CI",
    "make gpu-check": "needs a card; test_gpu_check.py runs its parts without one",
    "make fast-test": "CI runs these tests and more",
    "make install": "CI itself",
    "make lock": "queries the package index",
    "make long-test": "runs this file's long tests",
    "make test": "CI itself",
    "mlflow ui": "MLflow's own",
    "ray stop": "stops every Ray process of the machine",
    "ray up": "needs machines; the file is checked in test_cluster_files.py",
    "kubectl apply": "needs Kubernetes; the file is checked in test_cluster_files.py",
    "kubectl create": "needs Kubernetes",
    "python -c": "a timing on the page that describes it",
}


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_programs_accept_the_command_lines(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in commands(document):
        try:
            check(command)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{document}: {shlex.join(command.words)}: {error}")


def test_every_command_is_run_by_a_test_or_has_a_reason() -> None:
    found = {c.subject for d in DOCUMENTS for c in commands(d) if c.words[0] not in (*SHELL, "pytest")}
    unknown = sorted(found - RUN_BY.keys() - RUN_HERE - NOT_RUN.keys())
    assert not unknown, "no test runs these"
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    assert [subject for subject, words in RUN_BY.items() if words not in tests] == []
    assert {"siclip-platform train", "siclip-platform data import", "make demo", "ray job submit"} <= found


@pytest.mark.parametrize(
    "line",
    [
        "siclip-platform plan --crad rtx-3090",
        "siclip-platform plan --card gtx-1",
        "siclip-platform no-such-command",
        "siclip-platform train --recipe digits-teacher --data d --set training.no_field=1",
        "siclip-platform tune --trials many",
        "siclip-platform ablate no-such-study",
        "siclip-platform submit tune_wikd --trails 4",
        "python jobs/tune_wikd.py --trials 0",
        "python benchmarks/emoji_dataset.py one",
        "make no-such-target",
        "no-such-program --option",
    ],
)
def test_a_command_that_would_not_run_is_detected(line: str) -> None:
    with pytest.raises((Exception, SystemExit, AssertionError)):
        check(Command("a.md", tuple(shlex.split(line)), False))


def test_sync_reports_for_each_spool_what_it_sent(tmp_path: Path, mlflow_database: bytes) -> None:
    """An unavailable server is tested in test_spool.py."""
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", artifacts=tmp_path / "artifacts", spool=tmp_path / "s")
    tracker.start("s", "study", params={}, tags={}, key="s").finish("completed")
    tracker.close()
    result = CliRunner().invoke(app, ["sync", str(tmp_path)])
    assert (result.exit_code, result.output) == (0, f"{tmp_path}/s: 0 records sent, 0 wait\n")


def test_a_job_by_name_accepts_the_options_of_its_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["siclip-platform"])
    result = CliRunner().invoke(app, ["job", "tune_wikd", "--trials", "0"])
    assert result.exit_code == 2
    assert "--trials" in result.output


# --- the commands of the guides ---

# In the order in which later guides use the results of earlier ones.
GUIDES = ("recipe", "evaluation", "using", "report", "plan", "cards", "data", "search", "index", "troubleshooting")
# Part of a line → why it is not run.
SKIPPED = {
    "submit": "needs a head; test_ray_job.py has one",
    "s3://": "needs a bucket",
    "mlflow.example": "needs a server",
    "open_clip:": "downloads weights",
    "--name coca": "downloads weights",
    "cc12m-wds/": "needs the copy; test_given_captions.py makes a small one",
    "datacompdr/": "needs shards with embeddings; test_datacompdr.py makes some",
    "--suite": "needs the sets; test_evaluation_command.py makes some",
    "3f2a9d10": "a run's id",
    "question=scaling": "needs a study of this tag; test_stores.py makes one",
    "rehearse ": "minutes, and shards of a source; test_rehearsal.py runs one",
    "--seeds 5": "hours on a CPU; the line above it runs",
    "ablate sharing": "hours on a CPU; the line above it runs",
}


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Path]:
    """A folder with the files that the guides assume."""
    import numpy as np
    from PIL import Image

    def jpeg(seed: int) -> bytes:
        out = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 255, (280, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, "JPEG")
        return out.getvalue()

    (tmp_path / "cc12m").mkdir()
    with tarfile.open(tmp_path / "cc12m" / "00000.tar", "w") as archive:
        for number in range(8):
            for suffix, data in (("jpg", jpeg(number)), ("txt", f"picture {number}".encode())):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "some-photo.jpg").write_bytes(jpeg(1))
    captions = [json.dumps({"key": f"{n:09d}", "caption_llava": "a", "caption_llava_short": "b"}) for n in range(8)]
    (tmp_path / "captions.jsonl").write_text("\n".join(captions))
    rows = [f"photos/{number}.jpg\talt {number}\ttitle {number}" for number in range(4)]
    (tmp_path / "list.tsv").write_text("\n".join(["path\talt\ttitle", *rows]) + "\n")
    shutil.copy(ROOT / "search_spaces" / "wikd.yaml", tmp_path / "my_space.yaml")
    save_checkpoint(tmp_path / "teacher.pt", create_model("mobileclip-nano"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({}))
    yield tmp_path


def after(command: str, folder: Path) -> None:
    """Provide a command's results also under the names that other pages use."""
    trained = folder / "runs" / "teacher" / "train" / "train.pt"
    if " train " in command:
        for name in ("train", "student"):
            (folder / "runs" / name / "train").mkdir(parents=True)
            shutil.copy(trained, folder / "runs" / name / "train" / "train.pt")
    if " tune " in command:
        (folder / "runs" / "demo").symlink_to(folder / "runs" / "tune")


@pytest.mark.long
def test_the_commands_of_the_guides_run(story: Path) -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done: set[tuple[str, ...]] = set()
    for document in ("README.md", *(f"docs/{name}.md" for name in GUIDES)):
        for command in commands(document):
            line = shlex.join(command.words)
            skipped = command.mention or command.words[0] != "siclip-platform" or command.words in done
            if skipped or any(part in line for part in SKIPPED):
                continue
            done.add(command.words)
            ran = subprocess.run(
                command.words, cwd=story, env=env, capture_output=True, text=True, timeout=1800, check=False
            )
            # Their exit code 1 means that this machine lacks something.
            may_advise = command.words[1] in ("doctor", "plan")
            assert ran.returncode in ((0, 1) if may_advise else (0,)), f"{document}: {line}\n{ran.stdout}{ran.stderr}"
            after(line, story)
    assert len(done) > 20
    assert (story / "found.html").is_file()
    assert pq.read_table(story / "data" / "cc12m" / "ledger.parquet").num_rows == 0


@pytest.mark.long
def test_benchmarks_run_small(tmp_path: Path, digits: Path) -> None:
    lines = [
        "training_step.py --batch 8 --repeats 1 --out step.json",
        "streaming.py --images 300 --repeats 1 --batch 64 --result streaming.json",
        "object_storage.py --images 300 --repeats 1 --batch 64 --result object.json",
        "search_policies.py --policies random+none random+asha --repetitions 2 --trials 12 --report policies.md",
        f"text_context.py --digits {digits} --out runs --report context.md --steps 2 --digits-teacher-steps 2 "
        "--batch-size 16 --seeds 2 --contexts 16",
        "plan.py --rounds 1 --seconds 2 --out plan.json",
        "storage.py --rows 40 --out storage.json",
        f"tune_overhead.py --trials 3 --steps 12 --train-trials 1 --data {digits} --out overhead.json",
    ]
    for line in lines:
        script, *arguments = shlex.split(line)
        command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    for name in (
        "step.json",
        "streaming.json",
        "object.json",
        "policies.md",
        "context.md",
        "plan.json",
        "storage.json",
        "overhead.json",
    ):
        assert (tmp_path / name).stat().st_size > 100
