"""PostgreSQL servers: one per test process, started when first asked for."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from opsctl.postgres.binaries import Binaries, choose_server, find_binaries
from opsctl.postgres.cluster import Cluster, throwaway_cluster

FOUND = pytest.StashKey[list[Binaries]]()
SERVER = pytest.StashKey[Binaries | None]()


def pytest_configure(config: pytest.Config) -> None:
    found = find_binaries(search_path=os.environ.get("PATH", "").split(os.pathsep))
    config.stash[FOUND] = found
    config.stash[SERVER] = _chosen_server(found, os.environ.get("OPSCTL_TEST_PG"))


def pytest_report_header(config: pytest.Config) -> str:
    server = config.stash[SERVER]
    found = ", ".join(_described(binaries) for binaries in config.stash[FOUND])
    return f"PostgreSQL: tests run on {_described(server) if server else 'none'}; found {found or 'none'}"


def _chosen_server(found: list[Binaries], wanted: str | None) -> Binaries | None:
    """The newest embedded server, else the newest one; ``OPSCTL_TEST_PG`` names another major."""
    if wanted is None:
        return choose_server([b for b in found if b.embedded], 0) or choose_server(found, 0)
    server = choose_server([b for b in found if str(b.major) == wanted], 0)
    if server is None:
        there = ", ".join(_described(b) for b in found if b.has("postgres", "initdb")) or "none"
        raise pytest.UsageError(f"OPSCTL_TEST_PG={wanted}: no such PostgreSQL server here; found {there}")
    return server


def _described(binaries: Binaries) -> str:
    return f"{binaries.version} ({'embedded' if binaries.embedded else binaries.folder})"


@pytest.fixture(scope="session")
def binaries(pytestconfig: pytest.Config) -> Binaries:
    """The programs of the PostgreSQL the tests run on."""
    server = pytestconfig.stash[SERVER]
    if server is None:
        pytest.fail("These tests need a PostgreSQL server: `make setup` brings one.")
    return server


SERVER_NEEDS_BYTES = 512 << 20
LITTLE_WAL = {"max_wal_size": "128MB"}


@contextmanager
def throwaway_server(
    binaries: Binaries, *, settings: Mapping[str, str] = LITTLE_WAL, listen: bool = False
) -> Iterator[Cluster]:
    """A throwaway cluster in memory, where there is room."""
    with throwaway_cluster(binaries, folder=_memory(), settings={**LITTLE_WAL, **settings}, listen=listen) as running:
        yield running


def _memory() -> Path | None:
    """A folder in memory: a database is 300 new files, and ext4 takes several times as long for them."""
    place = Path("/dev/shm")  # noqa: S108
    servers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if not place.is_dir() or shutil.disk_usage(place).free < servers * SERVER_NEEDS_BYTES:
        return None
    holds_programs = not os.statvfs(place).f_flag & os.ST_NOEXEC
    return place if holds_programs else None


@pytest.fixture(scope="session")
def cluster(binaries: Binaries) -> Iterator[Cluster]:
    """A running server, one per test process."""
    with throwaway_server(binaries) as running:
        yield running


@pytest.fixture(scope="session")
def cluster_of(pytestconfig: pytest.Config) -> Iterator[Callable[[int], Cluster]]:
    """``cluster_of(15)``: a running server of that major, one per test process; skips the test where there is none."""
    running: dict[int, Cluster] = {}
    with ExitStack() as cleanup:

        def of_major(major: int) -> Cluster:
            if major not in running:
                found = choose_server([b for b in pytestconfig.stash[FOUND] if b.major == major], major)
                if found is None:
                    missing = pytest.fail if pytestconfig.getoption("--require-services") else pytest.skip
                    missing(f"no server of PostgreSQL {major} here (Debian: apt-get install postgresql-{major})")
                running[major] = cleanup.enter_context(throwaway_server(found))
            return running[major]

        yield of_major
