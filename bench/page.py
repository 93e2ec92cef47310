"""Measure the status page and ``/metrics``: `python bench/page.py --backups 10000 --runs 100000`.

A state folder and a repository are filled with what so many runs leave, and `opsctl serve` is started over them.
Once it has listed the repository, each address is asked one request after the other. Everything that was made goes.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
ADDRESSES = ("/", "/metrics", "/api/doctor", "/healthz")
LISTED_WITHIN_SECONDS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backups", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=300)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="opsctl-bench-") as folder:
        fill(Path(folder), wanted.backups, wanted.runs)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "PYTHONPATH": str(ROOT),
            "OPSCTL_STATE_DIR": f"{folder}/state",
        }
        with (Path(folder) / "log").open("wb") as log:
            command = [sys.executable, "-m", "opsctl", "serve", "--port", "0"]
            server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            try:
                port = listening(Path(folder) / "log", server)
                measure(port, wanted.requests)
                print(f"the server's memory: {resident_mib(server.pid):.0f} MiB")
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(timeout=30)


def fill(folder: Path, backups: int, runs: int) -> None:
    """By the records of the tests: tests/web/story.py."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "web")]
    import story  # type: ignore[import-not-found]

    story.fill(folder, backups=backups, runs=runs)


def listening(log: Path, server: "subprocess.Popen[bytes]") -> int:
    while server.poll() is None:
        for line in log.read_text().splitlines():
            if (found := json.loads(line))["event"] == "serve.started":
                return int(urlsplit(found["url"]).port or 0)
        time.sleep(0.05)
    raise SystemExit(log.read_text())


def measure(port: int, requests: int) -> None:
    began = time.monotonic()
    while ask(port, "/api/list?limit=1")[0] != 200:
        if time.monotonic() > began + LISTED_WITHIN_SECONDS:
            raise SystemExit("the repository was not listed")
        time.sleep(0.5)
    print(f"the repository was listed after {time.monotonic() - began:.1f} s")
    print(f"{'':14}{'half within':>12}{'95 of 100':>12}{'all':>12}{'bytes':>12}")
    for address in ADDRESSES:
        took = []
        for _ in range(requests):
            began = time.perf_counter()
            status, size = ask(port, address)
            took.append((time.perf_counter() - began) * 1000)
            assert status == 200, (address, status)
        p95 = statistics.quantiles(took, n=20)[-1]
        print(f"{address:14}{statistics.median(took):9.1f} ms{p95:9.1f} ms{max(took):9.1f} ms{size:12,}")


def ask(port: int, address: str) -> tuple[int, int]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", address)
        answer = connection.getresponse()
        return answer.status, len(answer.read())
    finally:
        connection.close()


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


if __name__ == "__main__":
    main()
