"""Undo a restore, and forget what restores have put aside."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from opsctl.errors import Refused
from opsctl.postgres.databases import drop_database
from opsctl.postgres.lock import database_lock
from opsctl.postgres.server import Server, rows
from opsctl.postgres.swap import Swap, find_previous, previous_name, put_aside_at
from opsctl.postgres.tools import Tools
from opsctl.postgres.writes import TableWrites, read_counters, written_between
from opsctl.restore import Restored, SwapSettings, swap_with_hooks
from opsctl.swap_record import read_swap, record_swap


@dataclass(frozen=True)
class UndoPlan:
    """What an undo would do: ``back`` becomes the live database, what is live now is put aside.

    ``writes`` is what was written since the swap and would be put aside with it; ``None`` where nobody knows.
    """

    database: str
    back: str
    swapped_at: datetime | None
    writes: tuple[TableWrites, ...] | None


@dataclass(frozen=True)
class Undo:
    """Put back the database that the last swap put aside; the one undone is put aside in turn."""

    server: Server
    database: str
    state_path: Path
    tools: Tools
    swap_settings: SwapSettings = field(default_factory=SwapSettings)

    def plan(self) -> UndoPlan:
        """Look at the server. Raises Refused when nothing was put aside."""
        back = self.previous()[0]
        oid = self._live_oid()
        record = read_swap(self.state_path, self.server, oid) if oid is not None else None
        if record is None:
            return UndoPlan(self.database, back, None, None)
        with self.server.connect(self.database) as connection:
            writes = written_between(record.counters, read_counters(connection))
        return UndoPlan(self.database, back, record.at, None if writes is None else tuple(writes))

    def execute(self, *, clock: Callable[[], datetime]) -> tuple[UndoPlan, Restored]:
        """Swap back, under the database's lock."""
        with database_lock(self.server, self.database, command="undo", state_path=self.state_path, now=clock()):
            plan = self.plan()
            oid = self._live_oid()
            aside = None if oid is None else previous_name(self.database, clock(), self.previous())
            swap = Swap(live=self.database, incoming=plan.back, previous=aside)
            swapped, remarks = swap_with_hooks(self.server, swap, self.swap_settings, self.tools)
            with self.server.connect(self.database) as connection:
                counters = read_counters(connection)
            record_swap(
                self.state_path, self.server, swapped.incoming_oid, backup_id=None, at=clock(), counters=counters
            )
        return plan, Restored(
            backup_id=None,
            database=self.database,
            previous_database=aside,
            swapped=True,
            outage_seconds=swapped.outage_seconds,
            evidence=None,
            warnings=tuple(remarks),
        )

    def previous(self) -> list[str]:
        """The databases put aside, newest first. Raises Refused when there is none."""
        with self.server.connect(self.server.maintenance_database) as connection:
            names = find_previous(connection, self.database)
        if not names:
            raise Refused(
                f"There is no previous database of {self.database!r}: no restore has replaced it, or it was forgotten.",
                hint="`opsctl restore` replaces a database by a backup and keeps the old one.",
            )
        return names

    def forget(self, *, clock: Callable[[], datetime], older_than: timedelta | None = None) -> list[str]:
        """Drop what was put aside, all of it or what is ``older_than``; the names of what was dropped."""
        with database_lock(self.server, self.database, command="forget", state_path=self.state_path, now=clock()):
            limit = clock() - older_than if older_than is not None else datetime.max.replace(tzinfo=UTC)
            names = [name for name in self.previous() if put_aside_at(name) <= limit]
            with self.server.connect(self.server.maintenance_database) as connection:
                for name in names:
                    drop_database(connection, name)
        return names

    def _live_oid(self) -> int | None:
        with self.server.connect(self.server.maintenance_database) as connection:
            found = rows(connection, "select oid from pg_database where datname = %s", (self.database,))
        return found[0][0] if found else None
