"""What is printed: no text of a stranger moves the cursor, hides what follows or is taken for markup."""

from __future__ import annotations

import io
import unicodedata

import pytest
from rich.table import Table
from rich.text import Text

from siclip_platform import display as display_module
from siclip_platform.display import Display, Terminal, echo, printable

HOSTILE = "a\x1b[2Jb\x9b31mc\u202ed\u2066e\u200ff\x00g\x07h\r\x7fi\u2028j\udc80k\xadl\ufeffm"
SHOWN = r"a\x1b[2Jb\x9b31mc\u202ed\u2066e\u200ff\x00g\x07h\r\x7fi\u2028j\udc80k\xadl\ufeffm"
HONEST = "Größe, 猫 と 犬, a\xa0b, می‌خواهم, 👩‍👩‍👧, ≥ 3 °C \\ {x} [y]"


def test_control_characters_and_direction_marks_are_shown_as_escapes() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable(SHOWN) == SHOWN
    assert printable(HONEST) == HONEST
    assert printable("two\n\tlines", keep="\n\t") == "two\n\tlines"
    assert printable("two\n\tlines") == r"two\n\tlines"


def test_nothing_passes_that_a_terminal_obeys() -> None:
    """All of Unicode, against the ranges of ECMA-48 (C0, C1) and of Unicode's bidirectional algorithm (UAX 9)."""
    marks = {"ALM", "LRM", "RLM", "LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    obeyed = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x61C, 0x200E, 0x200F)}
    every = [chr(code) for code in range(0x110000)]
    obeyed |= {letter for letter in every if unicodedata.bidirectional(letter) in marks}
    passed = {letter for letter in every if letter in printable(letter)}
    assert not passed & obeyed
    assert all(letter.encode() for letter in passed)  # and nothing that cannot be written as UTF-8


def terminal() -> tuple[Terminal, io.StringIO]:
    file = io.StringIO()
    return Terminal(file=file, width=160), file


def test_tables_and_lines_are_escaped_wherever_the_text_is() -> None:
    console, file = terminal()
    table = Table("id", title=HOSTILE)
    table.add_column(Text(HOSTILE))
    table.caption = HOSTILE
    table.add_row(HOSTILE, Text(HOSTILE))
    console.print(table)
    console.print(HOSTILE)
    display = Display(console)
    display.say(HOSTILE)
    with display.task(HOSTILE):
        pass
    text = file.getvalue()
    assert printable(text, "\n") == text
    assert text.count(SHOWN) >= 6


def test_brackets_and_colons_are_text_and_not_markup() -> None:
    console, file = terminal()
    caption = "[bold]a[/bold] [/link] :smile: [red"
    table = Table("caption", title=caption)
    table.add_row(caption)
    console.print(table)
    console.print(caption)
    assert file.getvalue().count(caption) == 3


def test_bars_escape_the_title_and_the_note() -> None:
    file = io.StringIO()
    display = Display(Terminal(file=file, force_terminal=True, width=200))
    with display.live(), display.task("a\x1b]0;t[/x]", total=2) as task:
        task.update(1, "n\x9b1m[/y]")
    assert r"a\x1b]0;t[/x]" in file.getvalue() and r"n\x9b1m[/y]" in file.getvalue()
    assert "\x1b]0" not in file.getvalue() and "\x9b" not in file.getvalue()


def test_echo_escapes_and_keeps_lines(capsys: pytest.CaptureFixture[str]) -> None:
    echo("one\n\ttwo\x1b[31m")
    echo(HOSTILE, error=True)
    printed = capsys.readouterr()
    assert printed.out == "one\n\ttwo\\x1b[31m\n"
    assert printed.err == SHOWN + "\n"


def test_without_a_terminal_a_long_task_prints_rows_and_rate_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(display_module.time, "perf_counter", lambda: now[0])
    console, file = terminal()
    with Display(console).task("captions") as task:
        # an earlier run had finished the first 1,000 rows
        for seconds, done in ((1, 1), (20, 2), (31, 3), (40, 4), (62, 5), (70, 6)):
            now[0] = 100.0 + seconds
            task.progress(done, 6, 1000 * done)
    assert file.getvalue().splitlines() == [
        "captions …",
        "captions: 3 of 6, 3,000 rows, 67 rows/s",  # 2,000 in the 30 s since the first report
        "captions: 5 of 6, 5,000 rows, 66 rows/s",
        "captions: done in 70 s",
    ]
