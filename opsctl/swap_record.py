"""What the counters of a database said when it was swapped in: an undo shows by them what it would put aside."""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from opsctl.postgres.server import Server
from opsctl.postgres.writes import Counters
from opsctl.times import format_time


@dataclass(frozen=True)
class SwapRecord:
    backup_id: str | None
    at: datetime
    counters: Counters


def record_swap(
    state_path: Path, server: Server, oid: int, *, backup_id: str | None, at: datetime, counters: Counters
) -> None:
    """Remember a swap on this host. Without the record an undo works as well, it only knows less."""
    path = _path(state_path, server, oid)
    body = {"backup_id": backup_id, "at": format_time(at), "counters": counters}
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps(body), encoding="utf-8")


def read_swap(state_path: Path, server: Server, oid: int) -> SwapRecord | None:
    """The record of the swap that brought the database ``oid``, if this host made it."""
    try:
        body = json.loads(_path(state_path, server, oid).read_text(encoding="utf-8"))
        counters = {table: (counts[0], counts[1], counts[2]) for table, counts in body["counters"].items()}
        return SwapRecord(body["backup_id"], datetime.fromisoformat(body["at"]), counters)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _path(state_path: Path, server: Server, oid: int) -> Path:
    return state_path / "swaps" / f"{server.info.system_identifier or 'server'}-{oid}.json"
