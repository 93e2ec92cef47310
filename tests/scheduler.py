"""Which worker runs a test."""

import re
from typing import Any

import pytest


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what has one ``xdist_group``: xdist's own way of that is lost on pytest 9.2."""
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            text = (config.rootpath / nodeid.partition("::")[0]).read_text(encoding="utf-8")
            named = re.search(r'xdist_group\("(\w+)"\)', text)
            return named[1] if named else nodeid

    return ByGroup(config, log)
