from __future__ import annotations

import pytest

from siclip_platform.experiment import check_sharing, command_line


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/a/jobs/tune_wikd.py", "--out", "my runs"], "python jobs/tune_wikd.py --out 'my runs'"),
        (["/venv/bin/siclip-platform", "tune", "--trials", "3"], "siclip-platform tune --trials 3"),
        (
            ["jobs/tune_wikd.py", "--tracking-uri", "http://u:secret@h", "--seed", "1"],
            "python jobs/tune_wikd.py --seed 1",
        ),
        (["jobs/tune_wikd.py", "--tracking-uri=http://u:secret@h"], "python jobs/tune_wikd.py"),
    ],
)
def test_the_command_is_told_without_the_tracking_uri(arguments: list[str], command: str) -> None:
    assert command_line(arguments) == command


def test_sharing_patterns_are_checked_against_the_models_blocks() -> None:
    check = check_sharing("siclip-nano")
    assert check("model.image_sharing", "qk:0-0") is None
    assert check("model.text_sharing", "none") is None
    assert "2 numbers for 4 blocks" in check("model.text_sharing", "qk:0-0")
    assert check("loss.negatives", "qk:0-0") is None
