"""The study's journal: what it restores after a kill, and what it refuses."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest

from siclip.errors import UserError
from siclip_platform.search.ledger.journal import Journal


def write(journal: Journal) -> None:
    journal.suggested("trial-000", {"a": 1.5})
    journal.started("trial-000", "t0")
    journal.result("trial-000", 2, {"v": math.nan}, {"0": {"v": 0.5}})
    journal.ended("trial-000", "pruned", 2, 1.25, "why")
    journal.told("trial-000")
    journal.suggested("trial-001", {"a": 2})


def test_a_journal_cut_at_any_byte_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "whole")
    write(journal)
    journal.close()
    data = journal.path.read_bytes()
    for size in range(len(data) + 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(data[:size])
        cut = Journal(folder)
        assert (folder / "journal.jsonl").read_bytes() == data[: data[:size].rfind(b"\n") + 1]
        assert cut.finished_count == len(cut.finished()) == len(cut.entries) - len(cut.in_flight())
        cut.suggested("trial-009", {})
        cut.close()
        assert list(Journal(folder).entries)[-1] == "trial-009"
    entry = Journal(tmp_path / "whole").entries["trial-000"]
    assert (entry.state, entry.steps, entry.seconds, entry.reason, entry.told) == ("pruned", 2, 1.25, "why", True)
    assert entry.attempts == ["t0"] and math.isnan(entry.last["v"])
    assert [e.name for e in Journal(tmp_path / "whole").in_flight()] == ["trial-001"]


def test_a_damaged_line_is_refused_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"event": "suggested", "trial": "trial-000", "values": {}}\nxx\n{}\n')
    with pytest.raises(UserError, match=r"journal\.jsonl:2"):
        Journal(tmp_path)


def test_a_step_reported_again_keeps_its_first_metrics(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.suggested("trial-000", {})
    for step, value in ((2, 0.1), (4, 0.2), (2, 0.7), (4, 0.8)):
        journal.result("trial-000", step, {"v": value}, {})
    assert [(step, means["v"]) for step, means, _ in journal.entries["trial-000"].results] == [(2, 0.1), (4, 0.2)]
    assert journal.sequence == [("trial-000", 0), ("trial-000", 1)]
    journal.close()


@pytest.mark.parametrize("spoiled", [b'{"event": "resu', b'{"event": "resu\n', b"\0" * 40, b"\0\0\0\n", b"[]\n"])
def test_a_spoiled_last_line_is_cut_off_and_reported(
    spoiled: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    write(journal)
    journal.close()
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + spoiled)
    again = Journal(tmp_path)
    again.close()
    assert journal.path.read_bytes() == whole
    assert list(again.entries) == ["trial-000", "trial-001"]
    assert f"its last line was incomplete and is cut off ({len(spoiled)} bytes)" in caplog.text


def test_a_disk_that_is_full_for_a_moment_leaves_no_part_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.suggested("trial-000", {})
    write_all, left = os.write, [7, 0, None]

    def write_some(file: int, data: bytes) -> int:
        space = left.pop(0) if left else None
        if space == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_all(file, data[:space])

    monkeypatch.setattr("siclip_platform.storage.full_disk.PAUSE", 0.01)
    monkeypatch.setattr(os, "write", write_some)
    journal.result("trial-000", 2, {"v": 0.5}, {})
    monkeypatch.undo()
    journal.close()
    assert Journal(tmp_path).entries["trial-000"].last == {"v": 0.5}
    assert journal.path.read_bytes().count(b"\n") == 2
