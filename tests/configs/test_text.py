"""Text of others never commands a terminal: what is printed, whoever prints it, is escaped."""

import io
import sys
import unicodedata

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table

from scanfoundry.configs.console import Console
from scanfoundry.configs.text import guarded, printable

EVIL = "a\x1b[31mb\x07\r\nc\x9bd\u202ee\u2066f\u200bg\udcffh\ud800i\x00j\u2028k\x7f"
ESCAPED = r"a\x1b[31mb\x07\r\nc\x9bd\u202ee\u2066f\u200bg\xffh\ud800i\x00j\u2028k\x7f"


def test_everything_that_is_not_for_the_eye_is_escaped() -> None:
    assert printable(EVIL) == ESCAPED
    assert printable("a\nb\tc\rd", lines=True) == "a\nb\tc\\rd"
    fine = "Käsbohrer Журавлёва 欧阳娜娜 مرحبا שלום e\u0301 👩\u200d⚕️ [red] \\x1b µm²"
    assert printable(fine) == fine


TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def test_no_control_and_no_mark_of_direction_passes() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        kind = unicodedata.category(character)
        if kind in ("Cc", "Cs", "Zl", "Zp") or (
            kind == "Cf" and code in (0x200E, 0x200F, 0x61C, *range(0x2028, 0x2070))
        ):
            shown = printable(character)
            assert shown.isascii(), hex(code)
            assert shown.isprintable(), hex(code)
        if unicodedata.bidirectional(character) in TURNING:
            assert printable(character) != character, hex(code)


def test_a_guarded_stream_escapes_whatever_is_printed_and_returns_to_what_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sys.stdout
    with guarded(), guarded():
        print(EVIL)
        print(EVIL, file=sys.stderr)
        sys.stdout.writelines(["x\x1b", "y\n"])
        assert sys.stdout.encoding == before.encoding
        assert not sys.stdout.isatty()
    assert sys.stdout is before
    out, err = capsys.readouterr()
    assert out == ESCAPED.replace(r"\r\n", "\\r\n") + "\nx\\x1by\n"
    assert err == ESCAPED.replace(r"\r\n", "\\r\n") + "\n"


def test_a_console_escapes_lines_tables_and_bars_and_keeps_its_colours() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system="truecolor", highlight=False)
    console.print("b\x1b]0;title\x07 [red]name[/red] :smile:", style="red")
    table = Table()
    table.add_column("run\u202e")
    table.add_row("c\x1b[2Jd\x9b")
    console.print(table)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task("e\x1b[5mf", total=1)
        bar.console.print("g\x1b[1Ah")
    shown = stream.getvalue()
    assert "\x1b[31m" in shown  # its own
    for told in (
        r"b\x1b]0;title\x07 [red]name[/red] :smile:",
        r"c\x1b[2Jd\x9b",
        r"e\x1b",
        r"g\x1b[1Ah",
        r"run\u202e",
    ):
        assert told in shown
    assert "\x9b" not in shown
    assert "\x1b]0" not in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[5m" not in shown


def test_rich_on_a_guarded_stream_still_draws(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded():
        console = Console(stderr=True, force_terminal=True, color_system="truecolor", highlight=False)
        console.print("x\x1b[2Jy", style="red")
    assert capsys.readouterr().err == "\x1b[31mx\\x1b[2Jy\x1b[0m\n"


class Terminal(io.StringIO):
    """A stream that a person looks at."""

    def isatty(self) -> bool:
        return True


def test_a_bar_upon_a_guarded_terminal_has_its_colours_and_a_line_above_it_has_none(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with guarded():
        console = Console(stderr=True, force_terminal=True, width=60)
        with Progress(console=console) as bars:
            bars.add_task("steps", total=3)
            print("a line \x1b[31m of a file", file=sys.stderr)
    shown = sys.stderr.getvalue()
    assert shown.count("\\x1b") == 1
    assert "a line \\x1b[31m of a file" in shown
    assert "\x1b[" in shown
