"""Bytes on their way into a bucket, in parts side by side, and out of it, a few ranges ahead."""

import ctypes
import hashlib
import io
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from opsctl.background import in_background
from opsctl.errors import RepositoryUnreachable
from opsctl.storage.s3_errors import http_status

if TYPE_CHECKING:
    from opsctl.storage.s3 import S3Storage

MIB = 1 << 20
PART_BYTES = 16 * MIB
PARTS_PER_SIZE = 1000
LARGEST_PART_BYTES = 1088 * MIB
"""Parts double every thousand: 16 MiB up to 15 GiB, 32 MiB up to 46 GiB; at this size 10,000 of them hold 5 TiB."""

UPLOAD_BYTES = 96 * MIB
UPLOADS = 4
"""How much of one stream is held in memory, and in how many parts on their way at once; never fewer than one."""

RANGE_BYTES = 8 * MIB
RANGES_AHEAD = 3
"""How a file is read: this many ranges are fetched while one is consumed."""

LOOK_SECONDS = 0.5
"""How often who waits for a part looks whether the upload was given up by another thread."""

M_MMAP_THRESHOLD = -3
"""What mallopt(3) calls the size from which a block is returned to the system as it is freed."""

ABANDON_SECONDS = 5
"""How long an abandoned upload waits for the parts that are on their way, to abort again what they left."""


# Writing


class S3Publication:
    """A folder on its way: its files are there as they end, and count when :meth:`publish` adds the last one."""

    def __init__(self, storage: "S3Storage", folder: str, locked_until: datetime | None = None) -> None:
        self._storage = storage
        self._folder = folder
        self._locked_until = locked_until
        self._files: list[S3File] = []
        self._last: tuple[str, bytes] | None = None
        self._done = False
        _return_large_blocks()

    @contextmanager
    def file(self, name: str) -> Iterator["S3File"]:
        file = S3File(self._storage, f"{self._folder}/{name}")
        self._files.append(file)
        try:
            yield file
            file.finish()
        except BaseException:
            file.remove()
            raise

    def publish(self, name: str, data: bytes) -> None:
        key = f"{self._folder}/{name}"
        if self._locked_until is not None:
            for file in self._files:
                file.lock(self._locked_until)
        self._last = key, data
        try:
            self._storage.create_locked(key, data, self._locked_until)
        except FileExistsError:
            self._last, self._done = None, True  # another run's: our files may have become its own
            raise
        self._done = True

    def abandon(self) -> None:
        """As removal always goes: what makes the folder count first. While that cannot be told, everything stays."""
        if self._done:
            return
        with suppress(RepositoryUnreachable):
            if self._last is not None:
                key, data = self._last
                with suppress(FileNotFoundError):
                    if self._storage.read(key) != data:
                        return
                    self._storage.delete(key)
            for file in self._files:
                file.remove()
        self._done = True


class S3File:
    """One object being written: by one put if it is small, else by parts that are on their way side by side."""

    def __init__(self, storage: "S3Storage", key: str) -> None:
        self._storage = storage
        self._key = key
        self._buffer = bytearray()
        self._filled = 0
        self._size = 0
        self._upload: str | None = None
        self._parts: list[Future[str]] = []
        self._bodies: dict[Future[str], bytearray] = {}
        self._stored = False
        self._failure: RepositoryUnreachable | None = None

    def write(self, data: bytes) -> None:
        self._require_wanted()
        view = memoryview(data)
        while view:
            taken = view[: part_bytes(len(self._parts)) - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            self._size += len(taken)
            view = view[len(taken) :]
            if self._filled == part_bytes(len(self._parts)):
                with self._failing():
                    self._send()

    def finish(self) -> None:
        """Store what is left, and see that all of it is there."""
        upload = self._upload
        self._require_wanted()
        with self._failing():
            if upload is None:
                self._stored = True
                self._storage.put_file(self._key, bytes(self._buffer))
            else:
                if self._filled:
                    self._send()
                etags = [self._result(part) for part in self._parts]
                self._stored = True
                self._storage.complete_upload(self._key, upload, etags)
            self._storage.require_size(self._key, self._size)
        try:
            self._require_wanted()
        except RepositoryUnreachable:  # given up while the last request was on its way
            self._storage.delete(self._key)
            raise

    def lock(self, until: datetime) -> None:
        self._storage.versions.lock(self._key, until)

    def remove(self) -> None:
        """Take back what was written, once; writing on fails from here on, also in another thread."""
        self._failure = self._failure or RepositoryUnreachable(
            f"The upload of {self._key} to {self._storage.address} was given up.", hint="Run it again."
        )
        upload, stored = self._upload, self._stored
        self._upload, self._stored, self._buffer, self._filled = None, False, bytearray(), 0
        with suppress(RepositoryUnreachable):
            if upload is not None:
                full_key = self._storage.full_key(self._key)
                self._storage.abort(full_key, upload)
                if not all(part.done() for part in self._parts):
                    wait(self._parts, timeout=ABANDON_SECONDS)
                    self._storage.abort(full_key, upload)  # a part that was on its way may have come after the first
            if stored or upload is not None:  # also where services on files made a folder for it
                self._storage.delete(self._key)

    def _send(self) -> None:
        body = self._buffer
        del body[self._filled :]
        upload = self._upload = self._upload or self._storage.start_upload(self._key)
        if self._failure is not None:  # given up while the upload was being started: what follows raises it
            self._storage.abort(self._storage.full_key(self._key), upload)
        self._wait_for_room(len(body))
        number = len(self._parts) + 1
        part = in_background(self._storage.put_part, self._key, upload, number, body)
        self._parts.append(part)
        # Buffers are used again: new ones of this size, freed by other threads, leave holes.
        done = next((each for each in self._bodies if each.done()), None)
        self._buffer, self._filled = self._bodies.pop(done) if done else bytearray(), 0
        self._bodies[part] = body

    def _wait_for_room(self, size: int) -> None:
        """Until this part, the next one and those on their way fit; raises what went wrong with any."""
        together = max(1, min(UPLOADS, UPLOAD_BYTES // size - 1))
        for part in self._parts:
            if part.done():
                part.result()
        while len(on_their_way := [part for part in self._parts if not part.done()]) >= together:
            for part in wait(on_their_way, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED).done:
                part.result()
            self._require_wanted()
        self._require_wanted()

    def _result(self, part: Future[str]) -> str:
        while not part.done():
            wait([part], timeout=LOOK_SECONDS)
            self._require_wanted()
        return part.result()

    def _require_wanted(self) -> None:
        if self._failure is not None:
            raise self._failure

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except RepositoryUnreachable as error:
            self._failure = error
            raise


def _return_large_blocks() -> None:
    """Have blocks of a MiB and more returned to the system as they are freed.

    glibc raises this limit to the largest block it sees freed, up to 32 MiB. What is freed after that stays, in pieces,
    in a heap of each thread: measured, 55 MiB of a backup's 220.
    """
    with suppress(OSError, AttributeError):  # other C libraries
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MIB)


def content_md5(data: bytes | bytearray) -> str:
    """What a service compares a body with when it arrives, as the header spells it."""
    return b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def part_bytes(sent: int) -> int:
    return min(PART_BYTES << (sent // PARTS_PER_SIZE), LARGEST_PART_BYTES)


# Reading


@dataclass(frozen=True)
class Fetched:
    data: bytes
    total: int
    etag: str | None


class S3Reader(io.RawIOBase):
    """An object read from its beginning, a few ranges ahead."""

    def __init__(self, storage: "S3Storage", key: str) -> None:
        self._storage = storage
        self._key = key
        first = self._first()
        self._total, self._etag = first.total, first.etag
        self._current = memoryview(first.data)
        self._fetched_to = len(first.data)
        self._ahead: list[Future[Fetched]] = []

    def _first(self) -> Fetched:
        try:
            return self._storage.fetch(self._key, 0, RANGE_BYTES)
        except RepositoryUnreachable as error:
            # No range of an empty object exists.
            if status_of_cause(error) != 416:
                raise
            return self._storage.fetch(self._key)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._current:
            self._fetch_ahead()
            if not self._ahead:
                return 0
            fetched = self._ahead.pop(0).result()
            if fetched.etag != self._etag:
                raise RepositoryUnreachable(
                    f"{self._key} in {self._storage.address} changed while it was read.", hint="Run it again."
                )
            self._current = memoryview(fetched.data)
        self._fetch_ahead()
        count = min(len(buffer), len(self._current))
        buffer[:count] = self._current[:count]
        self._current = self._current[count:]
        return count

    def _fetch_ahead(self) -> None:
        while len(self._ahead) < RANGES_AHEAD and self._fetched_to < self._total:
            end = min(self._fetched_to + RANGE_BYTES, self._total)
            self._ahead.append(in_background(self._storage.fetch, self._key, self._fetched_to, end))
            self._fetched_to = end

    def close(self) -> None:
        self._ahead = []
        super().close()


def status_of_cause(error: Exception) -> int:
    cause = error.__cause__
    return http_status(cause) if cause is not None and hasattr(cause, "response") else 0
