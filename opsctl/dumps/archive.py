"""The head of pg_dump's archives: who wrote it, of what, and when. pg_restore tells the same, once it is found.

The same bytes begin a file in the custom format, and ``toc.dat`` of the tar and directory formats.
"""

from dataclasses import dataclass
from datetime import datetime

MAGIC = b"PGDMP"
HEAD_BYTES = 1 << 16
_COMPRESSION_AT = 11
_COMPRESSION_IS_BYTE = (1, 15)
"""From this version of the format on the compression is one byte instead of a number."""


@dataclass(frozen=True)
class ArchiveHead:
    """``created_at`` is the wall clock of the host that dumped; its zone is not told."""

    created_at: datetime | None
    database: str
    server_version: str
    pg_dump_version: str

    @property
    def pg_dump_major(self) -> int:
        digits = self.pg_dump_version.partition(".")[0]
        return int(digits) if digits.isdecimal() else 0


def read_head(data: bytes) -> ArchiveHead | None:
    """The head of an archive; ``None`` when the bytes are none, or too few."""
    reader = _reader(data)
    return None if reader is None else _head(reader)


def skip_head(data: bytes) -> "ArchiveReader | None":
    """What comes behind the head: the number of entries, then the entries. ``None`` when the bytes are too few."""
    reader = _reader(data)
    return None if reader is None or _head(reader) is None else reader


def _reader(data: bytes) -> "ArchiveReader | None":
    return ArchiveReader(data) if data.startswith(MAGIC) and len(data) > _COMPRESSION_AT else None


def _head(reader: "ArchiveReader") -> ArchiveHead | None:
    try:
        if reader.version >= _COMPRESSION_IS_BYTE:
            reader.at += 1
        else:
            reader.number()
        second, minute, hour, day, month, year, _ = (reader.number() for _ in range(7))
        database, server, pg_dump = ((reader.raw() or b"").decode("utf-8", "replace") for _ in range(3))
    except IndexError:
        return None
    try:
        created_at = datetime(year + 1900, month + 1, day, hour, minute, second)  # noqa: DTZ001 - no zone is told
    except ValueError:
        created_at = None
    return ArchiveHead(created_at, database, *(each.partition(" ")[0] for each in (server, pg_dump)))


def uncompressed(data: bytes) -> bytes:
    """The beginning of a folder's contents, saying that its files are not compressed: a tar's never are."""
    at = _COMPRESSION_AT
    length = 1 if (data[5], data[6]) >= _COMPRESSION_IS_BYTE else 1 + data[8]
    return data[:at] + bytes(length) + data[at + length :]


class ArchiveReader:
    """Numbers and strings as pg_dump writes them, from where the compression is told on.

    All raise IndexError where the bytes end.
    """

    def __init__(self, data: bytes) -> None:
        self.version = (data[5], data[6])
        self.offset_bytes, self.format = data[9], data[10]
        self.at = _COMPRESSION_AT
        self._int_bytes = data[8]
        self._data = data

    def number(self) -> int:
        """A sign, then the bytes, lowest first."""
        start, self.at = self.at, self.at + 1 + self._int_bytes
        self.require()
        value = int.from_bytes(self._data[start + 1 : self.at], "little")
        return -value if self._data[start] else value

    def raw(self) -> bytes | None:
        """A string, or none at all."""
        length = self.number()
        if length < 0:
            return None
        start, self.at = self.at, self.at + length
        self.require()
        return self._data[start : self.at]

    def require(self) -> None:
        if self.at > len(self._data):
            raise IndexError
