"""Where the write-ahead log goes, and what still holds it: standbys, replication slots, the archive."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsctl.postgres.server import mapped_errors, maybe, one, rows
from opsctl.postgres.session import require_statistics

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

CATCH_UP_SECONDS = 0.5

CURRENT = """case when pg_is_in_recovery() then coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                  else pg_current_wal_lsn() end"""
"""Where the log of this server ends, on a standby too."""

STANDBYS = f"""
    select coalesce(application_name, ''), coalesce(host(client_addr), 'local'), coalesce(state, ''),
           coalesce(sync_state, ''),
           greatest(pg_wal_lsn_diff({CURRENT}, coalesce(replay_lsn, flush_lsn, write_lsn, sent_lsn)), 0)::bigint,
           extract(epoch from replay_lag)::float8
    from pg_stat_replication where state is distinct from 'backup' order by 5 desc nulls first, 1"""
"""Without what takes a base backup just now."""

REPLAY = """
    select received::text, greatest(pg_wal_lsn_diff(received, replayed), 0)::bigint,
           extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())::float8
             - (select setting::int / 1000.0 from pg_settings where name = 'recovery_min_apply_delay')::float8,
           pg_is_wal_replay_paused(), exists (select from pg_stat_wal_receiver),
           current_setting('primary_conninfo') <> '', current_setting('restore_command') <> ''
    from (select pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) as wal(received, replayed)"""

SLOTS = f"""
    select slot_name, slot_type, database, active, wal_status,
           greatest(pg_wal_lsn_diff({CURRENT}, restart_lsn), 0)::bigint,
           {{inactive_seconds}}, {{synced}}
    from pg_replication_slots where not temporary order by slot_name"""

ARCHIVER = """
    select current_setting('archive_mode'),
           current_setting('archive_command') = '' and coalesce(current_setting('archive_library', true), '') = '',
           pg_is_in_recovery(), failed_count, last_failed_wal,
           extract(epoch from clock_timestamp() - last_failed_time)::float8,
           extract(epoch from clock_timestamp() - last_archived_time)::float8
    from pg_stat_archiver"""

WAITING = """
    select array[count(*)::float8, coalesce(extract(epoch from clock_timestamp() - min(modification)), 0)::float8]
    from pg_ls_archive_statusdir() where name like '%.ready'"""


@dataclass(frozen=True)
class Standby:
    """One that is connected. What it has not reported yet is ``None``."""

    name: str
    address: str
    state: str
    sync_state: str
    lag_bytes: int | None
    lag_seconds: float | None


@dataclass(frozen=True)
class Replay:
    """How far a standby is itself.

    ``lag_seconds`` is ``None`` where nobody can know: what comes out of an archive says nothing about its primary.
    ``is_disconnected``: it should stream from a primary, does not, and has no archive to read from.
    """

    lag_bytes: int
    lag_seconds: float | None
    is_paused: bool
    is_disconnected: bool


@dataclass(frozen=True)
class Replication:
    """``replay`` on a standby only; ``standbys`` those furthest behind first."""

    standbys: tuple[Standby, ...]
    replay: Replay | None = None


@dataclass(frozen=True)
class Slot:
    """``retained_bytes`` is ``None`` for a slot that keeps no WAL; ``inactive_seconds`` is known from 17 on."""

    name: str
    kind: str
    database: str | None
    is_active: bool
    wal_status: str | None
    retained_bytes: int | None
    inactive_seconds: float | None
    is_synced: bool = False
    """Kept in step with a slot of the primary, and so never in use here."""


@dataclass(frozen=True)
class Slots:
    """``data_directory`` is ``None`` where the login may not know it."""

    slots: tuple[Slot, ...]
    data_directory: str | None


@dataclass(frozen=True)
class Archiver:
    """Seconds are ages. ``waiting`` and ``waiting_seconds`` (the oldest) are ``None`` where the login may not look."""

    is_on: bool
    has_no_command: bool
    failures: int
    failed_wal: str | None
    failed_seconds: float | None
    archived_seconds: float | None
    waiting: int | None
    waiting_seconds: float | None


@mapped_errors()
def read_replication(connection: "Connection") -> Replication:
    """The standbys of this server, and how far it is itself if it is one. Raises NotPermitted."""
    require_statistics(connection)
    standbys = tuple(Standby(*row) for row in rows(connection, STANDBYS))
    return Replication(standbys, _read_replay(connection) if one(connection, "select pg_is_in_recovery()")[0] else None)


def _read_replay(connection: "Connection") -> Replay:
    received, lag, seconds, is_paused, is_streaming, has_primary, has_archive = one(connection, REPLAY)
    if received is None:
        seconds = None
    elif lag == 0 or _catches_up(connection, received):
        lag = seconds = 0
    return Replay(
        lag,
        None if seconds is None else max(seconds, 0.0),
        is_paused,
        is_disconnected=has_primary and not is_streaming and not has_archive,
    )


def _catches_up(connection: "Connection", received: str) -> bool:
    """Whether what had come is replayed a moment later: after an hour without a commit it would look an hour late."""
    time.sleep(CATCH_UP_SECONDS)
    return bool(one(connection, "select pg_last_wal_replay_lsn() >= %s::pg_lsn", (received,))[0])


@mapped_errors()
def read_slots(connection: "Connection") -> Slots:
    since_17 = connection.info.server_version >= 170000
    inactive = "extract(epoch from clock_timestamp() - inactive_since)::float8" if since_17 else "null::float8"
    found = rows(connection, SLOTS.format(inactive_seconds=inactive, synced="synced" if since_17 else "false"))
    folder = maybe(connection, "select setting from pg_settings where name = 'data_directory'")
    return Slots(tuple(Slot(*row) for row in found), folder)


@mapped_errors()
def read_archiver(connection: "Connection") -> Archiver:
    mode, has_no_command, is_standby, failures, failed_wal, failed, archived = one(connection, ARCHIVER)
    is_on = mode == "always" or (mode == "on" and not is_standby)
    waiting = maybe(connection, WAITING) if is_on else (0, 0)
    count, oldest = (None, None) if waiting is None else waiting
    return Archiver(
        is_on, has_no_command, failures, failed_wal, failed, archived, None if count is None else int(count), oldest
    )
