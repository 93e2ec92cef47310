"""The rows of a dump, counted while it is being written."""

import threading

from opsctl.manifest import Facts
from opsctl.postgres.snapshot import Snapshot, count_in_snapshot
from opsctl.postgres.tools import ContentsReader, dumped_tables


class Counting:
    """Counts the dumped tables in a thread, as soon as the archive's contents are known."""

    def __init__(self, snapshot: Snapshot, contents: ContentsReader) -> None:
        self._snapshot = snapshot
        self._contents = contents
        self._facts: Facts | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="facts", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            tables = dumped_tables(self._contents.listing())
            self._facts = count_in_snapshot(self._snapshot, tables)
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            self._error = error

    def result(self) -> Facts:
        self._thread.join()
        if self._facts is None:
            raise self._error or RuntimeError("counting ended without a result")
        return self._facts

    def cancel(self) -> None:
        """End the query that runs; the connection is of no use afterwards."""
        self._contents.end()
        self._snapshot.connection.cancel()
        self._thread.join(timeout=10)
