"""A real systemd over this host's files: process 1 of namespaces of its own, with no units but those put there."""

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path("/lib/systemd/systemd")
CGROUPS = Path("/sys/fs/cgroup")
READY_SECONDS = 30

# Nothing of this host is started: what would be wanted is hidden, and what is written goes to memory.
BOOT = """\
set -e
mount -t proc proc /proc
for group in {groups}; do
    mount --bind "$group" "${{group%/*}}"
done
for each in /run /etc/systemd/system /var/lib/systemd /usr/lib/systemd/system-generators \\
        /usr/lib/systemd/system/*.target.wants; do
    mount -t tmpfs tmpfs "$each"
done
mkdir /run/lock
exec {program} --system --unit=basic.target --log-target=console --log-level=warning
"""


@dataclass(frozen=True)
class Systemd:
    pid: int
    log: Path

    def __call__(self, *words: object, check: bool = True, **options) -> subprocess.CompletedProcess:
        """Run a program inside."""
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--wd=/", "--"]
        done = subprocess.run(
            [*inside, *map(str, words)], capture_output=True, text=True, check=False, timeout=120, **options
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self.log.read_text()}"
        return done


@contextmanager
def running(folder: Path) -> Iterator[Systemd]:
    """``folder`` is for its log. Everything is gone afterwards. Needs root."""
    log, name = folder / "systemd.log", f"opsctl-{uuid.uuid4().hex[:8]}"
    boot = folder / "boot"
    groups = [each / name for each in _hierarchies()]
    boot.write_text(BOOT.format(program=PROGRAM, groups=" ".join(map(str, groups))))
    for group in groups:
        group.mkdir()

    def join() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    words = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "sh", boot]
    with log.open("wb") as file:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={"PATH": os.environ["PATH"], "container": "test"},
            preexec_fn=join,  # noqa: PLW1509
        )
    try:
        yield _when_ready(process, log)
    finally:
        process.kill()
        process.wait()
        for group in groups:
            _remove(group)


def _hierarchies() -> list[Path]:
    """Where a group of its own is made in each: systemd sees nothing above it."""
    if (CGROUPS / "cgroup.procs").exists():
        return [CGROUPS]
    return [each for each in CGROUPS.iterdir() if (each / "cgroup.procs").exists() and each.name != "cpuset"]


def _when_ready(process: subprocess.Popen, log: Path) -> Systemd:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with suppress(OSError, ValueError):
            (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            systemd = Systemd(int(child), log)
            if systemd("systemctl", "is-system-running", check=False).stdout.strip() in {"running", "degraded"}:
                return systemd
        time.sleep(0.1)
    raise AssertionError(f"systemd is not up: {log.read_text()}")


def _remove(group: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
        except OSError:  # its processes are not all gone yet
            time.sleep(0.1)
        else:
            return


def missing() -> str | None:
    """What keeps it from running here, if anything."""
    if os.geteuid() != 0:
        return "a systemd of the tests' own needs root"
    lacking = [each for each in ("unshare", "nsenter", "systemctl", PROGRAM) if shutil.which(each) is None]
    return f"not installed: {', '.join(map(str, lacking))}" if lacking else None
