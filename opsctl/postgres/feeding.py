"""A program that is fed by a thread while its output is read."""

import threading
from collections.abc import Iterable

from opsctl.postgres.tools import Child


class Feeding:
    """Write ``chunks`` into a program from a thread while its output is read; their error is raised at the end."""

    def __init__(self, child: Child, chunks: Iterable[bytes]) -> None:
        self._child = child
        self._chunks = chunks
        self.error: BaseException | None = None
        """What came up while the chunks were made."""

        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._child.end()
        self._thread.join()
        if error is None and self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            for chunk in self._chunks:
                try:
                    self._child.write(chunk)
                except (OSError, ValueError):
                    break  # its exit code says why it wants no more; or it was ended, and its input closed
            for _rest in self._chunks:
                pass  # the digests cover everything
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that reads
            self.error = error
            self._child.stop()  # pg_restore waits for ever for the rest of a tar
        finally:
            self._child.close_stdin()
