"""A dump that somebody made without opsctl, as it lies on this host: what kind it is, and its bytes.

What it is, its content says; names are anybody's guess.
"""

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal, Self, cast

from opsctl.dumps.archive import HEAD_BYTES, MAGIC, ArchiveHead, read_head
from opsctl.dumps.folder import CONTENTS, packed, without_script
from opsctl.dumps.lexer import CUT_HINT
from opsctl.errors import BackupDamaged, DumpFailed, NoSuchBackup, OpsctlError
from opsctl.manifest import Manifest, StoredFile
from opsctl.postgres.binaries import Binaries
from opsctl.postgres.tools import Tools
from opsctl.stream import READ_BYTES, NotUnpacked, Packing, unpacked

Kind = Literal["plain", "custom", "directory"]

SUFFIXES = (".sql", ".dump", ".backup", ".custom", ".tar", ".gz", ".zst", ".dmp", ".pgdump")
"""What names of dumps end with: an argument like that is meant as a file, even if there is none."""

_PACKED: dict[bytes, Packing] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd frames"}
_FOREIGN = {
    b"BZh": "compressed with bzip2: unpack it first (`bunzip2 -k`)",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it first (`unxz -k`)",
    b"\x04\x22\x4d\x18": "compressed with lz4: unpack it first (`unlz4`)",
    b"PK\x03\x04": "a ZIP: unpack it first (`unzip`)",
    b"age-encryption.org/": "encrypted with age: decrypt it first (`age --decrypt`)",
    b"-----BEGIN AGE": "encrypted with age: decrypt it first (`age --decrypt`)",
    b"-----BEGIN PGP": "encrypted with PGP: decrypt it first (`gpg --decrypt`)",
    b"\xff\xfe": "in UTF-16, as PowerShell's > writes: dump with `pg_dump --file` instead",
    b"SQLite format 3": "a database of SQLite",
}
_BEGINNINGS = (b"--\n-- PostgreSQL database ", b"--\r\n-- PostgreSQL database ")


@dataclass(frozen=True)
class DumpFile:
    """A file or folder that is a dump by its content. To a restore it is a repository with this one dump in it."""

    path: Path
    kind: Kind
    compression: Packing
    head: ArchiveHead | None
    tools: Tools

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def size_bytes(self) -> int:
        """Its size on disk."""
        paths = self.path.iterdir() if self.path.is_dir() else [self.path]
        return sum(each.stat().st_size for each in paths)

    @property
    def modified_at(self) -> datetime:
        changed = self.path / CONTENTS if self.path.is_dir() else self.path
        return datetime.fromtimestamp(changed.stat().st_mtime, UTC)

    @property
    def packing(self) -> Packing:
        """How what :meth:`open` gives is compressed."""
        return "none" if self.kind == "directory" else self.compression

    @property
    def binaries(self) -> Binaries:
        """The pg_restore that reads the archive. Raises ConfigurationError."""
        major = self.head.pg_dump_major if self.head else 0
        return self.tools.for_restore(archive_major=major, server_major=major)

    def open(self, _manifest: Manifest | None = None, _file: StoredFile | None = None) -> BinaryIO:
        """Its bytes as they lie there; of a folder, and of a tar, the stream that pg_restore reads."""
        return cast("BinaryIO", _Reading(self._pieces()))

    def reread(self, manifest: Manifest) -> tuple[bytes, Manifest]:
        """What is known of it, signed by nobody."""
        return manifest.to_json(), manifest

    def _pieces(self) -> Iterator[bytes]:
        try:
            if self.path.is_dir():
                yield from packed(self.path, self._contents)
                return
            with self.path.open("rb") as file:
                pieces = iter(lambda: file.read(READ_BYTES), b"")
                yield from without_script(unpacked(pieces, self.compression)) if self.kind == "directory" else pieces
        except NotUnpacked as error:
            raise BackupDamaged(f"{self.path} is damaged: {error}.", hint=CUT_HINT) from error
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _contents(self) -> bytes:
        try:
            return self.tools.list_folder(self.binaries, self.path)
        except DumpFailed as error:
            raise BackupDamaged(f"{self.path} is damaged: {error.message}", hint=CUT_HINT) from error


class _Reading:
    """Pieces as a file that is read once."""

    def __init__(self, pieces: Generator[bytes, None, None] | Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, _size: int = -1) -> bytes:
        return next((piece for piece in self._pieces if piece), b"")  # an empty one would be the end

    def close(self) -> None:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def is_meant_as_file(text: str) -> bool:
    """Whether an argument names a file or folder, rather than a backup."""
    path = Path(text)
    if text == "latest" or text.startswith("latest:"):
        return False
    return os.sep in text or text.endswith(SUFFIXES) or path.is_file() or (path / CONTENTS).is_file()


def recognise(path: Path, tools: Tools) -> DumpFile:
    """What kind of a dump a file is. Raises NoSuchBackup, and BackupDamaged when it is none or its beginning is cut."""
    try:
        if path.is_dir():
            return _folder(path, tools)
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise NoSuchBackup(f"There is no file {path}.", hint="`opsctl list` shows the backups there are.") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if not head:
        raise BackupDamaged(f"{path} is empty.", hint=CUT_HINT)
    compression: Packing = next((packing for magic, packing in _PACKED.items() if head.startswith(magic)), "none")
    inner = _beginning(head, compression, path)
    for magic, what in _FOREIGN.items():
        if inner.startswith(magic):
            raise BackupDamaged(f"{path} is {what}.", hint="opsctl reads what pg_dump writes, also with gzip or zstd.")
    if inner.startswith(MAGIC):
        archive = read_head(inner)
        if archive is None:
            raise BackupDamaged(f"{path} is damaged: its beginning is not whole.", hint=CUT_HINT)
        if path.name == CONTENTS:
            raise BackupDamaged(f"{path} is one file of a folder.", hint=f"Name the folder: {path.parent}.")
        return DumpFile(path, "custom", compression, archive, tools)
    if inner[257:262] == b"ustar":
        return _tar(path, inner, compression, tools)
    if inner.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_BEGINNINGS):
        return DumpFile(path, "plain", compression, None, tools)
    raise BackupDamaged(
        f"{path} is no dump that pg_dump wrote, or its beginning is damaged.",
        hint="Known are plain SQL, the custom, directory and tar formats, each also with gzip or zstd.",
    )


def _folder(path: Path, tools: Tools) -> DumpFile:
    try:
        with (path / CONTENTS).open("rb") as file:
            head = read_head(file.read(HEAD_BYTES))
    except FileNotFoundError:
        raise BackupDamaged(
            f"{path} is a folder without {CONTENTS}: no dump in pg_dump's directory format.",
            hint="Name the folder that pg_dump --format=directory made, or a file.",
        ) from None
    if head is None:
        raise BackupDamaged(f"{path / CONTENTS} is damaged: its beginning is not whole.", hint=CUT_HINT)
    return DumpFile(path, "directory", "none", head, tools)


def _tar(path: Path, inner: bytes, compression: Packing, tools: Tools) -> DumpFile:
    name = inner[:100].rstrip(b"\0").decode("utf-8", "replace")
    head = read_head(inner[512:]) if name == CONTENTS else None
    if head is None:
        raise BackupDamaged(
            f"{path} is a tar that begins with {name!r}: none that pg_dump wrote, or a damaged one.",
            hint="A folder of pg_dump's that was packed with tar: unpack it, and name the folder.",
        )
    return DumpFile(path, "directory", compression, head, tools)


def _beginning(head: bytes, compression: Packing, path: Path) -> bytes:
    """What a file begins with once it is unpacked."""
    inner = b""
    try:
        for piece in unpacked([head], compression):
            inner += piece
            if len(inner) >= HEAD_BYTES:
                break
    except NotUnpacked as error:
        if not inner:
            raise BackupDamaged(f"{path} is damaged: {error}.", hint=CUT_HINT) from error
    return inner


def _unreadable(path: Path, error: OSError) -> OpsctlError:
    return OpsctlError(f"{path} cannot be read: {error.strerror}.", hint="Does this user have the right to?")
