"""What opsctl is meant to reach: ratios of two contenders in one run, and bounds of its memory. Pure."""

from dataclasses import dataclass
from typing import Literal

BACKUP = "opsctl backup"
LIMIT = "pg_dump -Fc -Z0 > /dev/null"
HELLO = "Typer's hello --help"
MIB = 1 << 20

Amount = Literal["seconds", "stored_bytes", "python_bytes"]


@dataclass(frozen=True)
class Target:
    """``of`` divided by the best of ``by`` is at most ``most``; without ``by`` it is an amount of its own.

    ``is_difference``: less the best of ``by``, instead of divided by it.
    """

    what: str
    of: str
    most: float
    by: tuple[str, ...] = ()
    amount: Amount = "seconds"
    is_difference: bool = False


def targets(jobs: int, backups: int) -> list[Target]:
    """All of them; those whose contenders were not run are not judged."""
    listed, planned = (f"opsctl {words}, {backups:,} backups" for words in ("list", "prune --dry-run"))
    return [
        Target("backup against the limit", BACKUP, 1.1, (LIMIT,)),
        Target("backup against `pg_dump -Fc`", BACKUP, 0.33, ("pg_dump -Fc",)),
        Target("backup against `pg_dump | gzip`", BACKUP, 0.28, ("pg_dump | gzip",)),
        Target("backup against restic, the same stream", BACKUP, 0.5, ("pg_dump | restic",)),
        Target("backup against borg, the same stream", BACKUP, 0.5, ("pg_dump | borg",)),
        Target("backup against pgBackRest", BACKUP, 1.0, (f"pgBackRest, process-max={jobs}",)),
        Target("encrypted against not", "opsctl backup, encrypted", 1.05, (BACKUP,)),
        Target("counts against no facts", BACKUP, 1.05, ("opsctl backup, facts none",)),
        Target("S3 against a folder", "opsctl backup, S3", 1.15, (BACKUP,)),
        Target("two repositories against one", "opsctl backup, two repositories", 1.2, (BACKUP,)),
        Target("stored size against `pg_dump -Fc`", BACKUP, 1.0, ("pg_dump -Fc",), "stored_bytes"),
        Target("memory, to a folder (MiB)", BACKUP, 120, (), "python_bytes"),
        Target("memory, to S3 (MiB)", "opsctl backup, S3", 250, (), "python_bytes"),
        Target(
            "restore against the best pg_restore", "opsctl restore", 1.05, tuple(f"pg_restore -j{n}" for n in (1, 2, 4))
        ),
        Target("verify against a restore", "opsctl verify", 1 / 3, ("opsctl restore",)),
        Target("list (seconds)", listed, 1.0),
        Target("planning a prune on top (seconds)", planned, 0.5, (listed,), is_difference=True),
        Target("list of a bucket (seconds)", f"{listed} in S3", 3.0),
        Target("`opsctl --help` against Typer's hello", "opsctl --help", 1.3, (HELLO,)),
        Target("`opsctl config show` against Typer's hello", "opsctl config show", 2.5, (HELLO,)),
    ]


def targets_of_tables() -> list[Target]:
    return [Target("many tables against `pg_dump -Fc`", BACKUP, 1.2, ("pg_dump -Fc",))]
