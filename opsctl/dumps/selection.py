"""Part of an archive: which entries a selective restore takes, what they bring along, and what will be missing. Pure.

pg_restore's own ``--table`` leaves indexes, constraints and sequences behind. This follows the dependencies that
pg_dump has written into the archive.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter

from opsctl.dumps.contents import Entry
from opsctl.errors import UsageError
from opsctl.manifest import Facts, OwnedObjects, TableFacts

RELATIONS = frozenset({"TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE", "FOREIGN TABLE"})
ROWS = frozenset({"TABLE DATA", "SEQUENCE SET", "MATERIALIZED VIEW DATA", "STATISTICS DATA"})
LARGE_OBJECTS = frozenset({"BLOB", "BLOBS", "BLOB METADATA"})
ALWAYS = frozenset({"ENCODING", "STDSTRINGS", "SEARCHPATH"})
PARTS = frozenset(
    {
        "ACL",
        "CHECK CONSTRAINT",
        "COMMENT",
        "CONSTRAINT",
        "DEFAULT",
        "FK CONSTRAINT",
        "INDEX",
        "INDEX ATTACH",
        "POLICY",
        "ROW SECURITY",
        "RULE",
        "SECURITY LABEL",
        "SEQUENCE OWNED BY",
        "STATISTICS",
        "TABLE ATTACH",
        "TRIGGER",
    }
)
"""What hangs on something else, and comes with it."""

EXAMPLES = 5


@dataclass(frozen=True)
class Selection:
    """What was asked for, with patterns as ``pg_dump`` takes them."""

    tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    schema_only: bool = False
    data_only: bool = False

    @property
    def is_empty(self) -> bool:
        return self == Selection()


@dataclass(frozen=True)
class Selected:
    """``entries`` in the archive's own order, if it can be; ``along`` and ``missing`` are sentences for the plan."""

    entries: tuple[Entry, ...]
    along: tuple[str, ...]
    missing: tuple[str, ...]
    with_rows: frozenset[tuple[str, str]]
    """The tables and sequences whose rows or values are restored."""

    is_reordered: bool = False
    """Whether they are in another order: rows alone go into tables whose foreign keys are there already."""

    @property
    def use_list(self) -> bytes:
        """The list for ``pg_restore --use-list``."""
        return "".join(f"{entry.id};\n" for entry in self.entries).encode()

    @property
    def owners(self) -> frozenset[str]:
        return frozenset(entry.owner for entry in self.entries if entry.owner)

    def names(self, *kinds: str) -> frozenset[tuple[str, str]]:
        """Schema and name of the selected entries of these kinds."""
        return frozenset((entry.schema, entry.name) for entry in self.entries if entry.kind in kinds)

    def restricted(self, facts: Facts) -> Facts:
        """What the facts say of this part: what a copy of it is compared with."""
        tables = self.names("TABLE") | self.with_rows
        extensions = {name for _, name in self.names("EXTENSION")}
        named = {name for _, name in self.names(*{entry.kind for entry in self.entries})}
        grants = " ".join(entry.command for entry in self.entries if entry.kind in {"ACL", "DEFAULT ACL", "POLICY"})
        owned = {owner: [_words(each) for each in self.entries if each.owner == owner] for owner in self.owners}
        return replace(
            facts,
            tables=tuple(
                each if (each.schema, each.name) in self.with_rows else TableFacts(each.schema, each.name, 0)
                for each in facts.tables
                if (each.schema, each.name) in tables
            ),
            sequences=tuple(each for each in facts.sequences if (each.schema, each.name) in self.with_rows),
            extensions=tuple(each for each in facts.extensions if each.name in extensions),
            roles=tuple(role for role in facts.roles if role in self.owners or role in grants),
            owners=tuple(
                OwnedObjects(role, len(names), tuple(names[:EXAMPLES])) for role, names in sorted(owned.items())
            ),
            superuser_objects=tuple(each for each in facts.superuser_objects if each.partition(" ")[2] in named),
            large_objects=None,
            large_objects_hash=None,
            schema_sha256=None,
        )


def select(entries: Sequence[Entry], wanted: Selection) -> Selected:
    """Choose. Raises UsageError when a pattern matches nothing."""
    excluded = _matching(entries, wanted.exclude_tables, "--exclude-table")
    walk = _Walk(entries, frozenset(excluded))
    if wanted.tables or wanted.schemas:
        roots = {*_matching(entries, wanted.tables, "--table"), *_in_schemas(entries, wanted.schemas)}
    else:
        roots = {each.id for each in entries if each.kind not in PARTS | ROWS | LARGE_OBJECTS}
    walk.take(sorted(roots - walk.excluded))
    if not wanted.tables and not wanted.schemas and not wanted.schema_only and not wanted.data_only:
        walk.take_large_objects()
    return walk.result(wanted)


@dataclass
class _Walk:
    entries: Sequence[Entry]
    excluded: frozenset[int]
    chosen: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    bare: set[int] = field(default_factory=set)
    """Tables that come along without their rows, because something that was asked for is defined by them."""

    along: dict[str, None] = field(default_factory=dict)
    partitions: dict[str, None] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_id = {entry.id: entry for entry in self.entries}
        # The sequence of a column goes with its table.
        self.excluded |= {
            entry.id for entry in self.entries if entry.kind == "SEQUENCE" and set(entry.needs) & self.excluded
        }

    def take(self, roots: Iterable[int]) -> None:
        """The roots, what they need, and what hangs on them, until nothing more comes."""
        self.asked |= set(roots)
        self._add(self.asked)
        while (more := self._followers()) - self.chosen:
            self._add(more)
        for entry in self.entries:
            if entry.kind in PARTS and entry.id not in self.chosen:
                self._explain(entry)

    def take_large_objects(self) -> None:
        self.chosen |= {entry.id for entry in self.entries if entry.kind in LARGE_OBJECTS}
        for entry in self.entries:
            if entry.kind in {"ACL", "COMMENT", "SECURITY LABEL"} and set(entry.needs) & self.chosen:
                self.chosen.add(entry.id)

    def _add(self, identifiers: Iterable[int]) -> None:
        """These, and everything without which they cannot be made; not one whose needs are excluded."""
        for identifier in identifiers:
            if identifier in self.chosen:
                continue
            lacking = self._lacking(identifier, set())
            if lacking is None:
                self._bring(identifier)
            else:
                words, needed = _words(self._by_id[identifier]), _words(self._by_id[lacking])
                self.missing[f"{words}: it needs {needed}, which is left out"] = None

    def _required(self, entry: Entry) -> Iterator[Entry]:
        """What has to be there before it."""
        for need in entry.needs:
            other = self._by_id.get(need)
            if other is None or other.kind in PARTS | ROWS:
                continue
            if other.kind in RELATIONS and entry.kind == "SEQUENCE" and not entry.command.startswith("ALTER TABLE"):
                continue  # the table it belongs to; one of an identity column is part of it
            if other.kind == "TABLE" and entry.kind == "TABLE" and "INHERITS (" not in entry.command:
                continue  # a partition is a table of its own until it is attached
            yield other

    def _lacking(self, identifier: int, seen: set[int]) -> int | None:
        """The first thing it needs that is excluded."""
        seen.add(identifier)
        for other in self._required(self._by_id[identifier]):
            if other.id in self.excluded:
                return other.id
            if other.id not in seen and other.id not in self.chosen:
                lacking = self._lacking(other.id, seen)
                if lacking is not None:
                    return lacking
        return None

    def _bring(self, identifier: int) -> None:
        waiting = [identifier]
        while waiting:
            entry = self._by_id[waiting.pop()]
            if entry.id in self.chosen:
                continue
            self.chosen.add(entry.id)
            for other in self._required(entry):
                if other.id not in self.chosen:
                    waiting.append(other.id)
                    self._tell(other, entry)

    def _tell(self, other: Entry, entry: Entry) -> None:
        if other.id in self.asked:
            return
        if other.kind in {"TABLE", "FOREIGN TABLE"}:
            self.bare.add(other.id)
            self.along[f"{_words(other)}, without its rows, which {_words(entry)} is made of"] = None
        elif other.kind not in {"SCHEMA", *ALWAYS}:
            self.along[f"{_words(other)}, for {_words(entry)}"] = None

    def _followers(self) -> set[int]:
        """What hangs on the chosen ones, and on nothing else; the sequences and partitions of chosen tables."""
        found = set()
        for entry in self.entries:
            if entry.id in self.chosen or entry.id in self.excluded:
                continue
            needed = [self._by_id[need] for need in entry.needs if need in self._by_id]
            if entry.kind in PARTS:
                if self._hangs(entry, needed):
                    found.add(entry.id)
            elif entry.kind == "SEQUENCE" and any(n.kind == "TABLE" and n.id in self.chosen for n in needed):
                found.add(entry.id)
                self.along.setdefault(f"{_words(entry)}, of {_words(next(n for n in needed if n.kind == 'TABLE'))}")
        return found | set(self._partitions())

    def _partitions(self) -> Iterator[int]:
        for entry in self.entries:
            if entry.kind != "TABLE ATTACH":
                continue
            tables = [self._by_id[need] for need in entry.needs if need in self._by_id]
            child = next((each for each in tables if (each.schema, each.name) == (entry.schema, entry.name)), None)
            parent = next((each for each in tables if each is not child and each.kind == "TABLE"), None)
            if child and parent and parent.id in self.chosen and child.id not in self.chosen | self.excluded:
                self.asked.add(child.id)
                self.partitions[f"{_words(child)}, a partition of {_words(parent)}"] = None
                yield child.id

    def _hangs(self, entry: Entry, needed: Sequence[Entry]) -> bool:
        ours = [each for each in needed if each.id in self.chosen]
        if not ours:
            return False
        if entry.kind == "INDEX ATTACH":
            return all(each.id in self.chosen for each in needed)
        if entry.kind == "SEQUENCE OWNED BY":
            tables = (self._by_id[need] for each in ours for need in each.needs if need in self._by_id)
            return all(table.id in self.chosen for table in tables if table.kind == "TABLE")
        return all(each.id in self.chosen for each in needed if each.kind in RELATIONS) and all(
            self._lacking(each.id, set()) is None for each in needed if each.kind not in PARTS
        )

    def _explain(self, entry: Entry) -> None:
        """Why something of a chosen table is not there."""
        needed = [self._by_id[need] for need in entry.needs if need in self._by_id]
        own = next((each for each in needed if each.kind in RELATIONS and _is_of(entry, each)), None)
        others = [each for each in needed if each.kind in RELATIONS and each is not own and each.id not in self.chosen]
        if own is None or own.id not in self.chosen or not others:
            return
        other = _words(others[0])
        if entry.kind == "TABLE ATTACH":
            self.missing[f"{_words(own)} becomes a table of its own: {other}, whose partition it is, is left out"] = (
                None
            )
        elif entry.kind != "INDEX ATTACH":
            self.missing[f"{_words(entry)}: it needs {other}, which is left out"] = None

    def result(self, wanted: Selection) -> Selected:
        if wanted.data_only:
            self.along, self.missing = {}, {}  # nothing of that is made
        elif not wanted.schema_only:
            self.chosen -= self._keys_to_rows_left_out()
        rows = {entry.id for entry in self.entries if entry.kind in ROWS and self._has_rows(entry)}
        large = any(entry.kind in LARGE_OBJECTS and entry.id not in self.chosen for entry in self.entries)
        if large and not wanted.schema_only:
            self.missing["the large objects: they belong to no table"] = None
        chosen = {entry.id for entry in self.entries if entry.kind in ALWAYS}
        chosen |= set() if wanted.data_only else self.chosen
        chosen |= set() if wanted.schema_only else rows
        entries = tuple(entry for entry in self.entries if entry.id in chosen)
        ordered = self._after_what_they_refer_to(entries) if wanted.data_only else entries
        with_rows = frozenset((entry.schema, entry.name) for entry in entries if entry.kind in ROWS)
        along = (*self.partitions, *self.along)
        return Selected(ordered, along, tuple(self.missing), with_rows, is_reordered=ordered != entries)

    def _keys_to_rows_left_out(self) -> set[int]:
        """Foreign keys of rows that come, to a table whose rows do not; and what hangs on them."""
        found = set()
        for entry in self.entries:
            if entry.kind == "FK CONSTRAINT" and entry.id in self.chosen:
                own, others = self._ends(entry)
                bare = next((each for each in others if each.id in self.bare), None)
                if bare is not None and own is not None and own.id not in self.bare:
                    self.missing[f"{_words(entry)}: it needs the rows of {_words(bare)}, which are left out"] = None
                    found.add(entry.id)
        return found | {entry.id for entry in self.entries if entry.kind in PARTS and set(entry.needs) & found}

    def _ends(self, key: Entry) -> tuple[Entry | None, list[Entry]]:
        """The table a foreign key is of, and what it refers to."""
        tables = [n for need in key.needs if (n := self._by_id.get(need)) is not None and n.kind == "TABLE"]
        own = next((each for each in tables if _is_of(key, each)), None)
        return own, [each for each in tables if each is not own]

    def _after_what_they_refer_to(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Rows behind those of the tables that their foreign keys refer to; a circle is told."""
        refers: dict[tuple[str, str], set[tuple[str, str]]] = {}
        for entry in self.entries:
            own, others = self._ends(entry)
            if entry.kind == "FK CONSTRAINT" and own is not None:
                refers.setdefault((own.schema, own.name), set()).update((each.schema, each.name) for each in others)
        rows = {(entry.schema, entry.name): entry for entry in entries if entry.kind == "TABLE DATA"}
        sorter = TopologicalSorter({table: refers.get(table, set()) & rows.keys() for table in rows})
        try:
            placed = tuple(rows[table] for table in sorter.static_order())
        except CycleError as error:
            names = ", ".join(sorted({".".join(table) for table in error.args[1]}))
            self.missing[f"an order for the rows of {names}: their foreign keys go in a circle"] = None
            return entries
        if all(refers.get(table, set()).isdisjoint(later) for table, later in _with_later(list(rows))):
            return entries
        before = tuple(entry for entry in entries if entry.kind in ALWAYS)
        return (*before, *placed, *(entry for entry in entries if entry.kind not in ALWAYS | {"TABLE DATA"}))

    def _has_rows(self, entry: Entry) -> bool:
        """Rows of a chosen table; a materialised view is filled only from tables that are whole."""
        relations = [n for need in entry.needs if (n := self._by_id.get(need)) is not None and n.kind in RELATIONS]
        if not relations or not all(each.id in self.chosen and each.id not in self.bare for each in relations):
            return False
        if entry.kind != "MATERIALIZED VIEW DATA":
            return True
        return all(each.id not in self.bare for view in relations for each in self._required(view))


def _with_later(tables: list[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], set[tuple[str, str]]]]:
    for place, table in enumerate(tables):
        yield table, set(tables[place + 1 :])


def _is_of(entry: Entry, relation: Entry) -> bool:
    """Whether a part belongs to this relation: pg_dump writes the table's name before the part's."""
    if entry.schema != relation.schema:
        return False
    return entry.name == relation.name or entry.name.startswith(f"{relation.name} ")


def _words(entry: Entry) -> str:
    name = entry.name if entry.kind in {"EXTENSION", "SCHEMA"} or not entry.schema else f"{entry.schema}.{entry.name}"
    kind = {"FK CONSTRAINT": "foreign key"}.get(entry.kind, entry.kind.lower())
    return f"{kind} {name}"


def _in_schemas(entries: Sequence[Entry], patterns: Sequence[str]) -> set[int]:
    found: set[int] = set()
    for pattern in patterns:
        compiled = re.compile(_regex(pattern))
        here = {
            entry.id
            for entry in entries
            if entry.kind not in PARTS | ROWS
            and compiled.fullmatch(entry.name if entry.kind == "SCHEMA" else entry.schema or "\0")
        }
        if not here:
            raise UsageError(
                f"--schema {pattern} matches nothing in the backup.", hint="`opsctl show` lists its tables."
            )
        found |= here
    return found


def _matching(entries: Sequence[Entry], patterns: Sequence[str], option: str) -> set[int]:
    found: set[int] = set()
    for pattern in patterns:
        schema, name = _split(pattern)
        schemas, names = re.compile(_regex(schema) if schema else ".*", re.DOTALL), re.compile(_regex(name), re.DOTALL)
        here = {
            entry.id
            for entry in entries
            if entry.kind in RELATIONS and schemas.fullmatch(entry.schema) and names.fullmatch(entry.name)
        }
        if not here:
            raise UsageError(
                f"{option} {pattern} matches nothing in the backup.", hint="`opsctl show` lists its tables."
            )
        found |= here
    return found


def _split(pattern: str) -> tuple[str, str]:
    """A pattern's schema, if it has one, and its name; a dot inside of double quotes is part of a name."""
    parts = re.findall(r'(?:"(?:[^"]|"")*"|[^."])+', pattern)
    return ("".join(parts[:-1]), parts[-1]) if len(parts) > 1 else ("", pattern)


def _regex(pattern: str) -> str:
    """``*`` and ``?`` as in ``pg_dump``; what is not in double quotes is lower case."""
    regex = ""
    for quoted, plain in re.findall(r'"((?:[^"]|"")*)"|([^"])', pattern):
        if plain in {"*", "?"}:
            regex += {"*": ".*", "?": "."}[plain]
        else:
            regex += re.escape(quoted.replace('""', '"') or plain.lower())
    return regex
