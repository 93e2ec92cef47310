"""An archive's table of contents: what it holds, and what each object needs.

pg_restore lists the same, in words that cannot be told apart where a name has a space in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from opsctl.dumps.archive import ArchiveReader, skip_head
from opsctl.errors import BackupDamaged
from opsctl.postgres.encodings import read_name

_HAS_TABLE_AM = (1, 14)
_HAS_RELKIND = (1, 16)
_CUSTOM = 1


@dataclass(frozen=True)
class Entry:
    """One object, or the rows of one. ``kind`` is pg_dump's word for it, ``needs`` are ids of other entries."""

    id: int
    kind: str
    schema: str
    name: str
    owner: str
    needs: tuple[int, ...]
    command: str = ""


def contents_of(chunks: Iterable[bytes], encoding: str, *, is_tar: bool) -> list[Entry]:
    """The contents of an archive, from its beginning; no more is read than they take. Raises BackupDamaged."""
    data, tried = bytearray(), 0
    for chunk in chunks:
        data += chunk
        if len(data) >= 2 * tried:  # read anew at twice the size, not at every piece
            tried = len(data)
            found = read_contents(_content(data, is_tar=is_tar), encoding)
            if found is not None:
                return found
    found = read_contents(_content(data, is_tar=is_tar), encoding)
    if found is None:
        raise BackupDamaged("The archive ends inside its table of contents.", hint="`opsctl verify` examines it.")
    return found


def _content(data: bytearray, *, is_tar: bool) -> bytes:
    """Without the head of the tar, whose first file they are."""
    return bytes(data[512:]) if is_tar else bytes(data)


def read_contents(data: bytes, encoding: str = "UTF8") -> list[Entry] | None:
    """Every entry of an archive that begins with ``data``; ``None`` when its contents go on behind that."""
    reader = skip_head(data)
    if reader is None:
        return None
    try:
        return [_entry(reader, encoding) for _ in range(reader.number())]
    except IndexError:
        return None


def _entry(reader: ArchiveReader, encoding: str) -> Entry:
    def text() -> str:
        return read_name(reader.raw() or b"", encoding)

    identifier = reader.number()
    reader.number()  # whether there is data
    for _ in range(2):  # its oids
        reader.raw()
    name, kind = text(), text()
    reader.number()  # the section
    command = text()
    for _ in range(2):  # how it is dropped, and its COPY
        reader.raw()
    schema = text()
    reader.raw()  # the tablespace
    if reader.version >= _HAS_TABLE_AM:
        reader.raw()
    if reader.version >= _HAS_RELKIND:
        reader.number()
    owner = text()
    reader.raw()  # whether it has oids
    needs = []
    while (need := reader.raw()) is not None:
        needs.append(int(need))
    if reader.format == _CUSTOM:
        reader.at += 1 + reader.offset_bytes
        reader.require()
    else:
        reader.raw()  # its file
    return Entry(identifier, kind, schema, name, owner, tuple(needs), command)
