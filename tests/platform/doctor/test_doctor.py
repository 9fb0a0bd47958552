"""Every check of the doctor on facts that are right, doubtful and wrong; and the whole command."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import shutil
import socket
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from typer.testing import CliRunner

from siclip_platform.cli import app
from siclip_platform.doctor import checks, examine
from siclip_platform.doctor.checks import GIB

ENVIRONMENT = {key: str(value) for key, value in default_environment().items()}


@pytest.mark.parametrize(
    ("finding", "level", "detail"),
    [
        (checks.python_version((3, 11, 0)), "ok", "3.11.0"),
        (checks.python_version((3, 10, 9)), "wrong", "3.10.9"),
        (checks.torch_device("2.9", "13.0", ["A card"], True), "ok", "A card"),
        (checks.torch_device("2.9", None, [], True), "wrong", "without CUDA"),
        (checks.torch_device("2.9", "13.0", [], True), "wrong", "sees no device"),
        (checks.torch_device("2.9", None, [], False), "note", "CPU"),
        (checks.ray_token("token", False, 0o600), "ok", "auth_token"),
        (checks.ray_token("token", True, None), "ok", "environment"),
        (checks.ray_token("token", False, 0o644), "wrong", "644"),
        (checks.ray_token("disabled", True, 0o600), "wrong", "disabled"),
        (checks.ray_token(None, False, None), "note", "none yet"),
        (checks.ray_token(None, False, 0o600), "note", "RAY_AUTH_MODE is unset"),
        (checks.checkpoints("auto", "r.yaml", 603, "a card"), "ok", "every 10 minutes: at most 10 min"),
        (checks.checkpoints(500, "r.yaml", 1000, "a card"), "ok", "every 500 steps: at most 17 min"),
        (
            checks.checkpoints(0, "r.yaml", 180_000, "a card"),
            "note",
            "after its last step only: with its machine up to 50.0 h",
        ),
        (
            checks.checkpoints(2000, "r.yaml", 5400, "a card"),
            "note",
            "every 2,000 steps: with its machine up to 1.5 h",
        ),
        (checks.disk("out", "/a", 11 * GIB, 200_000), "ok", "11 GiB"),
        (checks.disk("out", "/a", 11 * GIB, None), "ok", "11 GiB"),
        (checks.disk("out", "/a", 9 * GIB, 200_000), "wrong", "9.0 GiB"),
        (checks.disk("out", "/a", 11 * GIB, 5), "wrong", "5 inodes"),
        (checks.open_files(65_536, 65_536), "ok", "65,536"),
        (checks.open_files(1024, 1_048_576), "note", "1,024"),
        (checks.shared_memory(None, 8 * GIB), "ok", "no /dev/shm"),
        (checks.shared_memory(3 * GIB, 8 * GIB), "ok", "3.0 GiB"),
        (checks.shared_memory(GIB // 16, 8 * GIB), "note", "0.1 GiB. Ray's object store needs 2.4"),
        (checks.shared_memory(3 * GIB, 512 * GIB), "note", "Ray's object store needs 4.0"),
        (checks.openmp(None, None, 2), "ok", "2 cores"),
        (checks.openmp("16", None, 2), "note", "OMP_NUM_THREADS=16"),
        (checks.openmp("two", None, 2), "note", "OMP_NUM_THREADS=two"),
        (checks.openmp("2", "active", 2), "note", "OMP_WAIT_POLICY=active"),
    ],
)
def test_check(finding: checks.Finding, level: str, detail: str) -> None:
    assert finding.level == level
    assert detail in finding.detail
    assert bool(finding.remedy) == (level != "ok") or (level, finding.name) == ("note", "torch")


def test_a_user_can_raise_the_file_limit_up_to_the_hard_limit() -> None:
    assert checks.open_files(1024, 1_048_576).remedy == "ulimit -n 65536"
    assert "as root" in checks.open_files(1024, 4096).remedy


def test_the_lock_is_compared_pin_by_pin() -> None:
    lock = "a-b==1.0 \\\n    --hash=sha256:00\nc==2.0 ; python_version < '3' \\\n    --hash=sha256:00\nd==3\n"
    agree = checks.locked_versions(lock, {"a-b": "1.0", "d": "3"}, ENVIRONMENT)
    assert (agree.level, agree.detail) == ("ok", "2 as in requirements.lock")
    other = checks.locked_versions(lock, {"a-b": "1.1", "d": "3"}, ENVIRONMENT)
    assert (other.level, other.detail) == ("note", "other versions than requirements.lock: a-b 1.1 (lock: 1.0)")
    missing = checks.locked_versions(lock, {"a-b": "1.0"}, ENVIRONMENT)
    assert (missing.level, missing.detail) == ("wrong", "missing: d")


def test_the_real_lock_is_parsed_and_matches_the_installed_torch() -> None:
    lock = (Path(__file__).parents[3] / "requirements.lock").read_text()
    torch = importlib.metadata.version("torch").partition("+")[0]
    assert f"\ntorch=={torch} " in lock  # the format that the parser expects
    finding = checks.locked_versions(lock, {"torch": torch}, ENVIRONMENT)
    pinned = {line.partition("==")[0] for line in lock.splitlines() if "==" in line}
    missing = int(finding.detail.rpartition(" and ")[2].partition(" ")[0]) + 5
    assert 0.8 * len(pinned) < missing < len(pinned)  # all except torch and pins for other systems


def test_the_facts_of_this_machine_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / "auth_token"
    token.write_text("x")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    found = {finding.name: finding for finding in examine(tmp_path / "not" / "yet", None)}
    assert found["Python"].detail == ".".join(map(str, sys.version_info[:3]))
    assert found["Ray token"].level == "wrong"
    assert f"{tmp_path}: {shutil.disk_usage(tmp_path).free / GIB:,.0f} GiB" in found["disk, outputs"].detail
    assert f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}" in found["open files"].detail
    assert importlib.metadata.version("torch") in found["torch"].detail
    assert not [name for name in found if name.startswith("import ")]


def test_the_command_prints_what_is_wrong_and_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "not-shown-anywhere")
    uri = f"http://{address}"
    result = CliRunner().invoke(app, ["doctor", "--out", str(tmp_path), "--tracking-uri", uri, "--json"])
    assert result.exit_code == 1
    wrong = {f["name"]: f for f in json.loads(result.stdout) if f["level"] == "wrong"}
    assert set(wrong) == {"Ray cluster", "MLflow store"}
    assert address in wrong["Ray cluster"]["detail"]
    assert uri in wrong["MLflow store"]["detail"]
    assert wrong["Ray cluster"]["remedy"] == "unset RAY_ADDRESS"
    assert "not-shown-anywhere" not in result.output
    shown = CliRunner().invoke(app, ["doctor", "--out", str(tmp_path), "--tracking-uri", uri])
    assert "wrong" in shown.output
    assert "→ unset RAY_ADDRESS" in shown.output


@pytest.mark.parametrize(("every", "level", "lost"), [("auto", "ok", "10 min"), (0, "note", "{hours:.1f} h")])
def test_hours_that_a_recipe_could_lose_are_those_of_its_plan(
    tmp_path: Path, every: object, level: str, lost: str
) -> None:
    recipe = tmp_path / "my.yaml"
    recipe.write_text(f"extends: siclip-s0-cc12m-syn\ntraining: {{checkpoint_every: {every}}}\n")
    finding = next(iter(examine(tmp_path, None, str(recipe))))
    planned = json.loads(CliRunner().invoke(app, ["plan", "--json", "--recipe", str(recipe)]).stdout)
    assert (finding.name, finding.level) == ("checkpoints", level)
    assert f"{lost.format(hours=planned['hours'][1])} " in finding.detail and finding.detail.endswith("rtx-3090")
