"""One backup on its way into several repositories at once; a slow or failing one does not stop the others.

Each repository has a thread and a bounded queue of its own. One that fails drops out. One that the others have had to
wait for too long drops out as well: it is slow, not failed, and gets its copy once the backup exists elsewhere.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime

from opsctl.background import in_background
from opsctl.errors import OpsctlError, RepositoryUnreachable
from opsctl.manifest import Manifest
from opsctl.repository import Repository, Upload
from opsctl.stream import Writer

QUEUE_BYTES = 16 << 20
"""How far a repository may be behind the dump: as much as a part of an S3 upload, so that sending one is no wait."""

PATIENCE_SECONDS = 60.0
"""How long the others wait for one repository, in total: pg_dump holds its locks meanwhile. Long enough for a hiccup,
and for a small backup to get through a slow link; short enough for whoever waits for those locks."""

ABANDON_SECONDS = 10
"""How long an upload that was given up may take to clean up behind itself."""


class Uploads:
    """The uploads still alive, the error of each that failed, and the names of the slow ones.

    Every method raises RepositoryUnreachable once none is left. Leave through :meth:`publish` or :meth:`abandon`.
    """

    def __init__(
        self,
        repositories: Sequence[Repository],
        database: str,
        backup_id: str,
        *,
        created_at: datetime,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.failures: dict[str, OpsctlError] = {}
        self.slow: list[str] = []
        self._patience_seconds = patience_seconds
        self._alone: tuple[str, Upload] | None = None
        self._lanes: list[_Lane] = []
        self._changed = threading.Condition()
        if len(repositories) == 1:  # nobody to wait for: the direct way is simpler, and as fast as it gets
            (only,) = repositories
            self._alone = only.name, only.begin(database, backup_id, created_at=created_at)
            return
        try:
            for each in repositories:
                self._lanes.append(_Lane(each, database, backup_id, created_at, self._changed))
            with self._changed:
                self._changed.wait_for(lambda: not self._alive() or any(lane.has_begun for lane in self._alive()))
                self._require_one()
        except BaseException:
            self.abandon()
            raise

    @contextmanager
    def file(self, name: str) -> Iterator[Writer]:
        """One file, written to every upload; what goes wrong after its end shows when it is published."""
        if self._alone is not None:
            with self._alone[1].file(name) as writer:
                yield writer
            return
        self._pass_on(lambda lane: lane.open(name))
        yield _FanOut(self)
        self._pass_on(lambda lane: lane.close())

    def write(self, data: bytes) -> None:
        """Give ``data`` to every upload, once it has room."""
        self._wait_while(lambda lane: not lane.has_room(len(data)))
        self._pass_on(lambda lane: lane.write(data), size=len(data))

    def publish(self, manifest: Manifest) -> list[str]:
        """Let the backup exist; the names of the repositories that have it."""
        if self._alone is not None:
            self._alone[1].publish(manifest)
            return [self._alone[0]]
        self._pass_on(lambda lane: lane.publish(manifest), last=True)
        self._wait_while(lambda lane: not lane.has_published)
        self._settle()
        return [lane.name for lane in self._lanes if lane.has_published]

    def abandon(self) -> None:
        """Remove what was written everywhere."""
        if self._alone is not None:
            self._alone[1].abandon()
            return
        with self._changed:
            for lane in self._lanes:
                lane.give_up()
        self._settle()

    def _alive(self) -> "list[_Lane]":
        return [lane for lane in self._lanes if lane.error is None and not lane.is_given_up]

    def _pass_on(self, step: "Callable[[_Lane], None]", *, size: int = 0, last: bool = False) -> None:
        with self._changed:
            self._require_one()
            for lane in self._alive():
                lane.put(step, size, last=last)

    def _wait_while(self, is_late: "Callable[[_Lane], bool]") -> None:
        """Until no upload is late. Time that some alone cost the others counts against them."""
        with self._changed:
            self._require_one()
            while late := [lane for lane in self._alive() if is_late(lane)]:
                waiting_for = late if len(late) < len(self._alive()) else []
                left = min((self._patience_seconds - lane.waited_seconds for lane in waiting_for), default=None)
                began = time.monotonic()
                self._changed.wait(left)
                for lane in waiting_for:
                    lane.waited_seconds += time.monotonic() - began
                    if lane.waited_seconds >= self._patience_seconds and lane.give_up():
                        self.slow.append(lane.name)
                self._require_one()

    def _require_one(self) -> None:
        """Note what failed; raise the first failure when no upload is left, and any error that is none of a storage."""
        for lane in self._lanes:
            if lane.error is not None and lane.name not in self.failures and not lane.is_given_up:
                if not isinstance(lane.error, RepositoryUnreachable):
                    raise lane.error
                self.failures[lane.name] = lane.error
        if not self._alive():
            raise next(iter(self.failures.values()))

    def _settle(self) -> None:
        """Wait a moment for those that dropped out; a slow one that does not even end has failed."""
        deadline = time.monotonic() + ABANDON_SECONDS
        ended = {lane.name for lane in self._lanes if lane.has_published or lane.settle(deadline)}
        for name in self.slow:
            if name not in ended:
                self.failures[name] = RepositoryUnreachable(
                    f"The repository {name} kept the others waiting for {self._patience_seconds:.0f} seconds"
                    " and has not answered since.",
                    hint="The others have the backup; `opsctl sync` copies it once this one answers.",
                )
        published = {lane.name for lane in self._lanes if lane.has_published}
        self.slow = [name for name in self.slow if name not in {*self.failures, *published}]


class _FanOut:
    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads

    def write(self, data: bytes) -> None:
        self._uploads.write(data)


Step = Callable[["_Lane"], None]


class _Lane:
    """One repository's upload, in a thread of its own. What is shared is touched under the condition ``changed`` only.

    A thread that hangs in a request cannot be ended: it is left behind, and ends with the program.
    """

    def __init__(
        self,
        repository: Repository,
        database: str,
        backup_id: str,
        created_at: datetime,
        changed: threading.Condition,
    ) -> None:
        self.name = repository.name
        self.error: BaseException | None = None
        self.waited_seconds = 0.0
        self.is_given_up = self.has_begun = self.has_published = False
        self._begin: Callable[[], Upload] = lambda: repository.begin(database, backup_id, created_at=created_at)
        self._changed = changed
        self._steps: deque[tuple[Step, int, bool]] = deque()
        self._queued_bytes = 0
        self._is_publishing = False
        self._upload: Upload | None = None
        self._file: tuple[AbstractContextManager[Writer], Writer] | None = None
        self._abandoned: Future[None] | None = None
        self._ended = in_background(self._run)

    # Asked and told by whoever holds the condition

    def has_room(self, size: int) -> bool:
        return not self._queued_bytes or self._queued_bytes + size <= QUEUE_BYTES

    def put(self, step: Step, size: int, *, last: bool) -> None:
        self._steps.append((step, size, last))
        self._queued_bytes += size
        self._changed.notify_all()

    def give_up(self) -> bool:
        """Write nothing more, and remove what was written; whether there was anything to give up.

        What is being published is left alone: it may exist already.
        """
        if self.is_given_up or self.has_published or self.error is not None:
            return False
        self.is_given_up = True
        self._steps.clear()
        self._changed.notify_all()
        if self._upload is not None and not self._is_publishing:
            self._abandoned = in_background(self._upload.abandon)  # from outside: the thread may hang in a request
        return True

    def settle(self, deadline: float) -> bool:
        """Whether it has ended, and nothing of it goes on."""
        running = [each for each in (self._ended, self._abandoned) if each is not None]
        return not wait(running, timeout=max(0.0, deadline - time.monotonic())).not_done

    # In the lane's own thread

    def _run(self) -> None:
        try:
            upload = self._begin()
            with self._changed:
                self._upload = upload
                self.has_begun = True
                self._changed.notify_all()
            while self._do_next():
                pass
        except BaseException as error:  # noqa: BLE001 - raised in the main thread, unless nobody waits any more
            with self._changed:
                self.error = error
                self._changed.notify_all()
        if self._upload is not None and not self.has_published:
            self._upload.abandon()

    def _do_next(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._steps or self.is_given_up)
            if self.is_given_up:
                return False
            step, size, last = self._steps[0]
            self._is_publishing = last
        step(self)
        with self._changed:
            if self._steps:
                self._steps.popleft()
            self._queued_bytes -= size
            self.has_published = last
            self._changed.notify_all()
        return not last

    def open(self, name: str) -> None:
        context = self._started.file(name)
        self._file = context, context.__enter__()

    def write(self, data: bytes) -> None:
        assert self._file is not None  # noqa: S101 - open() comes first
        self._file[1].write(data)

    def close(self) -> None:
        assert self._file is not None  # noqa: S101 - open() comes first
        self._file[0].__exit__(None, None, None)
        self._file = None

    def publish(self, manifest: Manifest) -> None:
        self._started.publish(manifest)

    @property
    def _started(self) -> Upload:
        assert self._upload is not None  # noqa: S101 - steps are taken after the beginning
        return self._upload
