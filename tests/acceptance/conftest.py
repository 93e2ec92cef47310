"""Services from Debian's packages: run by hand, on 127.0.0.1 or a socket, and gone with the test."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def need(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """``need("pgbouncer")``: where the program is; without it the test is skipped, or fails with --require-services."""

    def find(program: str) -> Path:
        found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if found is not None:
            return Path(found)
        text = f"{program} is not installed: `make acceptance` installs it as root"
        return pytest.fail(text) if pytestconfig.getoption("--require-services") else pytest.skip(text)

    return find
