"""A timeline as bytes: JSON lines, each with the hash of the one before it and its own. Pure: no files, no clock.

The hash covers the very bytes of the line, so no two ways of writing the same JSON are the same to it. Public tools can
check a line: take ``,"hash":"…"`` out of it, and ``sha256sum`` the rest without the line's end.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import accumulate
from typing import Any, Literal, get_args

from opsctl.times import format_time

Kind = Literal[
    "opened",
    "note",
    "step_started",
    "step_finished",
    "step_skipped",
    "confirmed",
    "refused",
    "checks",
    "capture",
    "acknowledged",
    "mitigated",
    "resolved",
    "closed",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

GENESIS = "0" * 64
"""What the first line names as the hash before it."""

HASH = re.compile(rb',"hash":"([0-9a-f]{64})"\}\Z')
OWN_KEYS = frozenset({"seq", "at", "kind", "actor", "torn", "prev", "hash"})


@dataclass(frozen=True)
class Link:
    """Where a chain stands: the number and the hash of its last line."""

    seq: int = 0
    hash: str = GENESIS


@dataclass(frozen=True)
class Event:
    """One line of a timeline. ``torn`` is what it says of an unfinished line before it."""

    seq: int
    at: datetime
    kind: str
    actor: Mapping[str, Any]
    fields: Mapping[str, Any]
    prev: str
    hash: str
    torn: Mapping[str, Any] | None = None

    @property
    def link(self) -> Link:
        return Link(self.seq, self.hash)


@dataclass(frozen=True)
class Problem:
    """What is not as it was written; ``line`` counts from 1, ``None`` is the end or the record of it."""

    line: int | None
    message: str


@dataclass(frozen=True)
class Examined:
    """What a timeline's bytes come to. ``remarks`` are what a crash leaves: said, and no damage."""

    events: tuple[Event, ...]
    problems: tuple[Problem, ...]
    remarks: tuple[Problem, ...]
    torn: bytes = b""
    """An unfinished last line."""

    @property
    def is_intact(self) -> bool:
        return not self.problems

    @property
    def link(self) -> Link:
        return self.events[-1].link if self.events else Link()


@dataclass(frozen=True)
class Head:
    """The record of a timeline's end, kept beside it: without it a shorter timeline would look like a whole one."""

    incident: str
    link: Link
    size_bytes: int

    def to_bytes(self) -> bytes:
        record = {"incident": self.incident, "seq": self.link.seq, "hash": self.link.hash, "bytes": self.size_bytes}
        return json.dumps(record).encode() + b"\n"


def parse_head(data: bytes | None, incident: str) -> Head | None:
    """The record of the end; ``None`` when there is none, or it is not one that was written for this incident."""
    try:
        record = json.loads(data or b"")
        head = Head(record["incident"], Link(record["seq"], record["hash"]), record["bytes"])
        return head if head.to_bytes() == data and head.incident == incident else None
    except (ValueError, KeyError, TypeError):
        return None


def write_line(
    link: Link,
    *,
    at: datetime,
    kind: str,
    actor: Mapping[str, Any],
    fields: Mapping[str, Any],
    torn: bytes = b"",
) -> bytes:
    """The line that follows ``link``; ``torn`` is the unfinished line it comes after."""
    record: dict[str, Any] = {"seq": link.seq + 1, "at": format_time(at), "kind": kind, **fields, "actor": actor}
    if torn:
        record["torn"] = _described(torn)
    record["prev"] = link.hash
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")
    return body[:-1] + f',"hash":"{sha256(body).hexdigest()}"}}\n'.encode()


def _described(torn: bytes) -> dict[str, Any]:
    return {"bytes": len(torn), "sha256": sha256(torn).hexdigest()}


def parse_line(line: bytes) -> Event | None:
    """The event of a line without its end; ``None`` when one of its bytes is not what was written."""
    found = HASH.search(line)
    if found is None or sha256(line[: found.start()] + b"}").hexdigest().encode() != found[1]:
        return None
    try:
        record = json.loads(line)
        return Event(
            seq=record["seq"],
            at=datetime.fromisoformat(record["at"]),
            kind=record["kind"],
            actor=record["actor"],
            fields={key: value for key, value in record.items() if key not in OWN_KEYS},
            prev=record["prev"],
            hash=record["hash"],
            torn=record.get("torn"),
        )
    except (ValueError, KeyError, TypeError):
        return None


def examine(data: bytes, incident: str, head: bytes | None) -> Examined:
    """Read a timeline's bytes and find every place where they are not what was written.

    ``head`` is the record of its end, ``None`` when there is none.
    """
    *lines, torn = data.split(b"\n")
    parsed = [parse_line(line) for line in lines]
    problems, remarks = [], []
    for number in range(len(lines), 0, -1):
        after = parsed[number] if number < len(lines) else None
        if after is not None and after.torn is not None and after.torn == _described(lines[number - 1]):
            parsed[number - 1] = None  # though only its end may have been missing
            remarks.append(Problem(number, "A write was cut off here; the timeline goes on after it."))
        elif parsed[number - 1] is None:
            problems.append(Problem(number, "This line is not what was written."))
    events = tuple(event for event in parsed if event is not None)
    problems += _breaks(parsed, lines, incident)
    link = events[-1].link if events else Link()
    if torn and _may_be_cut_off(torn, link):
        remarks.append(Problem(len(lines) + 1, "The last write was cut off: opsctl was killed, or the disk was full."))
    elif torn:
        problems.append(Problem(len(lines) + 1, "After the last line there is something that is no line."))
    sizes = accumulate(len(line) + 1 for line in lines)
    ends = {event.link: size for event, size in zip(parsed, sizes, strict=True) if event is not None}
    problems += _problems_of_end(ends, incident, head)
    in_order = sorted(problems, key=lambda each: (each.line is None, each.line))
    return Examined(events, tuple(in_order), tuple(reversed(remarks)), torn)


def _breaks(parsed: list[Event | None], lines: list[bytes], incident: str) -> Iterator[Problem]:
    """Where a line does not follow from the one before it: some are missing, or stand elsewhere."""
    link = Link()
    for number, event in enumerate(parsed, 1):
        if event is None:
            continue
        if (event.seq, event.prev) != (link.seq + 1, link.hash):
            told = f"event {event.seq} follows event {link.seq}" if link.seq else f"it begins with event {event.seq}"
            yield Problem(number, f"The chain is broken: {told}, but it was not written after that.")
        if event.torn is not None and (number < 2 or event.torn != _described(lines[number - 2])):
            yield Problem(number, "The cut-off line that this one tells of is missing.")
        if event.seq == 1 and event.fields.get("incident") != incident:
            yield Problem(number, "This is the timeline of another incident.")
        link = event.link


def _may_be_cut_off(torn: bytes, link: Link) -> bool:
    """Whether this is how the next line may have begun."""
    beginning = f'{{"seq":{link.seq + 1},"at":"'.encode()
    return torn.startswith(beginning) or beginning.startswith(torn)


def _problems_of_end(ends: Mapping[Link, int], incident: str, head: bytes | None) -> Iterator[Problem]:
    """Where the events (with the file's size after each) do not reach as far as the record of the end says.

    What comes after it was written when the record itself could not be.
    """
    if head is None:
        yield Problem(None, "The record of its end is missing: whether events were cut off cannot be told.")
        return
    recorded = parse_head(head, incident)
    if recorded is None:
        yield Problem(None, "The record of its end is not what was written.")
        return
    last = max((link.seq for link in ends), default=0)
    if recorded.link.seq > last:
        yield Problem(None, f"Events are missing at its end: there were {recorded.link.seq}, now there are {last}.")
    elif ends.get(recorded.link, 0) != recorded.size_bytes:
        yield Problem(None, f"Event {recorded.link.seq} is not the one that was recorded as the last.")
