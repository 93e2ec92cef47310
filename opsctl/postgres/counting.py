"""The facts of a dump, found out while it is being written."""

import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Self

from opsctl.manifest import Facts
from opsctl.postgres.facts import Table, count_all, list_tables, read_facts
from opsctl.postgres.snapshot import Snapshot


class Counting:
    """Reads the facts and counts the rows in a thread, as soon as there is a snapshot; its context ends the thread.

    It does so in the session that has locked the tables: another one would queue behind a TRUNCATE that waits for this
    one, for ever.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._tables: list[Table] = []
        self._facts: Facts | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="facts", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():  # the query that runs ends; the connection is of no use afterwards
            self._snapshot.connection.cancel()
            self._thread.join(timeout=10)

    def _run(self) -> None:
        snapshot, connection = self._snapshot, self._snapshot.connection
        left_out = {table.oid for table in snapshot.without_data}
        try:
            facts = read_facts(connection, snapshot.database, snapshot.level, snapshot.sequences)
            self._tables = [table for table in list_tables(connection) if table.oid not in left_out]
            self._facts = count_all(connection, facts, self._tables)
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            self._error = error

    def result(self, dumped: Iterable[int]) -> Facts:
        """Of the tables whose data is in the archive: their oids come from its own table of contents."""
        self._thread.join()
        if self._facts is None:
            raise self._error or RuntimeError("counting ended without a result")
        oids = set(dumped)
        names = {(table.schema, table.name) for table in self._tables if table.oid in oids}
        return replace(self._facts, tables=tuple(t for t in self._facts.tables if (t.schema, t.name) in names))
