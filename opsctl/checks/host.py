"""The machine itself: its memory, and whether its clock is kept right."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

from opsctl.checks.amounts import spoken_bytes
from opsctl.checks.check import Check, Finding, Remedy, Thresholds
from opsctl.checks.scope import Scope
from opsctl.errors import OpsctlError

MEMORY = Path("/proc/meminfo")
UNSYNCHRONISED = 0x40
_TIMEX_BYTES = 512
"""More than struct timex has on any machine; only its beginning is looked at."""


def check_memory(_scope: Scope, _target: str, thresholds: Thresholds) -> Finding:
    try:
        found = read_memory(MEMORY.read_text())
    except (OSError, KeyError, ValueError) as error:
        raise OpsctlError(f"{MEMORY} does not say how much memory is left.", hint="Is /proc mounted?") from error
    return judge_memory(found, thresholds)


@dataclass(frozen=True)
class Memory:
    available: int
    total: int
    swap_free: int


def read_memory(meminfo: str) -> Memory:
    """Bytes, from the kernel's kB."""
    values = {line.partition(":")[0]: line.split()[1] for line in meminfo.splitlines() if ":" in line}
    return Memory(*(int(values[name]) * 1024 for name in ("MemAvailable", "MemTotal", "SwapFree")))


def judge_memory(found: Memory, thresholds: Thresholds) -> Finding:
    percent = 100 * found.available / max(found.total, 1)
    status = thresholds.judge(percent)
    return Finding(
        status,
        f"{spoken_bytes(found.available)} of {spoken_bytes(found.total)} memory are available ({percent:.0f} %).",
        value=round(percent, 1),
        details={"available_bytes": found.available, "total_bytes": found.total, "swap_free_bytes": found.swap_free},
        remedy=None
        if status == "ok"
        else Remedy("See which process has taken it, and restart or limit that.", "ps aux --sort=-rss | head"),
    )


@dataclass(frozen=True)
class KernelClock:
    """What the kernel knows of its own clock; it may be off by ``maximum_error_seconds``."""

    is_synchronised: bool
    maximum_error_seconds: float


def check_clock(_scope: Scope, _target: str, _thresholds: Thresholds) -> Finding:
    return judge_clock(read_clock())


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
    )


def read_clock() -> KernelClock:
    """By adjtimex without changing anything, which everybody may call. Raises OpsctlError."""
    space = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(space)
    except AttributeError:
        state = -1
    if state < 0:
        raise OpsctlError("The kernel does not say whether its clock is synchronised.", hint="Look with `timedatectl`.")
    found = _Timex.from_buffer(space)
    return KernelClock(not found.status & UNSYNCHRONISED, found.maxerror / 1_000_000)


def judge_clock(found: KernelClock) -> Finding:
    details = {"maximum_error_seconds": found.maximum_error_seconds}
    if found.is_synchronised:
        text = f"The clock is synchronised; it may be off by {found.maximum_error_seconds:.3f} s."
        return Finding("ok", text, details=details)
    return Finding(
        "warn",
        "Nothing on this machine keeps its clock right: the kernel calls it unsynchronised.",
        code="unsynchronised",
        details=details,
        remedy=Remedy("Turn time synchronisation on; chrony does it, too.", "timedatectl set-ntp true"),
    )


CHECKS = (
    Check(
        id="memory",
        title="memory is left",
        probe=check_memory,
        reads="MemAvailable and MemTotal of /proc/meminfo",
        why="When nothing is left the kernel kills the largest process, which is PostgreSQL or the application. Below"
        " 10 % the page cache is going and everything slows down; at 5 % one more request may be too much.",
        fix="See which process has taken it, and restart or limit that.",
        thresholds=Thresholds(warn=10, crit=5, falling=True),
        unit="%",
    ),
    Check(
        id="clock",
        title="the clock is kept right",
        probe=check_clock,
        reads="the kernel's own word on it (adjtimex)",
        why="Schedules, retention and logs go by this clock. Many virtual machines get their time from outside and look"
        " unsynchronised all their life: so this runs only where it is asked for. db.clock and repository.clock"
        " compare with other clocks, always.",
        fix="Turn time synchronisation on (systemd-timesyncd, chrony).",
        opt_in=True,
    ),
)
