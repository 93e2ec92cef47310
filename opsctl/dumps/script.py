r"""A plain dump read to its end: what is in it, and what of it is run. Nothing of the rest ever reaches a server.

pg_dump's scripts are for psql, which would do whatever stands in them: drop the live database, connect to it, start a
program. So what is run is what :mod:`vocabulary` knows of one database, and psql's own commands are not among it. psql
says nothing of a script that is cut in the middle of a table's rows: here it has to end as pg_dump ends it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from opsctl.dumps.lexer import CUT_HINT, Lexer, Piece, refused
from opsctl.dumps.vocabulary import (
    AMBIGUOUS_ENCODINGS,
    Tokens,
    created_kind,
    inserted_rows,
    judge,
    named_roles,
    read_names,
    top_level,
    unquoted,
)
from opsctl.errors import BackupDamaged, Refused

EXAMPLES = 5
BEFORE_CONNECT = ""
"""The section of a script that names no database, and of what comes before the first ``\\connect``."""

_HEADER = re.compile(rb"-- PostgreSQL database (cluster )?dump( complete)?\s*\Z")
_VERSION = re.compile(rb"-- Dumped (from database|by pg_dump) version (\S+)")
_STARTED = re.compile(rb"-- Started on (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)")
_CONNECT = re.compile(
    rb"""\\connect (?:-reuse-previous=on "dbname='(?P<quoted>(?:[^'\\]|\\.)*)'"|(?P<name>"(?:[^"]|"")+"|\S+))\s*"""
)
_NAMES = re.compile(rb'[^".]+|"(?:[^"]|"")*"')
_FENCE = re.compile(rb"\\(un)?restrict \w+\s*")

Table = tuple[bytes, bytes]


@dataclass
class Section:
    """What a script holds of one database. Names are in the dump's encoding.

    ``tables`` have the rows that are in the dump; ``None``: only the restored table will tell, because some may be left
    out (ON CONFLICT DO NOTHING).
    """

    encoding: str = "UTF8"
    tables: dict[Table, int | None] = field(default_factory=dict)
    created: set[Table] = field(default_factory=set)
    partitioned: set[Table] = field(default_factory=set)
    """Those without rows of their own."""

    owned: dict[bytes, list[bytes]] = field(default_factory=dict)
    roles: set[bytes] = field(default_factory=set)
    extensions: dict[bytes, bytes] = field(default_factory=dict)
    superuser_objects: list[tuple[str, bytes]] = field(default_factory=list)
    has_content: bool = False
    bytes: int = 0
    """About."""


@dataclass(frozen=True)
class Excerpt:
    """What of a script is run: one section, and what a restore was asked to leave out."""

    section: str = BEFORE_CONNECT
    no_owner: bool = False
    no_privileges: bool = False
    no_tablespaces: bool = False
    in_one_transaction: bool = False


class Script:
    """One reading of a script. The attributes are complete once :meth:`run` has come to its end."""

    def __init__(self, excerpt: Excerpt | None = None) -> None:
        self.sections: dict[str, Section] = {BEFORE_CONNECT: Section()}
        self.server_version = ""
        self.pg_dump_version = ""
        self.started_on: str | None = None
        self.left: dict[str, int] = {}
        """What was not run because it is about something else than the database's contents, and how often."""
        self._excerpt = excerpt
        self._lexer = Lexer()
        self._name = BEFORE_CONNECT
        self._path = b"public"
        self._rows_of: Table | None = None
        self._headers = 0
        self.is_cluster = False
        self._is_complete = False

    @property
    def section(self) -> Section:
        """The one that is being read."""
        return self.sections[self._name]

    def run(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """What is to be run, in pieces; nothing while nothing is selected.

        Raises BackupDamaged when the script is cut or none of pg_dump's, Refused when something in it is.
        """
        for chunk in chunks:
            for piece in self._lexer.feed(chunk):
                yield from self._take(piece)
            self.section.bytes += len(chunk)
        for piece in self._lexer.end():
            yield from self._take(piece)
        self._require_beginning()
        if not self._is_complete:
            raise BackupDamaged(
                f"The dump ends in line {self._lexer.line} without the line that pg_dump ends with: it is cut.",
                hint=CUT_HINT,
            )

    def _take(self, piece: Piece) -> Iterator[bytes]:
        if piece.kind == "comment":
            self._note(piece)
        elif piece.kind == "command":
            self._command(piece)
        elif piece.kind == "rows":
            if self._rows_of is not None:
                self._count(self._rows_of, piece.count)
            if self._is_selected:
                yield piece.text
        elif piece.kind == "inserts":
            self._require_beginning()
            self._is_complete, self.section.has_content = False, True
            table = self._table(tuple(unquoted(name) for name in _NAMES.findall(piece.tokens[0])))
            self._count(table, piece.count)
            if self._is_selected:
                yield piece.text
        else:
            yield from self._statement(piece)

    def _require_beginning(self) -> None:
        if not self._headers:
            raise BackupDamaged("This is no dump that pg_dump wrote: its first lines are missing.", hint=CUT_HINT)

    @property
    def _is_selected(self) -> bool:
        return self._excerpt is not None and self._excerpt.section == self._name

    def _note(self, piece: Piece) -> None:
        """What pg_dump says of itself in comments."""
        text = piece.text.strip()
        if marker := _HEADER.match(text):
            is_end = marker[2] is not None
            if piece.is_last and not is_end:
                return  # the last line, cut
            self.is_cluster = self.is_cluster or marker[1] is not None
            self._headers += not is_end
            self._is_complete = is_end and (marker[1] is not None or not self.is_cluster)
            if self._headers > 1 and not self.is_cluster:
                raise refused(piece.line, "the beginning of a second dump")
        elif version := _VERSION.match(text):
            if version[1] == b"by pg_dump":
                self.pg_dump_version = version[2].decode("ascii", "replace")
            else:
                self.server_version = version[2].decode("ascii", "replace")
        elif (started := _STARTED.match(text)) and self.started_on is None:
            self.started_on = started[1].decode()

    def _command(self, piece: Piece) -> None:
        text = piece.text.strip()
        if _FENCE.fullmatch(text):
            return  # ours is around the whole
        match = _CONNECT.fullmatch(text)
        if match is None and piece.is_last:
            raise BackupDamaged(f"The dump ends inside a command, in line {piece.line}: it is cut.", hint=CUT_HINT)
        if match is None:
            raise refused(piece.line, f"psql's command {text[:40].decode('utf-8', 'replace')}")
        self._is_complete = False
        name = unquoted(match["name"]) if (match["name"] or b"").startswith(b'"') else match["name"]
        if name is None:
            name = re.sub(rb"\\(.)", rb"\1", match["quoted"])
        self._name = name.decode("utf-8", "backslashreplace")
        encoding = self.sections[BEFORE_CONNECT].encoding
        self.sections.setdefault(self._name, Section(encoding))

    def _statement(self, piece: Piece) -> Iterator[bytes]:
        tokens = piece.tokens
        if not tokens:
            return
        self._require_beginning()
        self._is_complete = False
        verdict = judge(tokens, is_cluster=self.is_cluster)
        if verdict == "refuse":
            raise refused(piece.line, f"`{_brief(piece.text)}`")
        if tokens[0] == b"COPY":
            self._lexer.begin_copy()
        if verdict == "leave":
            words = b" ".join(tokens[:2]).decode("ascii", "replace")
            if tokens[0] not in {b"SET", b"SELECT"}:
                self.left[words] = self.left.get(words, 0) + 1
            return
        self._learn(tokens, piece.line)
        if self._is_selected and not self._is_left_out(tokens):
            yield piece.text

    def _is_left_out(self, tokens: Tokens) -> bool:
        excerpt = self._excerpt or Excerpt()
        is_owner = tokens[-3:-1] == (b"OWNER", b"TO") or tokens[1:3] == (b"SESSION", b"AUTHORIZATION")
        is_privilege = tokens[0] in {b"GRANT", b"REVOKE"} or tokens[:2] == (b"ALTER", b"DEFAULT")
        return (
            (excerpt.no_owner and is_owner)
            or (excerpt.no_privileges and is_privilege)
            or (excerpt.no_tablespaces and tokens[:2] == (b"SET", b"DEFAULT_TABLESPACE"))
            or (excerpt.in_one_transaction and tokens in {(b"BEGIN",), (b"COMMIT",)})
        )

    def _learn(self, tokens: Tokens, line: int) -> None:
        word = tokens[0]
        if word == b"SET":
            self._setting(tokens, line)
            return
        if word == b"SELECT":
            return
        self.section.has_content = True
        if word == b"CREATE":
            self._created(tokens)
        elif word == b"COPY":
            self._rows_of = self._table(read_names(tokens, 1)[0])
            self._count(self._rows_of, 0)
        elif word == b"INSERT":
            self._count(self._table(read_names(tokens, 2)[0]), inserted_rows(tokens))
        elif tokens[-3:-1] == (b"OWNER", b"TO"):
            examples = self.section.owned.setdefault(unquoted(tokens[-1]), [])
            if len(examples) < EXAMPLES and tokens[1] != b"LARGE":
                examples.append(b"".join(tokens[1:-3][-3:]).lower() if len(tokens) < 9 else tokens[1].lower())
        elif word in {b"GRANT", b"REVOKE"} or tokens[:2] == (b"ALTER", b"DEFAULT"):
            self.section.roles.update(named_roles(tokens))

    def _setting(self, tokens: Tokens, line: int) -> None:
        name, value = tokens[1], tokens[-1].strip(b"'")
        if name == b"STANDARD_CONFORMING_STRINGS":
            self._lexer.escapes = value.upper() != b"ON"
        elif name == b"CLIENT_ENCODING":
            if value.upper() in AMBIGUOUS_ENCODINGS:
                raise Refused(
                    f"Line {line} of the dump: it is written in {value.decode()}, where a backslash may be half a"
                    " character.",
                    hint="Dump in UTF8 (pg_dump --encoding=UTF8).",
                )
            self.section.encoding = value.decode("ascii", "replace").upper()
        elif name == b"SEARCH_PATH":
            self._path = unquoted(tokens[3])
        elif name == b"SESSION":
            self.section.roles.add(value if tokens[-1].startswith(b"'") else unquoted(tokens[-1]))

    def _created(self, tokens: Tokens) -> None:
        section, kind = self.section, created_kind(tokens)
        if kind in {b"TABLE", b"UNLOGGED"}:
            table = self._table(read_names(tokens, tokens.index(b"TABLE") + 1)[0])
            section.created.add(table)
            section.tables.setdefault(table, 0)
            if _is_partitioned(tokens):
                section.partitioned.add(table)
        elif kind == b"EXTENSION":
            names, rest = read_names(tokens, 5 if tokens[2:5] == (b"IF", b"NOT", b"EXISTS") else 2)
            schema = unquoted(rest[2]) if rest[:2] == (b"WITH", b"SCHEMA") else b""
            section.extensions[names[0]] = schema
        elif kind == b"POLICY":
            section.roles.update(named_roles(tokens))
        elif word := _only_superusers(tokens, kind):
            position = tokens.index(word[1]) + 1
            section.superuser_objects.append((word[0], read_names(tokens, position)[0][-1]))

    def _table(self, names: tuple[bytes, ...]) -> Table:
        return (names[-2] if len(names) > 1 else self._path, names[-1])

    def _count(self, table: Table, rows: int | None) -> None:
        known = self.section.tables.get(table, 0)
        self.section.tables[table] = None if known is None or rows is None else known + rows


def _is_partitioned(tokens: Tokens) -> bool:
    outer = list(top_level(tokens))
    return any(outer[place : place + 2] == [b"PARTITION", b"BY"] for place in range(len(outer)))


def _only_superusers(tokens: Tokens, kind: bytes) -> tuple[str, bytes] | None:
    """The word for an object that only a superuser can create, and the token before its name."""
    if kind == b"EVENT":
        return "event trigger", b"TRIGGER"
    if kind == b"PUBLICATION" and b"ALL" in tokens:
        return "publication", b"PUBLICATION"
    if kind == b"FOREIGN" and b"WRAPPER" in tokens[:5]:
        return "foreign-data wrapper", b"WRAPPER"
    if kind == b"FUNCTION":
        outer = list(top_level(tokens))
        language = outer.index(b"LANGUAGE") + 1 if b"LANGUAGE" in outer[:-1] else 0
        if language and outer[language] in {b"C", b"INTERNAL"}:
            return "C function", b"FUNCTION"
    return None


def _brief(statement: bytes) -> str:
    text = " ".join(statement.decode("utf-8", "replace").split())
    return text if len(text) <= 60 else f"{text[:60]}…"
