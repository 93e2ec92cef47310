"""Whether a backup that succeeded holds what it should: compared with the good ones before it. Pure.

A dump of an emptied database succeeds, and so does one of a database that lost a table. Usual is the median: one odd
backup changes nothing, and what stays different is the new usual once half of those compared are like it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import median
from typing import TYPE_CHECKING, Literal

from opsctl.amounts import duration, size
from opsctl.manifest import Manifest

if TYPE_CHECKING:
    from opsctl.settings import UnusualSettings

FEWEST = 3
"""With fewer before it nothing is unusual yet, unless it is asked for fewer."""

ALSO_SMALLER_PERCENT = 80
"""A backup that ran too fast is one whose dump is smaller than this as well: a faster disk is no alarm."""

MOST_NAMED = 5

Kind = Literal["shrunk", "too_fast", "table_lost", "rows_lost"]


@dataclass(frozen=True)
class Unusual:
    """One thing that is less than usual: bytes of the dump, seconds, or rows, of ``table`` or of all together."""

    code: Kind
    message: str
    value: float
    usual: float
    table: str | None = None


def judge(newest: Manifest, usual: Sequence[Manifest], limits: "UnusualSettings") -> tuple[Unusual, ...]:
    """What is less in ``newest`` than in those it is to be compared with, see :func:`compared`."""
    return (*_sizes(newest, usual, limits), *_contents(newest, usual, limits)) if usual else ()


def compared(newest: Manifest, earlier: Sequence[Manifest], limits: "UnusualSettings") -> list[Manifest]:
    """Those of the good backups ``earlier``, newest first, that one is compared with: the last of the same server.

    None while there are too few.
    """
    same = [each for each in earlier if each.system_identifier == newest.system_identifier][: limits.compared]
    return same if len(same) >= min(FEWEST, limits.compared) else []


def typical(usual: Sequence[Manifest]) -> Manifest:
    """The newest of them that is no smaller than usual: beside one that was unusual itself, nothing looks different."""
    normal = median(each.dump.bytes for each in usual)
    return next(each for each in usual if each.dump.bytes >= normal)


def is_too_fast(newest: Manifest, usual: Sequence[Manifest], limits: "UnusualSettings") -> bool:
    """Whether it took far less time than usual, and the dump is smaller as well."""
    seconds = median(each.duration_seconds for each in usual)
    usual_bytes = median(each.dump.bytes for each in usual)
    is_fast = seconds >= limits.shortest_seconds and newest.duration_seconds < limits.faster_percent / 100 * seconds
    is_large = usual_bytes >= limits.smallest_bytes
    return is_fast and is_large and newest.dump.bytes < ALSO_SMALLER_PERCENT / 100 * usual_bytes


def sentences(found: Sequence[Unusual]) -> list[str]:
    """The same for people: of very many tables only the first few are named."""
    rest = len(found) - MOST_NAMED
    return [each.message for each in found[:MOST_NAMED]] + ([f"{rest} more like these"] if rest > 0 else [])


def _sizes(newest: Manifest, usual: Sequence[Manifest], limits: "UnusualSettings") -> Iterator[Unusual]:
    there, normal = newest.dump.bytes, median(each.dump.bytes for each in usual)
    if normal >= limits.smallest_bytes and there < limits.smaller_percent / 100 * normal:
        yield Unusual("shrunk", f"the dump has {size(there)}, usual are {size(round(normal))}", there, normal)
    if is_too_fast(newest, usual, limits):
        took, seconds = newest.duration_seconds, median(each.duration_seconds for each in usual)
        yield Unusual("too_fast", f"it took {duration(took)}, usual are {duration(seconds)}", took, seconds)


def _contents(newest: Manifest, usual: Sequence[Manifest], limits: "UnusualSettings") -> list[Unusual]:
    """Tables first; all rows together only where no table stands out: many small ones may have been emptied."""
    counted, *before = [_rows(each, limits) for each in (newest, *usual)]
    named = {name for each in before for name in each}
    found = [each for each in (_table(name, counted, before, limits) for name in named) if each is not None]
    if found:
        return sorted(found, key=lambda each: (each.value - each.usual, each.table))
    return _together(counted, before, limits)


def _table(
    name: str, counted: dict[str, int | None], before: Sequence[dict[str, int | None]], limits: "UnusualSettings"
) -> Unusual | None:
    # One that was not there yet had no rows: so a table that comes and goes is unusual in neither state.
    known = [rows for each in before if (rows := each.get(name, 0)) is not None]
    normal = median(known) if len(known) >= min(FEWEST, limits.compared) else 0
    rows = counted.get(name, 0)
    if rows is None or normal < limits.fewest_rows:
        return None
    if name not in counted:
        return Unusual("table_lost", f"table {name} is not in it, usual are {normal:,.0f} rows", 0, normal, name)
    if rows < limits.rows_percent / 100 * normal:
        return Unusual("rows_lost", f"table {name} has {rows:,} rows, usual are {normal:,.0f}", rows, normal, name)
    return None


def _together(
    counted: dict[str, int | None], before: Sequence[dict[str, int | None]], limits: "UnusualSettings"
) -> list[Unusual]:
    """The sum over all tables of which every one of these backups knows the rows."""
    unknown = {name for each in (counted, *before) for name, rows in each.items() if rows is None}
    rows, *sums = [sum(rows or 0 for name, rows in each.items() if name not in unknown) for each in (counted, *before)]
    normal = median(sums)
    if normal < limits.fewest_rows or rows >= limits.rows_percent / 100 * normal:
        return []
    return [Unusual("rows_lost", f"all tables together have {rows:,} rows, usual are {normal:,.0f}", rows, normal)]


def _rows(manifest: Manifest, limits: "UnusualSettings") -> dict[str, int | None]:
    """Rows by table; None for one that was not counted, or whose data was left out on purpose."""
    counted = {
        f"{table.schema}.{table.name}": table.rows
        for table in manifest.facts.tables
        if not any(_means(pattern, table.schema, table.name) for pattern in limits.ignore_tables)
    }
    return counted | dict.fromkeys(manifest.excluded_tables)


def _means(pattern: str, schema: str, name: str) -> bool:
    """As in ``exclude_tables``: with a dot it means schema and table, without one a table of any schema."""
    return fnmatchcase(f"{schema}.{name}" if "." in pattern else name, pattern)
