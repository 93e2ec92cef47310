r"""SQL as psql reads it, cut into statements, psql's own commands, comments, and the rows between COPY and ``\.``.

Pure, and fed in pieces that end anywhere. A cut must never be where psql would see none: what is judged by one reading
and run by another is judged by nobody.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from opsctl.errors import BackupDamaged, Refused

_WORD = rb"[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*"
_SPACE = re.compile(rb"[ \t\r\n\f\v]+")
_TOKEN = re.compile(
    rb"""(?P<comment>--[^\n]*)
       | (?P<block>/\*)
       | (?P<escaped>[eE]'(?:[^'\\]|''|\\.)*+')
       | (?P<string>(?:[bBxX]|[uU]&)?'(?:[^']|'')*+')
       | (?P<name>(?:[uU]&)?"(?:[^"]|"")*+")
       | (?P<dollar>\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$)
       | (?P<word>%b)
       | (?P<number>\.?[0-9][A-Za-z0-9_.$\x80-\xff]*)
       | (?P<mark>::|.)"""
    % _WORD,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED_REST = re.compile(rb"(?:[^'\\]|''|\\.)*+'", re.DOTALL)
_TAG = re.compile(rb"[A-Za-z0-9_\x80-\xff]*")
_BEHIND_COPY = re.compile(rb"[ \t]*\r?\n")
_BLOCK_MARK = re.compile(rb"/\*|\*/")
_COPY_END = re.compile(rb"\n\\\.\r?\n")
_LONGEST_COPY_END = len(b"\n\\.\r\n")
_BEHIND = 2
"""So much has to be there behind a token to be sure of its end: a doubled quote, ``U&'``, the line break after COPY."""

_PLAIN_NAME = rb'(?:[a-z_][a-z0-9_$]*|"(?:[^"]|"")*+")'
_CONSTANT = rb"(?:'(?:[^']|'')*+'|-?[0-9][0-9.e+-]*|NULL|true|false|DEFAULT|B'[01]*')"
_PLAIN_INSERT = re.compile(
    rb"\s*INSERT INTO (%b(?:\.%b)?) (?:\(%b(?:, %b)*+\) )?(?:OVERRIDING SYSTEM VALUE )?VALUES \(%b(?:, %b)*+\);\n"
    % (*[_PLAIN_NAME] * 4, *[_CONSTANT] * 2)
)
"""One row as pg_dump --inserts writes it: to be read token by token, there are too many."""

Kind = Literal["statement", "command", "comment", "rows", "inserts"]


@dataclass(frozen=True)
class Piece:
    """A piece of a script. Every byte of it is in one of them.

    ``tokens`` are a statement's, without comments and its semicolon; words that are no strings or quoted names in upper
    case. ``command``: one of psql's own, beginning with a backslash; of it, and of a comment, ``is_last``
    says that the script ends in that line.
    ``rows``: whole lines of COPY data; ``count`` says how many, and ``text`` ends with the closing line if ``is_last``.
    ``inserts``: one row each, all of one table, whose name is the one token.
    """

    kind: Kind
    text: bytes
    line: int
    tokens: tuple[bytes, ...] = ()
    count: int = 0
    is_last: bool = False


CUT_HINT = "Nothing was changed. Is there another copy of it, or an older dump?"
REFUSED_HINT = "pg_dump does not write that. Look at the line; what you trust, you can run yourself with psql."


def refused(line: int, what: str) -> Refused:
    """The error for what no dump of pg_dump holds."""
    return Refused(f"Line {line} of the dump is {what}.", hint=REFUSED_HINT)


class Lexer:
    """:meth:`feed` it the script, then :meth:`end`; both give the pieces that are complete.

    ``escapes`` says whether a backslash escapes in every string (standard_conforming_strings = off); whoever runs the
    script sets it as the script does. ``begin_copy`` has to be called when a statement was a COPY FROM stdin, before
    the next piece is asked for. Raises Refused for what no dump holds, BackupDamaged for one that is cut.
    """

    def __init__(self) -> None:
        self.escapes = False
        self.line = 1
        self._buffer = b""
        self._at = 0
        self._wanted = 0
        self._is_final = False
        self._in_rows = False
        self._is_first = True

    def begin_copy(self) -> None:
        """The next bytes are rows. Raises Refused unless they begin on a line of their own."""
        match = _BEHIND_COPY.match(self._buffer, self._at)
        if match is None and not self._buffer[self._at :].strip():
            raise BackupDamaged(
                f"The dump ends before the rows of a table, in line {self.line}: it is cut.", hint=CUT_HINT
            )
        if match is None:
            raise refused(self.line, "a COPY FROM stdin with something behind it")
        self._at = match.end() - 1  # the line break before the first row
        self._in_rows = True

    def feed(self, data: bytes) -> Iterator[Piece]:
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        if self._is_first and len(self._buffer) >= 3:
            self._is_first = False
            self._at = 3 if self._buffer.startswith(b"\xef\xbb\xbf") else 0
        if len(self._buffer) >= self._wanted:
            yield from self._pieces()
            # A statement that is not all here is read anew from its beginning: at twice the size, not at every piece.
            self._wanted = 0 if self._in_rows else 2 * (len(self._buffer) - self._at)

    def end(self) -> Iterator[Piece]:
        """The rest. Raises BackupDamaged when that is no whole statement."""
        self._is_final = True
        yield from self._pieces()
        if self._in_rows or self._buffer[self._at :].strip():
            where = "the rows of a table" if self._in_rows else "a statement"
            raise BackupDamaged(f"The dump ends inside {where}, in line {self.line}: it is cut.", hint=CUT_HINT)

    def _pieces(self) -> Iterator[Piece]:
        while (piece := self._rows() if self._in_rows else self._next()) is not None:
            yield piece

    def _rows(self) -> Piece | None:
        buffer, start = self._buffer, self._at
        end = _COPY_END.search(buffer, start)
        if end is not None:
            count = buffer.count(b"\n", start + 1, end.start() + 1)
            stop = end.end()
            self._in_rows = False
        else:
            stop = buffer.rfind(b"\n", start + 1, max(start + 1, len(buffer) - _LONGEST_COPY_END))
            if stop <= start:
                return None
            count = buffer.count(b"\n", start + 1, stop + 1)
        first = self.line
        self.line += buffer.count(b"\n", start, stop)
        self._at = stop
        return Piece("rows", buffer[start:stop], first, count=count, is_last=end is not None)

    def _next(self) -> Piece | None:
        """The next comment, command or statement; ``None`` when it is not all here."""
        if not self.escapes and (found := _PLAIN_INSERT.match(self._buffer, self._at)):
            return self._inserts(found)
        space = _SPACE.match(self._buffer, self._at)
        start = space.end() if space else self._at
        position, depth, blocks = start, 0, 0
        tokens: list[bytes] = []
        words: list[bytes] = []
        while True:
            token = self._token(position)
            if token is None:
                return None
            kind, end = token
            text = self._buffer[position:end]
            if kind == "comment":
                if not tokens:
                    return replace(self._cut("comment", end), is_last=end == len(self._buffer))
            elif text == b"\\":
                if tokens:
                    raise refused(self._line_of(position), "a command of psql inside a statement")
                stop = self._buffer.find(b"\n", end)
                if stop < 0 and not self._is_final:
                    return None
                return replace(self._cut("command", len(self._buffer) if stop < 0 else stop), is_last=stop < 0)
            elif text == b";" and not depth and not blocks:
                return self._cut("statement", end, tokens)
            else:
                if kind in {"string", "escaped"} and tokens and tokens[-1][:2] in {b"e'", b"E'"}:
                    raise refused(self._line_of(position), "a string in two pieces")
                tokens.append(text.upper() if kind == "word" else text)
                depth = max(0, depth + (text == b"(") - (text == b")"))
                if kind == "word":
                    words.append(tokens[-1])
                    blocks += 0 if depth else _step(tokens[-1], blocks, words)
            after = _SPACE.match(self._buffer, end)
            position = after.end() if after else end

    def _inserts(self, found: re.Match[bytes]) -> Piece:
        buffer, start, table, count = self._buffer, self._at, found[1], 0
        following: re.Match[bytes] | None = found
        while following is not None and following[1] == table:
            count, self._at = count + 1, following.end()
            following = _PLAIN_INSERT.match(buffer, self._at)
        text, first = buffer[start : self._at], self.line
        self.line += text.count(b"\n")
        return Piece("inserts", text, first, (table,), count)

    def _cut(self, kind: Kind, end: int, tokens: list[bytes] | None = None) -> Piece:
        text = self._buffer[self._at : end]
        blank = len(text) - len(text.lstrip())
        first = self.line + text.count(b"\n", 0, blank)
        self.line += text.count(b"\n")
        self._at = end
        return Piece(kind, text, first, tuple(tokens or ()))

    def _line_of(self, position: int) -> int:
        return self.line + self._buffer.count(b"\n", self._at, position)

    def _token(self, position: int) -> tuple[str, int] | None:
        """Kind and end of the token at ``position``; ``None`` when it is not all here."""
        buffer = self._buffer
        match = _TOKEN.match(buffer, position)
        if match is None:
            return None
        kind, end = str(match.lastgroup), match.end()
        if kind == "string" and self.escapes and match[0].startswith(b"'"):
            kind, end = "escaped", _end_of_escaped(buffer, position + 1)
        elif kind == "block":
            kind, end = "comment", _end_of_block(buffer, end)
        elif kind == "dollar":
            found = buffer.find(match[0], end)
            end = -1 if found < 0 else found + len(match[0])
        elif match[0] in {b"'", b'"'} or _begins_string(buffer, match):
            end = -1  # its other end is not here
        if end < 0 or (not self._is_final and end + _BEHIND > len(buffer)):
            return None
        if match[0] == b"$" and not self._is_final and _TAG.fullmatch(buffer, end) is not None:
            return None
        return kind, end


def _begins_string(buffer: bytes, match: re.Match[bytes]) -> bool:
    """Whether a word is the beginning of a string that is not all here: ``E'…``, ``U&'…``."""
    word, rest = match[0].upper(), buffer[match.end() : match.end() + 2]
    if word == b"U":
        return rest in {b"&'", b'&"'}
    return word in {b"E", b"B", b"X"} and rest[:1] == b"'"


def _end_of_escaped(buffer: bytes, start: int) -> int:
    match = _ESCAPED_REST.match(buffer, start)
    return match.end() if match else -1


def _end_of_block(buffer: bytes, start: int) -> int:
    """The end of a comment that may hold others."""
    depth = 1
    for mark in _BLOCK_MARK.finditer(buffer, start):
        depth += 1 if mark[0] == b"/*" else -1
        if not depth:
            return mark.end()
    return -1


def _may_hold_blocks(words: list[bytes]) -> bool:
    """Whether BEGIN … END keep semicolons together, by psql's own rule: it looks at first letters of words."""
    letters = b"".join(word[:1] for word in words[:4])
    return letters[:2] in {b"CF", b"CP"} or letters in {b"CORF", b"CORP"}


def _step(word: bytes, blocks: int, words: list[bytes]) -> int:
    """How much deeper a word leads into BEGIN … END."""
    if not _may_hold_blocks(words):
        return 0
    if word == b"BEGIN" or (word == b"CASE" and blocks):
        return 1
    return -1 if word == b"END" and blocks else 0
