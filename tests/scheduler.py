"""Which worker runs a test: those that share something take it from one worker, all others whoever is free."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class BySharing(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _shared(config.rootpath / nodeid.partition("::")[0]) or nodeid

    return BySharing(config, log)


@cache
def _shared(module: Path) -> str | None:
    """The ``xdist_group`` of a module, or its own name if it has a fixture, a server mostly, for all of its tests."""
    text = module.read_text(encoding="utf-8")
    named = re.search(r'xdist_group\("(\w+)"\)', text)  # xdist's own way of that is lost on pytest 9.2
    if named:
        return named[1]
    return str(module) if 'scope="module"' in text else None
