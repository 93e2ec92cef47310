"""What pg_dump and pg_dumpall write, and what of it a restore runs: statement by statement, everything else is refused.

A list of what is allowed, because a list of what is dangerous is never complete: DO, CALL, COPY … PROGRAM, ALTER SYSTEM
and whatever a next version brings.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

Tokens = Sequence[bytes]
Verdict = Literal["run", "leave", "refuse"]
"""``leave``: pg_dump writes it, and it is about something else than the contents of the one database: never run."""

SETTINGS = frozenset(
    b"CHECK_FUNCTION_BODIES CLIENT_ENCODING CLIENT_MIN_MESSAGES DEFAULT_TABLESPACE DEFAULT_TABLE_ACCESS_METHOD"
    b" DEFAULT_TOAST_COMPRESSION DEFAULT_WITH_OIDS ESCAPE_STRING_WARNING IDLE_IN_TRANSACTION_SESSION_TIMEOUT"
    b" IDLE_SESSION_TIMEOUT LOCK_TIMEOUT ROW_SECURITY SEARCH_PATH STANDARD_CONFORMING_STRINGS STATEMENT_TIMEOUT"
    b" XMLOPTION".split()
)
LEFT_SETTINGS = frozenset({b"TRANSACTION_TIMEOUT", b"DEFAULT_TRANSACTION_READ_ONLY"})
"""The first is 0 in every dump, as by default, and older servers do not know it."""

FUNCTIONS = frozenset(
    b"SET_CONFIG SETVAL LO_CREATE LO_OPEN LOWRITE LO_CLOSE PG_RESTORE_RELATION_STATS PG_RESTORE_ATTRIBUTE_STATS"
    b" PG_CLEAR_RELATION_STATS PG_CLEAR_ATTRIBUTE_STATS PG_RESTORE_EXTENDED_STATS".split()
)
CONSTANTS = frozenset({b"NULL", b"TRUE", b"FALSE", b"DEFAULT"})
CAST_WORDS = frozenset({b"PRECISION", b"VARYING", b"ARRAY"})

KINDS = frozenset(
    b"ACCESS AGGREGATE CAST COLLATION CONSTRAINT CONVERSION DOMAIN EVENT EXTENSION FOREIGN FUNCTION INDEX LANGUAGE"
    b" LARGE MATERIALIZED OPERATOR POLICY PROCEDURE PUBLICATION RULE SCHEMA SEQUENCE SERVER STATISTICS SUBSCRIPTION"
    b" TABLE TEXT TRANSFORM TRIGGER TYPE UNIQUE UNLOGGED VIEW".split()
)
"""What CREATE, ALTER and COMMENT ON may be about, by its first word."""

BEFORE_KIND = frozenset({b"OR", b"REPLACE", b"PROCEDURAL", b"TRUSTED", b"RECURSIVE", b"DEFAULT"})
CLUSTER_KINDS = frozenset({b"ROLE", b"USER", b"GROUP", b"TABLESPACE"})

AMBIGUOUS_ENCODINGS = frozenset({b"SJIS", b"BIG5", b"GBK", b"UHC", b"GB18030", b"JOHAB", b"SHIFT_JIS_2004"})
"""Encodings in which a backslash may be half a character: two readers may disagree about where a string ends."""


def judge(tokens: Tokens, *, is_cluster: bool) -> Verdict:
    """What becomes of a statement; ``is_cluster``: in a file of pg_dumpall, which makes roles as well."""
    word = tokens[0]
    if word in {b"CREATE", b"ALTER"}:
        return _definition(tokens, is_cluster=is_cluster)
    if word in {b"GRANT", b"REVOKE"}:
        return _grant(tokens, is_cluster=is_cluster)
    return _JUDGES.get(word, _nothing)(tokens)


def _nothing(_tokens: Tokens) -> Verdict:
    return "refuse"


def _drop(_tokens: Tokens) -> Verdict:
    return "leave"  # what is restored into is empty: --clean has nothing to remove


def _remark(tokens: Tokens) -> Verdict:
    about = tokens[tokens.index(b"ON") + 1] if b"ON" in tokens[:-1] else b""
    if about in {b"DATABASE", b"ROLE", b"TABLESPACE"} or tokens[2:4] == (b"EXTENSION", b"PLPGSQL"):
        return "leave"
    return "run" if about in {*KINDS, b"COLUMN", b"PROCEDURAL"} else "refuse"


def _update(tokens: Tokens) -> Verdict:
    return "leave" if tokens[1:4] == (b"PG_CATALOG", b".", b"PG_DATABASE") else "refuse"


def _refresh(tokens: Tokens) -> Verdict:
    return "run" if tokens[1:2] == (b"MATERIALIZED",) else "refuse"


def _alone(tokens: Tokens) -> Verdict:
    return "run" if len(tokens) == 1 else "refuse"


def _definition(tokens: Tokens, *, is_cluster: bool) -> Verdict:
    kind = created_kind(tokens)
    if kind == b"DATABASE":
        return "leave"
    if kind in CLUSTER_KINDS and tokens[1:3] != (b"USER", b"MAPPING"):
        in_database = kind in {b"ROLE", b"USER"} and tokens[3:5] == (b"IN", b"DATABASE")
        return "leave" if is_cluster or in_database else "refuse"
    return _alteration(tokens, kind) if tokens[0] == b"ALTER" else _creation(tokens, kind)


def _creation(tokens: Tokens, kind: bytes) -> Verdict:
    if kind == b"SUBSCRIPTION" and not {b"CONNECT", b"FALSE"} <= set(tokens):
        return "refuse"  # it would begin to replicate
    if (kind == b"SCHEMA" and tokens[2:] == (b"PUBLIC",)) or _is_plpgsql(tokens):
        return "leave"  # every database has them
    if kind in {b"TABLE", b"UNLOGGED"} and b"AS" in top_level(tokens):
        return "refuse"  # a query
    return "run" if kind in KINDS or kind == b"USER" else "refuse"


def _alteration(tokens: Tokens, kind: bytes) -> Verdict:
    if kind == b"EXTENSION" and b"UPDATE" in tokens:
        return "refuse"
    if kind == b"DEFAULT":
        return "run" if tokens[2] == b"PRIVILEGES" else "refuse"
    if b"DROP" in tokens and not {b"ADD", b"SET", b"AS"} & set(tokens):
        return "leave"  # of --clean
    return "run" if kind in KINDS or kind == b"USER" else "refuse"


def top_level(tokens: Tokens) -> Iterator[bytes]:
    """The tokens that are in no parentheses."""
    depth = 0
    for token in tokens:
        depth -= token == b")"
        if not depth:
            yield token
        depth += token == b"("


def _is_plpgsql(tokens: Tokens) -> bool:
    name = tokens[5:6] if tokens[2:5] == (b"IF", b"NOT", b"EXISTS") else tokens[2:3]
    return tokens[1] == b"EXTENSION" and tuple(name) == (b"PLPGSQL",)


def created_kind(tokens: Tokens) -> bytes:
    """The first word of what a CREATE or ALTER is about, such as TABLE, FOREIGN or MATERIALIZED."""
    rest = tokens[1:] if tokens[:2] in {(b"ALTER", b"DEFAULT"), (b"ALTER", b"SYSTEM")} else _after(tokens, BEFORE_KIND)
    return rest[0] if rest else b""


def _after(tokens: Tokens, words: frozenset[bytes]) -> Tokens:
    start = 1
    while start < len(tokens) and tokens[start] in words:
        start += 1
    return tokens[start:]


def _grant(tokens: Tokens, *, is_cluster: bool) -> Verdict:
    if b"ON" not in tokens:
        return "leave" if is_cluster else "refuse"
    about = tokens[tokens.index(b"ON") + 1 :][:1]
    return "leave" if about and about[0] in {b"DATABASE", b"TABLESPACE", b"PARAMETER"} else "run"


def _set(tokens: Tokens) -> Verdict:
    if tokens[1:3] == (b"SESSION", b"AUTHORIZATION"):
        return "run"
    if len(tokens) < 4 or tokens[2] != b"=":
        return "refuse"
    if tokens[1] in LEFT_SETTINGS:
        return "leave"
    return "run" if tokens[1] in SETTINGS else "refuse"


def _reset(tokens: Tokens) -> Verdict:
    return "run" if tokens[1:] == (b"SESSION", b"AUTHORIZATION") else "refuse"


def _select(tokens: Tokens) -> Verdict:
    """A function of the catalog with constants: anything else would be code."""
    if b"LO_UNLINK" in tokens:
        return "leave"
    named = tokens[1:3] == (b"PG_CATALOG", b".") and tokens[4:5] == (b"(",)
    if not named or tokens[3] not in FUNCTIONS or tokens[-1] != b")":
        return "refuse"
    if tokens[3] == b"SET_CONFIG" and tokens[5] != b"'search_path'":
        return "refuse"
    return "run" if _are_constants(tokens[5:-1]) else "refuse"


def _are_constants(tokens: Tokens) -> bool:
    before = b""
    for token in tokens:
        if token in {b"(", b")", b";"}:
            return False
        if token[:1].isalpha() and not _is_string(token) and token not in CONSTANTS | CAST_WORDS and before != b"::":
            return False
        before = token
    return True


def _is_string(token: bytes) -> bool:
    return token.endswith(b"'")


def _insert(tokens: Tokens) -> Verdict:
    """Rows of constants."""
    names, rest = read_names(tokens, 2)
    if rest == (b"DEFAULT", b"VALUES"):
        return "run"
    if rest[:1] == (b"(",) and b")" in rest:
        rest = rest[rest.index(b")") + 1 :]
    if rest[:1] == (b"OVERRIDING",):
        rest = rest[3:]
    if tokens[1:2] != (b"INTO",) or not names or rest[:1] != (b"VALUES",):
        return "refuse"
    return "run" if all(_is_of_row(token) for token in rest[1:]) else "refuse"


def _is_of_row(token: bytes) -> bool:
    if token[:1] in {b'"', b"$"}:
        return False
    return not token[:1].isalpha() or _is_string(token) or token in _IN_ROWS


_IN_ROWS = CONSTANTS | {b"ON", b"CONFLICT", b"DO", b"NOTHING"}


def inserted_rows(tokens: Tokens) -> int | None:
    """How many rows an INSERT has; ``None`` where some may be there already (ON CONFLICT DO NOTHING)."""
    if tokens[-2:] == (b"DEFAULT", b"VALUES"):
        return 1
    if tokens[-1] == b"NOTHING":
        return None
    return tokens[tokens.index(b"VALUES") + 1 :].count(b"(")


def _copy(tokens: Tokens) -> Verdict:
    names, rest = read_names(tokens, 1)
    if rest[:1] == (b"(",):
        rest = rest[rest.index(b")") + 1 :] if b")" in rest else ()
    return "run" if names and rest == (b"FROM", b"STDIN") else "refuse"


def read_names(tokens: Tokens, start: int) -> tuple[tuple[bytes, ...], Tokens]:
    """A name with what qualifies it, as PostgreSQL has it, and the tokens behind it."""
    names = []
    while start < len(tokens) and _NAME.fullmatch(tokens[start]):
        names.append(unquoted(tokens[start]))
        start += 1
        if tokens[start : start + 1] != (b".",):
            break
        start += 1
    return tuple(names), tokens[start:]


_NAME = re.compile(rb'[A-Z_\x80-\xff].*|".*"', re.DOTALL)


def unquoted(token: bytes) -> bytes:
    return token[1:-1].replace(b'""', b'"') if token.startswith(b'"') else token.lower()


def named_roles(tokens: Tokens) -> Iterator[bytes]:
    """The roles that a GRANT, REVOKE, policy, default privilege or mapping names; PUBLIC is none."""
    for position, token in enumerate(tokens):
        before = tokens[position - 1] if position else b""
        if token == b"PUBLIC" or not _NAME.fullmatch(token):
            continue
        if before in {b"TO", b"FROM", b"ROLE"} or (before == b"," and _in_role_list(tokens, position)):
            yield unquoted(token)


def _in_role_list(tokens: Tokens, position: int) -> bool:
    while position >= 2 and tokens[position - 1] == b",":
        position -= 2
    return position > 0 and tokens[position - 1] in {b"TO", b"FROM"}


_JUDGES: dict[bytes, Callable[[Tokens], Verdict]] = {
    b"COMMENT": _remark,
    b"SECURITY": _remark,
    b"UPDATE": _update,
    b"DROP": _drop,
    b"SET": _set,
    b"SELECT": _select,
    b"INSERT": _insert,
    b"COPY": _copy,
    b"RESET": _reset,
    b"REFRESH": _refresh,
    b"BEGIN": _alone,
    b"COMMIT": _alone,
}
