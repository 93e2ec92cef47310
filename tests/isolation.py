"""What no test may do."""

import ipaddress
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CALLERS_VARIABLES = ("PG", "AWS_", "OPSCTL_", "SENTRY_", "DATABASE_URL", "DOCKER_", "COMPOSE_")
"""Prefixes of what a developer's shell may hold and no test may see."""


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does that to what it runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a test starts would inherit it


@pytest.fixture(autouse=True, scope="session")
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No connection leaves this machine, HOME stays empty, the developer's variables are out of sight."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(CALLERS_VARIABLES)]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        sys.addaudithook(_only_this_machine)
        yield
    assert_empty(home)


def _only_this_machine(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"socket.connect", "socket.sendto"}:
        address = arguments[-1]
        host = address[0] if isinstance(address, tuple) and address else None
        if isinstance(host, str) and not _is_here(host):
            # No subclass of Exception: the program under test may not mistake it for a network failure.
            pytest.fail(f"A test tried to reach {host}: tests stay on this machine.")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def assert_empty(home: Path) -> None:
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
    assert not left, f"Something wrote to HOME: {', '.join(left)}"
