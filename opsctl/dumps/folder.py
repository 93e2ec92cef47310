"""pg_dump's directory and tar formats as one stream: a tar that pg_restore reads from a pipe.

That is what it is in a repository, too. Its files are in the order of the contents, and not compressed.
"""

import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from opsctl.dumps.archive import uncompressed
from opsctl.dumps.lexer import CUT_HINT
from opsctl.errors import BackupDamaged
from opsctl.stream import READ_BYTES, NotUnpacked, Packing, unpacked

CONTENTS = "toc.dat"
SCRIPT = "restore.sql"
"""A script that pg_dump --format=tar adds for people, and pg_restore does not read."""

_ENTRY = re.compile(rb"^(\d+); \d+ \d+ (TABLE DATA|BLOBS) ", re.MULTILINE)
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_PACKINGS: dict[str, Packing] = {"": "none", ".gz": "gzip", ".zst": "zstd frames"}


def packed(folder: Path, list_contents: Callable[[], bytes]) -> Iterator[bytes]:
    """A folder of pg_dump's. ``list_contents`` gives what pg_restore lists of it. Raises BackupDamaged."""
    yield from _member(folder, CONTENTS)
    for dump_id, kind in _ENTRY.findall(list_contents()):
        number = dump_id.decode()
        if kind == b"TABLE DATA":
            yield from _member(folder, f"{number}.dat")
            continue
        listed = f"blobs_{number}.toc" if (folder / f"blobs_{number}.toc").exists() else "blobs.toc"
        for line in b"".join(_content(folder, listed)).decode("ascii", "replace").splitlines():
            name = line.partition(" ")[2]
            if re.fullmatch(r"blob_\d+\.dat", name) is None:
                raise _damaged(f"{listed} names a file {name!r}")
            yield from _member(folder, name)
        yield from _member(folder, listed)
    yield _END


def _member(folder: Path, name: str) -> Iterator[bytes]:
    """One file in the stream. A compressed one is read twice: its size comes first."""
    about = tarfile.TarInfo(name)
    about.size, about.mode = sum(map(len, _content(folder, name))), 0o600
    yield about.tobuf(tarfile.GNU_FORMAT)
    left = about.size
    for piece in _content(folder, name):
        is_first = left == about.size
        left -= len(piece)
        yield uncompressed(piece) if is_first and name == CONTENTS else piece
    if left:
        raise _damaged(f"{name} changed while it was read")
    yield bytes(-about.size % _BLOCK)


def _content(folder: Path, name: str) -> Iterator[bytes]:
    for suffix, packing in _PACKINGS.items():
        try:
            with (folder / f"{name}{suffix}").open("rb") as file:
                yield from unpacked(iter(lambda opened=file: opened.read(READ_BYTES), b""), packing)  # type: ignore[misc]
                return
        except FileNotFoundError:
            continue
        except NotUnpacked as error:
            raise _damaged(f"{name}{suffix}: {error}") from error
    if (folder / f"{name}.lz4").exists():
        raise _damaged("its files are compressed with lz4; `pg_restore --file=dump.sql FOLDER` makes plain SQL of it")
    raise _damaged(f"{name} is missing")


def without_script(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """A tar of pg_dump without its script, so that it holds nothing that is not restored. Raises BackupDamaged."""
    stream = _Stream(chunks)
    while any(block := stream.take(_BLOCK)):
        try:
            about = tarfile.TarInfo.frombuf(block, "ascii", "replace")
        except tarfile.TarError as error:
            raise _damaged(f"a header in it is broken ({error})") from None
        length = about.size + -about.size % _BLOCK
        if about.name != SCRIPT:
            yield block
        for piece in stream.pieces(length):
            if about.name != SCRIPT:
                yield piece
    if any(stream.take(_BLOCK)):  # a tar ends with two empty blocks
        raise _damaged("it does not end as a tar does")
    yield _END
    stream.drain()


class _Stream:
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def take(self, size: int) -> bytes:
        whole = io.BytesIO()
        for piece in self.pieces(size):
            whole.write(piece)
        return whole.getvalue()

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes. Raises BackupDamaged when there are fewer."""
        while size:
            self._rest = self._rest or next(self._chunks, b"")
            if not self._rest:
                raise _damaged("it ends too early: it is cut")
            piece, self._rest = self._rest[:size], self._rest[size:]
            size -= len(piece)
            yield piece

    def drain(self) -> None:
        for _rest in self._chunks:
            pass


def _damaged(how: str) -> BackupDamaged:
    return BackupDamaged(f"The dump is damaged: {how}.", hint=CUT_HINT)
