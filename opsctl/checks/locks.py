"""What runs that were killed left behind: locks without a holder, what a drill had made, staging databases."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsctl.checks.amounts import counted, spoken_bytes
from opsctl.checks.check import Check, Finding, Remedy, Thresholds
from opsctl.checks.databases import LANE, NOT_CONFIGURED, databases
from opsctl.checks.scope import Scope

if TYPE_CHECKING:
    from opsctl.postgres.swap import Leftovers


def check_locks(scope: Scope, _target: str, _thresholds: Thresholds) -> Finding:
    return judge_locks(list(holders(scope.config.state_path / "locks")), host=socket.gethostname())


def holders(folder: Path) -> Iterator[Mapping[str, Any]]:
    """What every lock file says of its holder; one that is free says nothing."""
    for path in sorted(folder.glob("*.lock")):
        try:
            holder = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # free, or its holder is just starting
        if isinstance(holder, dict) and isinstance(holder.get("pid"), int):
            yield {**holder, "file": str(path)}


def judge_locks(found: list[Mapping[str, Any]], *, host: str) -> Finding:
    """A run that ends takes its name out of its lock, however it fails; one that was killed could not."""
    dead = [each for each in found if each.get("host") == host and not _lives(each["pid"])]
    if not dead:
        return Finding("ok", "No run of opsctl on this host was killed.", value=0, details={"held": len(found)})
    first = dead[0]
    return Finding(
        "warn",
        f"opsctl {first.get('command')} (pid {first['pid']}), begun {first.get('started_at')}, was killed, or the"
        " machine went down.",
        value=len(dead),
        code="killed",
        details={"locks": dead},
        remedy=Remedy(
            "Find out what killed it (memory, a reboot). The next run of that database cleans up after it.",
            f"journalctl --since '{first.get('started_at')}' --grep 'oom|killed'",
        ),
    )


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def check_drills(scope: Scope, _target: str, _thresholds: Thresholds) -> Finding:
    from opsctl.drill_records import DrillRecords

    return judge_drills(DrillRecords(scope.config.state_path).leftovers())


def judge_drills(found: list[str]) -> Finding:
    """What stands in the record of a drill that does not run any more."""
    if not found:
        return Finding("ok", "No killed drill left anything behind.", value=0)
    return Finding(
        "warn",
        f"Left behind by killed drills: {', '.join(found)}.",
        value=len(found),
        code="leftovers",
        details={"leftovers": found},
        remedy=Remedy("The next drill removes it.", "opsctl drill"),
    )


def check_leftovers(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    from opsctl.postgres.swap import find_leftovers

    server = scope.server(target)
    return judge_leftovers(target, find_leftovers(scope.session(target), server.database))


def judge_leftovers(database: str, found: "Leftovers") -> Finding:
    """Staging databases while nobody holds the lock: their restore is dead."""
    if not found.names or found.lock_is_held:
        text = f"A restore is under way in {found.names[0]}." if found.names else "No restore left a database behind."
        return Finding("ok", text)
    return Finding(
        "warn",
        f"{counted(len(found.names), 'database')} of killed restores left behind, {spoken_bytes(found.bytes)}:"
        f" {', '.join(found.names)}.",
        value=found.bytes,
        code="leftovers",
        details={"databases": list(found.names), "bytes": found.bytes},
        remedy=Remedy("The next backup drops them.", f"opsctl backup {database}"),
    )


CHECKS = (
    Check(
        id="lock.stale",
        title="no run was killed",
        probe=check_locks,
        reads="the lock files in the state folder, and whether the processes they name still live",
        why="The lock goes with its holder and stops nobody. But a run that was killed has not done its work, and"
        " nothing else tells of it.",
        fix="Find out what killed it; the next run of that database cleans up after it.",
    ),
    Check(
        id="drill.leftovers",
        title="no killed drill left anything behind",
        probe=check_drills,
        reads="the records of drills in the state folder, and whether the process that holds each still lives",
        why="A folder or a database takes as much room as the database itself, a container memory as well. A container"
        " ends by itself ten minutes after timeout_seconds of [drill]; nothing else does.",
        fix="`opsctl drill` removes it before it begins.",
    ),
)

DATABASE_CHECKS = (
    Check(
        id="db.leftovers",
        title="no killed restore left a database behind",
        probe=check_leftovers,
        reads="databases named DATABASE__opsctl_…, their size, and whether a restore that holds the lock is at work",
        why="They take as much room as the database itself.",
        fix="`opsctl backup` drops them before it begins.",
        grant="pg_monitor, granted to the login: GRANT pg_monitor TO …",
        unit="B",
        after=("db.connect",),
        targets=databases,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
)
