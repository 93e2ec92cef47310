"""The files and processes of throwaway servers: whose they are, where they lie, and what is left of them."""

import errno
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from opsctl.errors import OpsctlError

PREFIX = "opsctl-"
"""What the folder of such a server is called, and then something random."""

ENDING_SECONDS = 30
"""So long a server that has been ended may still be at its files."""

_HIGHEST_PORT = 65535
_SOCKET_PATH_LIMIT = 107
_SHORT_FOLDER = Path("/tmp")  # noqa: S108


def find_account(os_users: Sequence[str]) -> pwd.struct_passwd | None:
    """Who runs the server when root asks for one; None: whoever asks."""
    if os.geteuid() != 0:
        return None
    for name in os_users:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise OpsctlError(
        f"PostgreSQL does not run as root, and there is no user {' or '.join(os_users)} to run it as.",
        hint="Create one (`useradd --system postgres`), or run opsctl as another user than root.",
    )


def enterable_folder(account: pwd.struct_passwd | None) -> Path:
    """Where temporary files go, or /tmp when that is a private folder the server's account cannot enter."""
    folder = Path(tempfile.gettempdir())
    if account is None:
        return folder
    as_account: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    enters = subprocess.run(["/usr/bin/test", "-x", folder], check=False, **as_account)
    return folder if enters.returncode == 0 else _SHORT_FOLDER


def make_socket_folder(home: Path) -> Path:
    """A folder for the socket: inside ``home`` where its path is not too long for a socket."""
    folder = home / "socket"
    if len(os.fsencode(folder / f".s.PGSQL.{_HIGHEST_PORT}")) > _SOCKET_PATH_LIMIT:
        folder = _distant_sockets(home)
    folder.mkdir(mode=0o700)
    return folder


def _distant_sockets(home: Path) -> Path:
    return _SHORT_FOLDER / f"{home.name}.socket"


def temporary_folder(os_users: Sequence[str]) -> Path:
    """Where the files of a throwaway server go by default."""
    return enterable_folder(find_account(os_users))


def remove_remains(folder: Path) -> None:
    """Remove the throwaway servers that a killed program has left in ``folder``, and the folder; none is fine.

    Raises OSError when something cannot be removed.
    """
    for home in folder.glob(f"{PREFIX}*"):
        _kill_server(home / "data")
        with suppress(FileNotFoundError):
            shutil.rmtree(_distant_sockets(home))
    remove_tree(folder)


def remove_tree(folder: Path) -> None:
    """Remove ``folder`` with all that is in it, though a server that is still ending removes and writes files, too.

    Raises OSError when something cannot be removed, or comes again and again.
    """
    deadline = time.monotonic() + ENDING_SECONDS
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTEMPTY} or time.monotonic() > deadline:
                raise


def _kill_server(data: Path) -> None:
    """The kernel has ended it with its parent; where it does not do that, it still runs."""
    with suppress(OSError, ValueError, IndexError):
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        if Path(f"/proc/{pid}/cwd").resolve() == data.resolve():
            for each in (pid, *children(pid)):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)


def copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.a", "pkgconfig", "pgxs"))


def open_for_reading(folder: Path) -> None:
    """Let everybody read the copied programs; nobody but us may change them."""
    for parent, _, files in os.walk(folder):
        Path(parent).chmod(0o755)
        for name in files:
            file = Path(parent, name)
            file.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue
        # The name in parentheses may hold anything; the parent's pid is the second field after it.
        if int(status.rpartition(")")[2].split()[1]) == pid:
            found.append(int(entry.name))
    return found


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
