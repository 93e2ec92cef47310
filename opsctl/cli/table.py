"""A table without lines: it fits 80 columns, and a pipe."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.segment import Segment

GAP = "  "


@dataclass(frozen=True)
class _Column:
    heading: str
    justify: Literal["left", "right"]
    layout: dict[str, Any]


class PlainTable:
    """Columns and rows as Rich's own table has them. Rich lays it out only where it has to be made to fit.

    Thousands of rows that fit anyway would take it seconds.
    """

    def __init__(self) -> None:
        self._columns: list[_Column] = []
        self._rows: list[tuple[tuple[RenderableType, ...], str | None]] = []

    def add_column(self, heading: str, *, justify: Literal["left", "right"] = "left", **layout: Any) -> None:
        """``layout`` is for what does not fit: ``no_wrap``, ``overflow``."""
        self._columns.append(_Column(heading, justify, layout))

    def add_row(self, *cells: "RenderableType", style: str | None = None) -> None:
        self._rows.append((cells, style))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        headings = tuple(column.heading for column in self._columns)
        rows = [(headings, "bold"), *self._rows]
        widths = self._widths(rows)
        if widths is None or sum(widths) + len(GAP) * (len(widths) - 1) > options.max_width:
            yield self._by_rich()
        else:
            yield from self._lines(console, rows, widths)

    def _widths(self, rows: "list[tuple[Any, str | None]]") -> list[int] | None:
        """How wide the columns are; None where a cell is more than one plain line."""
        from rich.cells import cell_len

        widths = [0] * len(self._columns)
        for cells, _ in rows:
            for number, cell in enumerate(cells):
                if not (isinstance(cell, str) and cell.isprintable()):
                    return None
                width = len(cell) if cell.isascii() else cell_len(cell)
                widths[number] = max(widths[number], width)
        return widths

    def _lines(
        self, console: "Console", rows: "list[tuple[Any, str | None]]", widths: list[int]
    ) -> "Iterator[Segment]":
        from rich.cells import cell_len
        from rich.segment import Segment

        columns = list(zip(self._columns, widths, strict=True))
        for cells, style in rows:
            parts = []
            for cell, (column, width) in zip(cells, columns, strict=False):
                space = " " * (width - (len(cell) if cell.isascii() else cell_len(cell)))
                parts.append(space + cell if column.justify == "right" else cell + space)
            yield Segment(GAP.join(parts), console.get_style(style) if style else None)
            yield Segment.line()

    def _by_rich(self) -> "RenderableType":
        from rich.table import Table

        table = Table(box=None, padding=(0, len(GAP), 0, 0), pad_edge=False, header_style="bold")
        for column in self._columns:
            table.add_column(column.heading, justify=column.justify, **column.layout)
        for cells, style in self._rows:
            table.add_row(*cells, style=style)
        return table
