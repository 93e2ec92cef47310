"""Services from Debian's packages: run by hand, on 127.0.0.1 or a socket, and gone with the test."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> Iterator[Any]:
    """A Docker engine of the tests' own, see engine.py. Its tests are one xdist group: one engine serves them all."""
    spec = importlib.util.spec_from_file_location("engine", Path(__file__).with_name("engine.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine"] = module
    spec.loader.exec_module(module)
    missing = module.missing()
    if missing is not None:
        text = f"no Docker engine: {missing}"
        pytest.fail(text) if pytestconfig.getoption("--require-services") else pytest.skip(text)
    with module.running() as running:
        yield running


@pytest.fixture(scope="session")
def compose_plugin(engine: Any, pytestconfig: pytest.Config) -> Path:
    """A ``DOCKER_CONFIG`` with compose v2 in it, see engine.py; kept from run to run."""
    assert pytestconfig.cache is not None
    try:
        found: Path = sys.modules["engine"].compose_plugin(pytestconfig.cache.mkdir("compose-v2"))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        text = f"no compose v2: {error}"
        return pytest.fail(text) if pytestconfig.getoption("--require-services") else pytest.skip(text)
    return found
