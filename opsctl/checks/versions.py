"""Whether the client programs here fit the server."""

from typing import TYPE_CHECKING

from opsctl.checks.check import Check, Finding, Remedy, Thresholds
from opsctl.checks.databases import LANE, NOT_CONFIGURED, PER_SERVER, servers
from opsctl.checks.scope import Scope
from opsctl.errors import ConfigurationError

if TYPE_CHECKING:
    from opsctl.postgres.binaries import Binaries


def check_version_skew(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    major = scope.session(target).info.server_version // 10000
    try:
        chosen = scope.tools_of(target).for_dump(major)
    except ConfigurationError as error:
        hint = Remedy(error.hint or f"Install PostgreSQL's client programs of major {major} or newer.")
        return Finding("crit", error.message, code="version_skew", details={"server_major": major}, remedy=hint)
    return judge_version_skew(chosen, major)


def judge_version_skew(chosen: "Binaries", server_major: int) -> Finding:
    """The pg_dump a backup would use: there is one."""
    newer = "" if chosen.major == server_major else f"; there is none of {server_major} itself"
    return Finding(
        "ok",
        f"pg_dump {chosen.version} fits the server's PostgreSQL {server_major}{newer}.",
        details={"server_major": server_major, "pg_dump": chosen.version, "folder": str(chosen.folder)},
    )


CHECKS = (
    Check(
        id="db.version_skew",
        title="there is a pg_dump for the server",
        probe=check_version_skew,
        reads="the server's version, and the version of every pg_dump a backup could use, here or in the database's"
        " container",
        why="pg_dump refuses a server newer than itself: after an upgrade of the server the next backup fails."
        f" {PER_SERVER}",
        fix="Install PostgreSQL's client programs of the server's major version.",
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
)
