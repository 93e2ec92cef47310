"""Tables without lines: as Rich lays them out, without the time it takes."""

from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from opsctl.cli.table import PlainTable

ROWS = [("saasdb-20261130T0300Z", "3 d", "local"), ("пример-базы-данных", "12 min", "日本, offsite"), ("", "-", "")]


def lines(renderable, width=80):
    console = Console(file=StringIO(), width=width, highlight=False, markup=False, emoji=False)
    console.print(renderable)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def table(rows=ROWS):
    made = PlainTable()
    made.add_column("Backup", no_wrap=True, overflow="fold")
    made.add_column("Age", justify="right", no_wrap=True)
    made.add_column("In", overflow="fold")
    for row in rows:
        made.add_row(*row, style="red" if row[1] == "-" else None)
    return made


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []], ids=["several", "one", "none"])
def test_what_fits_looks_as_rich_would_lay_it_out(rows):
    """Wide characters take two cells, numbers stand at the right, a heading may be the widest."""
    assert lines(table(rows)) == lines(table(rows)._by_rich())


@pytest.mark.parametrize(
    ("row", "width"),
    [(("a long id " * 9, "1 d", "x"), 40), (("two\nlines", "1 d", "x"), 80), ((Text("styled"), "1 d", "x"), 80)],
    ids=["too wide", "two lines", "more than text"],
)
def test_what_does_not_fit_is_left_to_rich(row, width):
    """Nothing is cut, and nothing that is more than one plain line is taken for one."""
    assert lines(table([*ROWS, row]), width) == lines(table([*ROWS, row])._by_rich(), width)
