"""The file systems that opsctl and its databases write to: room, inodes, and when there will be none left."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from opsctl.checks.amounts import spoken_bytes
from opsctl.checks.check import Check, Finding, Remedy, Target, Thresholds
from opsctl.checks.databases import LANE, NOT_CONFIGURED, databases
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import spoken

MOUNTS = Path("/proc/self/mountinfo")
TREND_SECONDS = 900
"""Points over less than that are no trend: a dump that is being written would be one."""

WARN_HOURS, CRIT_HOURS = 24, 4
WARN_BELOW_PERCENT, CRIT_BELOW_PERCENT = 40, 20


@dataclass(frozen=True)
class FileSystem:
    """A mounted file system, and what of ours is on it, by name."""

    mount: str
    device: str
    paths: dict[str, Path]


def file_systems(scope: Scope) -> list[FileSystem]:
    """Those of all configured paths. From the kernel's list alone: a mount that hangs would hang whoever touches it."""
    mounts = _mounts()
    found: dict[str, FileSystem] = {}
    for name, path in configured_paths(scope).items():
        mount, device = mount_of(path, mounts)
        found.setdefault(device, FileSystem(mount, device, {})).paths[name] = path
    return list(found.values())


def configured_paths(scope: Scope) -> dict[str, Path]:
    """Where opsctl writes to on this host, by what it is."""
    local = {name: local_path(scope.config.repository_url(name)) for name in scope.config.repositories}
    repositories = {f"repository {name}": path for name, path in local.items() if path is not None}
    own = {"state": scope.config.state_path}
    if not scope.config.staging_path.is_relative_to(scope.config.state_path):
        own["staging"] = scope.config.staging_path
    return {name: Path(os.path.normpath(path)) for name, path in {**repositories, **own}.items()}


def local_path(url: str) -> Path | None:
    """The folder of a repository on this host."""
    parts = urlsplit(url)
    if "://" not in url:
        return Path(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _mounts() -> list[tuple[str, str]]:
    return read_mounts(MOUNTS.read_text()) if MOUNTS.exists() else [("/", "")]


def read_mounts(mountinfo: str) -> list[tuple[str, str]]:
    """(mount point, device) of every line of mountinfo, the last mounted last."""
    lines = [line.split(" ") for line in mountinfo.splitlines()]
    return [(_unescaped(fields[4]), fields[2]) for fields in lines if len(fields) > 4]


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def mount_of(path: Path, mounts: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The mount that ``path`` lies in: the longest that leads there, the last of several over each other."""
    inside = [each for each in mounts if path.is_relative_to(each[0])]
    return max(reversed(inside), key=lambda each: len(Path(each[0]).parts), default=("/", ""))


def disks(scope: Scope) -> Iterable[Target]:
    return [Target(each.mount) for each in file_systems(scope)]


def mounts_of(scope: Scope, repository: str) -> tuple[str, ...]:
    """The disk that a repository is on, as a target."""
    return tuple(each.mount for each in file_systems(scope) if f"repository {repository}" in each.paths)


@dataclass(frozen=True)
class Room:
    """How much is left of something, and of how much."""

    free: float
    total: float

    @property
    def percent(self) -> float:
        return 100 * self.free / self.total if self.total else 100.0


def check_space(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    system = _file_system(scope, target)
    room = _space(next(iter(system.paths.values())))
    points = scope.samples.history("disk.space", target, room.free, now=scope.clock())
    return judge_space(target, room, thresholds, left=seconds_left(points), used_by=list(system.paths))


def check_inodes(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    system = _file_system(scope, target)
    status = os.statvfs(_nearest(next(iter(system.paths.values()))))
    room = Room(status.f_favail, status.f_files)
    points = scope.samples.history("disk.inodes", target, room.free, now=scope.clock())
    return judge_inodes(target, room, thresholds, left=seconds_left(points))


def check_data_directory(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.server import mapped_errors, one

    server = scope.server(target)
    with mapped_errors():
        (name,) = one(scope.session(target), "show data_directory")
    folder = Path(name)
    if not _is_here(server.host, folder):
        return Finding(
            "skip", "The server's disk cannot be seen from here: it is on another machine, or in a container."
        )
    if any(each.device == mount_of(folder, _mounts())[1] for each in file_systems(scope)):
        return Finding("skip", f"{folder} is on the same disk as what opsctl writes: disk.space looks at it.")
    room = _space(folder)
    points = scope.samples.history("db.disk", target, room.free, now=scope.clock())
    return judge_space(str(folder), room, thresholds, left=seconds_left(points), used_by=["the server's data"])


def _is_here(host: str, folder: Path) -> bool:
    """Whether the server's data folder is the one of that name here. A port of this host may lead into a container."""
    if host.startswith("/"):
        return folder.is_dir()
    return host in {"localhost", "127.0.0.1", "::1"} and os.access(folder / "postmaster.pid", os.R_OK)


def free_for_wal(host: str, data_directory: str) -> float | None:
    """Free bytes where a server on this host writes its WAL; None where that cannot be seen."""
    folder = Path(data_directory)
    if _is_here(host, folder):
        for path in (folder / "pg_wal", folder):
            with suppress(OSError):
                return _space(path).free
    return None


def _file_system(scope: Scope, mount: str) -> FileSystem:
    return next(each for each in file_systems(scope) if each.mount == mount)


def _nearest(path: Path) -> Path:
    """The folder itself, or the nearest one above that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def _space(path: Path) -> Room:
    status = os.statvfs(_nearest(path))
    return Room(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)


def seconds_left(points: Sequence[tuple[float, float]]) -> float | None:
    """When a line through (time, free) reaches zero, counted from the last point; None when it never does."""
    if len(points) < 3 or points[-1][0] - points[0][0] < TREND_SECONDS:
        return None
    mean_time = sum(time for time, _ in points) / len(points)
    mean_free = sum(free for _, free in points) / len(points)
    spread = sum((time - mean_time) ** 2 for time, _ in points)
    slope = sum((time - mean_time) * (free - mean_free) for time, free in points) / spread
    return points[-1][1] / -slope if slope < 0 else None


def judge_space(
    place: str, room: Room, thresholds: Thresholds, *, left: float | None, used_by: Sequence[str] = ()
) -> Finding:
    """By the share that is free, and by when it will be used up."""
    free = f"{spoken_bytes(room.free)} of {spoken_bytes(room.total)} are free ({room.percent:.0f} %)"
    remedy = Remedy(
        "See what fills it, then delete, move or enlarge.", f"du -xh --max-depth=2 {place} | sort -h | tail -20"
    )
    details = {"free_bytes": room.free, "total_bytes": room.total, "used_by": list(used_by), "seconds_left": left}
    return _judged(f"{place}: {free}", room, thresholds, left, remedy, details)


def judge_inodes(place: str, room: Room, thresholds: Thresholds, *, left: float | None) -> Finding:
    if not room.total:
        return Finding("ok", f"{place}: this file system makes inodes as it needs them.")
    remedy = Remedy(
        "Something makes very many small files: find and delete them.",
        f"du -x --inodes --max-depth=2 {place} | sort -n | tail -20",
    )
    details = {"free": room.free, "total": room.total, "seconds_left": left}
    return _judged(f"{place}: {room.percent:.0f} % of the inodes are free", room, thresholds, left, remedy, details)


def _judged(
    text: str, room: Room, thresholds: Thresholds, left: float | None, remedy: Remedy, details: Mapping[str, object]
) -> Finding:
    status, code = thresholds.judge(room.percent), "full"
    if left is not None and left < WARN_HOURS * 3600 and room.percent < WARN_BELOW_PERCENT:
        text += f"; at this rate none are in {spoken(left)}"
        code = code if status != "ok" else "filling"
        is_soon = left < CRIT_HOURS * 3600 and room.percent < CRIT_BELOW_PERCENT
        status = "crit" if is_soon or status == "crit" else "warn"
    return Finding(
        status,
        f"{text}.",
        value=round(room.percent, 1),
        code=None if status == "ok" else code,
        remedy=None if status == "ok" else remedy,
        details=details,
    )


TREND = (
    f"A line through the last hours counts too: full within {WARN_HOURS} h with less than {WARN_BELOW_PERCENT} % free"
    f" warns, within {CRIT_HOURS} h with less than {CRIT_BELOW_PERCENT} % is critical. The thresholds are those of"
    " node_exporter's own alerts."
)

CHECKS = (
    Check(
        id="disk.space",
        title="the disks have room",
        probe=check_space,
        reads="the free space of every file system with a repository, the state folder or staging_path on it",
        why=f"A full disk ends backups, and a server on it as well. {TREND}",
        fix="See what fills the disk, then delete, move or enlarge.",
        thresholds=Thresholds(warn=5, crit=3, falling=True),
        unit="%",
        targets=disks,
    ),
    Check(
        id="disk.inodes",
        title="the disks can take more files",
        probe=check_inodes,
        reads="the free inodes of every file system with a repository, the state folder or staging_path on it",
        why=f"Without inodes no file can be made, however much room there is. {TREND}",
        fix="Something makes very many small files: find and delete them.",
        thresholds=Thresholds(warn=5, crit=3, falling=True),
        unit="%",
        targets=disks,
    ),
)

DATABASE_CHECKS = (
    Check(
        id="db.disk",
        title="the server's disk has room",
        probe=check_data_directory,
        reads="the free space where data_directory is, for a server on this host",
        why=f"A server whose disk is full stops. {TREND}",
        fix="Free space there, but never inside the data folder by hand; or enlarge the disk.",
        grant="pg_monitor, granted to the login: GRANT pg_monitor TO …",
        thresholds=Thresholds(warn=5, crit=3, falling=True),
        unit="%",
        after=("db.connect",),
        targets=databases,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
)
