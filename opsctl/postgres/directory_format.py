"""pg_dump's directory format, a file per table, as one tar stream; and back into a folder.

Several sessions write it at once. With its files in the order of its contents the stream is what pg_restore takes for
pg_dump's tar format: it reads it from a pipe, like any other archive.
"""

import fcntl
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path

from opsctl.background import in_background
from opsctl.errors import BackupDamaged, DumpFailed
from opsctl.postgres.programs import PIPE_BYTES
from opsctl.postgres.tools import Child

CONTENTS = "toc.dat"
LISTS_BLOBS_PER_ENTRY = 17
"""From this major on each entry of large objects has a list of its own."""

LOOK_AGAIN_SECONDS = 0.05

_ENTRY = re.compile(rb"^(\d+); \d+ \d+ (TABLE DATA|BLOBS) ", re.MULTILINE)
_BLOB = re.compile(r"blob_(\d+)\.dat")
_BLOBS = re.compile(r"blobs(_\d+)?\.toc")
_NAME = re.compile(rf"{re.escape(CONTENTS)}|\d+\.dat|{_BLOB.pattern}|{_BLOBS.pattern}")
_BLOCK = tarfile.BLOCKSIZE


def packed(folder: Path, child: Child, major: int, list_contents: Callable[[], bytes]) -> Iterator[bytes]:
    """The dump that ``child``, pg_dump ``major``, writes into ``folder``, as a tar stream; what has passed is removed.

    A file passes as soon as it is its turn and pg_dump has finished it. ``list_contents`` gives what pg_restore lists
    of the folder. The stream just ends when pg_dump fails. Raises DumpFailed when its files are not what it lists.
    """
    ended = in_background(child.finish)
    if not _is_written(folder / CONTENTS, ended):
        return
    entries = _ENTRY.findall(list_contents())
    yield from _member(folder / CONTENTS)
    for dump_id, kind in entries:
        for path in _files(folder, dump_id.decode(), kind, major, ended):
            if not _is_written(path, ended):
                return
            yield from _member(path)
    if ended.result() == 0:
        left = sorted(path.name for path in folder.iterdir())
        if left:
            raise DumpFailed(f"pg_dump wrote files that its contents do not name: {', '.join(left[:5])}.")
        yield bytes(2 * _BLOCK)


def _files(folder: Path, dump_id: str, kind: bytes, major: int, ended: "Future[int]") -> Iterator[Path]:
    """The files of an entry. pg_restore looks for large objects before the file that lists them."""
    if kind == b"TABLE DATA":
        yield folder / f"{dump_id}.dat"
        return
    listed = folder / ("blobs.toc" if major < LISTS_BLOBS_PER_ENTRY else f"blobs_{dump_id}.toc")
    if _is_written(listed, ended):
        for line in listed.read_text().splitlines():
            yield folder / line.split()[1]
    yield listed


def _is_written(path: Path, ended: "Future[int]") -> bool:
    """Wait until pg_dump has written a file; False when it failed. Raises DumpFailed when it did not, and is done."""
    while not _is_finished(path):
        if ended.done():
            if ended.result() != 0:
                return False
            if not path.exists():
                raise DumpFailed(f"pg_dump wrote no {path.name}, which its contents name.")
            return True
        wait([ended], timeout=LOOK_AGAIN_SECONDS)
    return True


def _is_finished(path: Path) -> bool:
    """Whether a file has content and nobody writes it: Linux grants a read lease only then.

    On a file system without leases no file is, as long as pg_dump runs. No file of a dump is written twice.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(descriptor).st_size == 0:
            return False  # it may have been made a moment ago
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _member(path: Path) -> Iterator[bytes]:
    """One file in the stream, and removed. Owner, mode and times are always the same."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        about = tarfile.TarInfo(path.name)
        about.size, about.mode = size, 0o600
        yield about.tobuf(tarfile.GNU_FORMAT)
        left = size
        while left:
            piece = file.read(min(left, PIPE_BYTES))
            if not piece:
                raise DumpFailed(f"{path.name} became shorter while it was read.")
            left -= len(piece)
            yield piece
        yield bytes(-size % _BLOCK)
    path.unlink()


def unpack(chunks: Iterator[bytes], folder: Path) -> None:
    """The files of such a stream into ``folder``. Raises BackupDamaged for all that :func:`packed` does not write."""
    stream = _Stream(chunks)
    blobs: list[str] = []
    while (about := _header(stream)) is not None:
        try:
            with (folder / about.name).open("xb") as file:
                for piece in stream.pieces(about.size):
                    file.write(piece)
        except FileExistsError:
            raise _damaged(f"{about.name} is in it twice") from None
        for _padding in stream.pieces(-about.size % _BLOCK):
            pass
        if blob := _BLOB.fullmatch(about.name):
            blobs.append(f"{blob[1]} {about.name}\n")
        elif _BLOBS.fullmatch(about.name):
            if (folder / about.name).read_text(errors="replace") != "".join(blobs):
                raise _damaged(f"{about.name} does not list the large objects before it")
            blobs.clear()
    for _rest in chunks:
        pass  # the digests cover everything


def framed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks. Raises BackupDamaged unless they are a whole tar: pg_restore waits for the rest for ever."""
    block, left, is_whole = b"", 0, False
    for chunk in chunks:
        place = 0
        while place < len(chunk) and not is_whole:
            if left:
                step = min(left, len(chunk) - place)
                left -= step
                place += step
                continue
            more = chunk[place : place + _BLOCK - len(block)]
            block += more
            place += len(more)
            if len(block) == _BLOCK:
                about = _read_header(block)
                is_whole = about is None
                left = 0 if about is None else about.size + -about.size % _BLOCK
                block = b""
        yield chunk
    if not is_whole:
        raise _damaged("it ends too early")


def _read_header(block: bytes) -> tarfile.TarInfo | None:
    """What is said of a file; None at the end. Raises BackupDamaged."""
    if not any(block):
        return None
    try:
        about = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise _damaged(f"a header in it is broken ({error})") from None
    if about.size < 0:
        raise _damaged(f"{about.name!r} in it has a size below zero")
    return about


def _header(stream: "_Stream") -> tarfile.TarInfo | None:
    """What the next file is; None at the end."""
    about = _read_header(b"".join(stream.pieces(_BLOCK)))
    if about is None:
        return None
    if about.type != tarfile.REGTYPE or not _NAME.fullmatch(about.name):
        raise _damaged(f"{about.name!r} in it is no file of a dump")
    return about


class _Stream:
    """Chunks of any size as pieces of a wanted one."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next ``size`` bytes. Raises BackupDamaged when there are fewer."""
        while size:
            if not self._rest:
                try:
                    self._rest = memoryview(next(self._chunks))
                except StopIteration:
                    raise _damaged("it ends too early") from None
            piece, self._rest = self._rest[:size], self._rest[size:]
            size -= len(piece)
            yield piece


def _damaged(how: str) -> BackupDamaged:
    return BackupDamaged(
        f"The dump's tar is damaged: {how}.",
        hint="Restore from another repository or an earlier backup; `opsctl verify --all` shows what is intact.",
    )
