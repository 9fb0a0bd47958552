"""``siclip-platform model propose-sharing``: its output and the search space that it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from siclip import create_model, load_model, save_checkpoint
from siclip.data.batch import to_float_images
from siclip.diagnostics import attention_divergence, propose_sharing
from siclip.errors import UserError
from siclip.models import count_parameters
from siclip_platform.cli import main
from siclip_platform.cli.model.sharing import space_text
from siclip_platform.spaces import load_space
from siclip_platform.stream import load_evaluation_set
from siclip_platform.studies.options import check_sharing
from tests.support.open_clip_parts import TAG, nano_behind_the_tag


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in an empty folder; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["siclip-platform", "model", "propose-sharing", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


def test_json_has_what_the_library_finds(cli: Any, nano_teacher: Path, digits: Path) -> None:
    code, out, err = cli(nano_teacher, digits, "--samples", 40, "--json")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert (printed["model"], printed["student"], printed["samples"]) == ("mobileclip-nano", "siclip-nano", 40)
    model = load_model(nano_teacher)
    pairs = load_evaluation_set(digits, "validation", model.config, 40)
    found = attention_divergence(model, [(to_float_images(pairs.images), pairs.tokens)])
    for tower in ("image", "text"):
        ours = printed["towers"][tower]
        torch.testing.assert_close(
            torch.tensor(ours["pairs"]), torch.tensor(found[tower].pairs), rtol=1e-4, atol=1e-9
        )
        assert ours["entropy_share"] == pytest.approx(found[tower].entropy_share)
        assert ours["adjacent"] == pytest.approx(found[tower].adjacent, rel=1e-4)
        assert [p["pattern"] for p in ours["proposals"]] == [str(p.pattern) for p in propose_sharing(found[tower])]
    for proposal in printed["towers"]["text"]["proposals"]:
        unshared, shared = (create_model("siclip-nano", text_sharing=s) for s in ("none", proposal["pattern"]))
        assert proposal["parameters_saved"] == count_parameters(unshared) - count_parameters(shared) > 0


def test_the_written_space_can_be_loaded(cli: Any, nano_teacher: Path, digits: Path) -> None:
    _, out, _ = cli(nano_teacher, digits, "--samples", 8, "--json", "--out", "mine.yaml")
    towers = json.loads(out)["towers"]
    space = load_space("mine.yaml", check_value=check_sharing("siclip-nano"))
    assert space.paths == ("model.image_sharing", "model.text_sharing")
    for tower in ("image", "text"):
        patterns = [proposal["pattern"] for proposal in towers[tower]["proposals"]]
        (values,) = (p.values for p in space.parameters if p.path == f"model.{tower}_sharing")
        assert list(values) == ["none", *patterns]
    assert len(towers["text"]["proposals"]) == 3
    head = Path("mine.yaml").read_text().splitlines()[0]
    assert head.startswith("# siclip-platform tune --space mine.yaml") and "model.name=siclip-nano" in head
    assert f"--teacher {nano_teacher}" in head


def test_a_base_by_its_tag_has_patterns_over_its_twelve_blocks(
    cli: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nano_behind_the_tag(tmp_path, monkeypatch)
    code, out, err = cli(TAG, digits, "--samples", 8, "--json", "--out", "mine.yaml")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert (printed["model"], printed["student"]) == ("mobileclip2-nano", "siclip2-nano")
    assert len(printed["towers"]["text"]["proposals"]) == 11
    load_space("mine.yaml", check_value=check_sharing("siclip2-nano"))
    with pytest.raises(UserError, match=r"mine\.yaml:\d+: .*12 numbers for 4 blocks"):
        load_space("mine.yaml", check_value=check_sharing("siclip-nano"))
    assert f"--teacher {TAG}" in Path("mine.yaml").read_text().splitlines()[0]


def test_the_tables_show_divergences_and_saved_parameters(cli: Any, nano_teacher: Path, digits: Path) -> None:
    code, out, err = cli(nano_teacher, digits, "--split", "test", "--samples", 8)
    assert (code, err) == (0, "")
    saved = 128 * 128 * 2  # queries and keys of one image block, without bias
    for part in ("qk:0-0", f"{saved:,}", "qk:0-0-0-0", "entropy share", "non-adjacent", "8 test samples"):
        assert part in out
    assert Path("proposed_sharing.yaml").is_file()


def test_a_siclip_checkpoint_keeps_its_name_and_is_not_a_teacher(cli: Any, tmp_path: Path, digits: Path) -> None:
    checkpoint = tmp_path / "student.pt"
    save_checkpoint(checkpoint, create_model("siclip-nano"))
    _, out, _ = cli(checkpoint, digits, "--samples", 8, "--json")
    assert json.loads(out)["student"] == "siclip-nano"
    assert "--teacher" not in Path("proposed_sharing.yaml").read_text()


def test_an_existing_file_is_not_overwritten(cli: Any, nano_teacher: Path, digits: Path) -> None:
    Path("proposed_sharing.yaml").write_text("mine")
    code, _, err = cli(nano_teacher, digits)
    assert code == 2 and "proposed_sharing.yaml exists" in err
    assert Path("proposed_sharing.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "missing.pt"}, "missing.pt does not exist"),
        ({"checkpoint": "text.pt"}, "text.pt"),
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"data": "."}, "manifest"),
        ({"split": "training"}, "no split 'training'"),
        ({"out": "no/folder/space.yaml"}, "the folder no/folder does not exist"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    cli: Any, nano_teacher: Path, digits: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    Path("text.pt").write_text("not a checkpoint")
    arguments = {"checkpoint": nano_teacher, "data": digits, "split": "validation", "out": "space.yaml", **change}
    code, out, err = cli(
        arguments["checkpoint"], arguments["data"], "--split", arguments["split"], "--out", arguments["out"]
    )
    assert (code, out) == (2, "")
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["text.pt"]


def findings(**proposals: list[str]) -> dict[str, Any]:
    towers = {
        tower: {
            "adjacent_mean": 0.1,
            "non_adjacent_mean": None,
            "entropy_share": [0.5],
            "proposals": [{"pattern": pattern, "within": 0.1, "parameters_saved": 7} for pattern in patterns],
        }
        for tower, patterns in proposals.items()
    }
    names = {"model": "mobileclip-nano", "student": "siclip-nano", "split": "test", "samples": 1, "space": "s.yaml"}
    return {**names, "checkpoint": "a b\nc.pt", "data": "d", "towers": towers}


def test_a_path_with_a_line_break_stays_in_the_comment_and_towers_without_proposals_are_omitted() -> None:
    space = yaml.safe_load(space_text(findings(image=[], text=["qk:0-0"])))
    assert set(space) == {"name", "metric", "parameters"}
    assert list(space["parameters"]) == ["model.text_sharing"]


def test_a_model_with_single_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to share"):
        space_text(findings(image=[], text=[]))
