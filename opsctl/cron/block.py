"""The marked block of a crontab that is opsctl's: written, found, compared, taken out. Pure; everything else stays.

A block belongs to one configuration file. Its first line has a digest of its lines, so that an edit is noticed, and
the time since when they are there, so that nobody misses a run that was never due.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime

from opsctl.errors import Refused
from opsctl.times import format_time

BEGIN = re.compile(
    r"# opsctl begin: (?P<source>.+) \(digest (?P<digest>[0-9a-f]{16})(, installed (?P<installed>[0-9TZ:.+-]+))?\)"
)
END = "# opsctl end: {source}"


@dataclass(frozen=True)
class Block:
    """The lines between the marks, and where they are: the first and the last line with a mark, counted from 0."""

    lines: tuple[str, ...]
    installed_at: datetime | None
    is_edited: bool
    first: int
    last: int


def written(source: str, lines: list[str], *, installed_at: datetime | None = None) -> str:
    """A block as it stands in a crontab."""
    since = f", installed {format_time(installed_at)}" if installed_at else ""
    begin = f"# opsctl begin: {source} (digest {digest(lines)}{since})"
    return "".join(f"{line}\n" for line in (begin, *lines, END.format(source=source)))


def digest(lines: list[str] | tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def find(text: str, source: str) -> Block | None:
    """The block of a configuration. Raises Refused where its end cannot be told, or there are two."""
    lines, found = split(text), []
    for first, line in enumerate(lines):
        begin = BEGIN.fullmatch(line.rstrip("\r\n"))
        if begin and begin["source"] == source:
            found.append(_block(lines, first, begin, source))
    if len(found) > 1:
        raise Refused(
            f"The crontab has {len(found)} blocks of {source}.", hint="Take all but one out by hand, with their marks."
        )
    return found[0] if found else None


def _block(lines: list[str], first: int, begin: re.Match[str], source: str) -> Block:
    end = END.format(source=source)
    last = next((n for n, line in enumerate(lines[first:], start=first) if line.rstrip("\r\n") == end), None)
    between = lines[first + 1 : last]
    if last is None or any(BEGIN.fullmatch(line.rstrip("\r\n")) for line in between):
        raise Refused(
            f'The block of {source} has lost its last line, "{end}": nobody can tell where it ends.',
            hint="Put that line back after the last line that is opsctl's.",
        )
    inside = tuple(line.rstrip("\n") for line in between)
    installed = datetime.fromisoformat(begin["installed"]) if begin["installed"] else None
    return Block(inside, installed, digest(inside) != begin["digest"], first, last)


def with_block(text: str, source: str, block: str) -> str:
    """The text with that block in the place of the one of the same configuration, else at its end."""
    old, lines = find(text, source), split(text)
    if old is None:
        return text + ("" if not text or text.endswith("\n") else "\n") + block
    return "".join([*lines[: old.first], block, *lines[old.last + 1 :]])


def without_block(text: str, source: str) -> str:
    old, lines = find(text, source), split(text)
    return text if old is None else "".join([*lines[: old.first], *lines[old.last + 1 :]])


def split(text: str) -> list[str]:
    """Lines with their ends; a form feed or a Unicode separator ends none."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)
