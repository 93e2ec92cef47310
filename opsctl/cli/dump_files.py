from pathlib import Path
from typing import TYPE_CHECKING

from opsctl.errors import UsageError

if TYPE_CHECKING:
    from opsctl.cli.session import Session
    from opsctl.dumps.examine import Examined


def examine_file(session: "Session", path: Path) -> "Examined":
    """Read a dump to its end, before anything is done with it. Raises BackupDamaged, Refused and NoSuchBackup."""
    from opsctl.dumps.examine import examine
    from opsctl.dumps.file import recognise

    dump = recognise(path, session.tools)
    try:
        return examine(dump, session.progress(f"Reading {path}", dump.size_bytes))
    finally:
        session.output.stop_progress()


def database_of(session: "Session", examined: "Examined", named: str | None, *, by_content: bool = False) -> str:
    """The configured database that a dump belongs to: the named one, else the only one. Raises UsageError.

    ``by_content``: else the one that the dump itself is of; not where the wrong one would be replaced.
    """
    if named is not None:
        session.config.database(named)
        return named
    configured = list(session.config.databases)
    if len(configured) == 1:
        return configured[0]
    if not configured:
        session.config.database("")  # says what to do
    inside = [each for each in configured if each in examined.names]
    if by_content and len(inside) == 1:
        return inside[0]
    found = f" The dump is of {', '.join(examined.names)}." if examined.names else ""
    raise UsageError(
        f"To which database does {examined.dump.path} belong? There are {', '.join(configured)}.{found}",
        hint=f"--database names it, for example --database {_likely(examined, configured)}.",
    )


def _likely(examined: "Examined", configured: list[str]) -> str:
    name = examined.dump.path.name
    fitting = [each for each in configured if each in examined.names or name.startswith(each)]
    return (fitting or configured)[0]
