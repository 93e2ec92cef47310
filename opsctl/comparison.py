"""How two states of a database differ, table by table: two backups, or a backup and the live database. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from opsctl.manifest import ExtensionFacts, Facts, TableFacts

TableStatus = Literal["same", "same_rows", "different", "added", "removed", "unknown"]
"""``same_rows``: as many rows, and nobody has looked at what is in them. ``added`` is only in the second state."""

Definitions = Literal["same", "different", "unknown"]


@dataclass(frozen=True)
class State:
    """One side of a comparison.

    ``left_out`` are tables (``schema.name``) whose data is not in it on purpose, ``dumped_by`` is the version of
    pg_dump that its definitions were hashed with: another one may write the same definitions differently.
    """

    facts: Facts
    left_out: frozenset[str] = frozenset()
    dumped_by: str | None = None


@dataclass(frozen=True)
class TableDifference:
    """A table in both states; rows and hash are None where they are not known, or the table is not there."""

    schema: str
    name: str
    status: TableStatus
    a_rows: int | None
    b_rows: int | None
    a_hash: str | None
    b_hash: str | None
    left_out: bool = False
    """Whether its data was left out of one of them on purpose."""

    @property
    def more_rows(self) -> int | None:
        """How many more the second state has; a table that is not there has none."""
        a, b = (0, self.b_rows) if self.status == "added" else (self.a_rows, self.b_rows)
        b = 0 if self.status == "removed" else b
        return None if a is None or b is None else b - a


@dataclass(frozen=True)
class ExtensionDifference:
    """An extension that is in one state only, or there in another version."""

    name: str
    a_version: str | None
    b_version: str | None


@dataclass(frozen=True)
class LargeObjects:
    """The large objects of both states together."""

    status: TableStatus
    a_count: int | None
    b_count: int | None


@dataclass(frozen=True)
class Comparison:
    """``tables`` by name; ``extensions`` only those that differ."""

    tables: tuple[TableDifference, ...]
    large_objects: LargeObjects
    extensions: tuple[ExtensionDifference, ...]
    definitions: Definitions

    @property
    def counts(self) -> Counter[TableStatus]:
        return Counter(table.status for table in self.tables)

    @property
    def is_same(self) -> bool | None:
        """False for any difference; True when the content of all tables was looked at; None when nobody can tell."""
        found = {*self.counts, self.large_objects.status}
        if found & {"different", "added", "removed"} or self.extensions or self.definitions == "different":
            return False
        return True if found == {"same"} else None


def compare(a: State, b: State) -> Comparison:
    """What is different in ``b``."""
    ours, theirs = ({(t.schema, t.name): t for t in state.facts.tables} for state in (a, b))
    left_out = a.left_out | b.left_out
    return Comparison(
        tables=tuple(
            _table(key, ours.get(key), theirs.get(key), left_out=".".join(key) in left_out)
            for key in sorted(ours.keys() | theirs.keys())
        ),
        large_objects=_large_objects(a.facts, b.facts),
        extensions=tuple(_extensions(a.facts.extensions, b.facts.extensions)),
        definitions=_definitions(a, b),
    )


def _table(key: tuple[str, str], a: TableFacts | None, b: TableFacts | None, *, left_out: bool) -> TableDifference:
    status: TableStatus
    if a is not None and b is not None:
        status = _status((a.rows, a.content_hash), (b.rows, b.content_hash))
    elif left_out:
        status = "unknown"
    else:
        status = "removed" if b is None else "added"
    return TableDifference(
        *key,
        status,
        a.rows if a else None,
        b.rows if b else None,
        a.content_hash if a else None,
        b.content_hash if b else None,
        left_out=left_out,
    )


def _status(a: tuple[int | None, str | None], b: tuple[int | None, str | None]) -> TableStatus:
    """Of a number of rows and a hash of what is in them."""
    (a_rows, a_hash), (b_rows, b_hash) = a, b
    if a_rows is None or b_rows is None:
        return "unknown"
    if a_rows != b_rows:
        return "different"
    if a_hash is None or b_hash is None:
        return "same_rows"
    return "same" if a_hash == b_hash else "different"


def _large_objects(a: Facts, b: Facts) -> LargeObjects:
    status = _status((a.large_objects, a.large_objects_hash), (b.large_objects, b.large_objects_hash))
    if a.large_objects == b.large_objects == 0:
        status = "same"
    return LargeObjects(status, a.large_objects, b.large_objects)


def _extensions(a: Sequence[ExtensionFacts], b: Sequence[ExtensionFacts]) -> list[ExtensionDifference]:
    ours, theirs = ({each.name: each.version for each in side} for side in (a, b))
    names = sorted(ours.keys() | theirs.keys())
    found = [ExtensionDifference(name, ours.get(name), theirs.get(name)) for name in names]
    return [each for each in found if each.a_version != each.b_version]


def _definitions(a: State, b: State) -> Definitions:
    ours, theirs = a.facts.schema_sha256, b.facts.schema_sha256
    if ours is None or theirs is None or a.dumped_by != b.dumped_by:
        return "unknown"
    return "same" if ours == theirs else "different"
