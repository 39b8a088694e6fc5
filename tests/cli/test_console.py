"""Whatever a text came from, none of it steers the terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.table import Table
from rich.text import Text

from autotune.cli.console import answer_console, error_console, file_console

HOSTILE = "a\x1b[31mb\x1b]0;title\x07\u202ec\x9b1m\x7f[red]"


@pytest.mark.parametrize("console_of", [answer_console, error_console])
def test_control_characters_are_printed_as_their_escapes(
    console_of: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(console_of)
    table = Table()
    table.add_column("strategy")
    table.add_row(Text(HOSTILE))
    console = console_of()
    console.print(table, Text(HOSTILE), crop=False)
    console.print(HOSTILE, soft_wrap=True)
    captured = capsys.readouterr()
    out = captured.out + captured.err
    assert out.replace("\n", "").isprintable()
    assert out.count(r"\u001b[31mb") == 3
    # A table was laid out for the text as it came, and cuts off what its escapes are longer by.
    assert out.count("[red]") == 2


def test_a_json_answer_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    answer_console().print_json(json.dumps({"message": HOSTILE}))
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert json.loads(out) == {"message": HOSTILE}


def test_a_report_s_file_may_be_shown_in_a_terminal() -> None:
    file = io.StringIO()
    file_console(file).print(Text(HOSTILE))
    assert file.getvalue().replace("\n", "").isprintable()
