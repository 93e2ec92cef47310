"""A real server, real databases and the real program for every test; nothing outside this machine, nothing in HOME."""

import hypothesis
import pytest

pytest_plugins = ("scheduler", "isolation", "servers", "databases", "program", "backups", "canned_engine")

hypothesis.settings.register_profile("opsctl", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("opsctl")


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "a service that a test needs and does not find fails the test instead of skipping it"
    parser.addoption("--require-services", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    # From Python 3.12 on, starting a child with a preexec_fn while threads run warns. Ours make one C call.
    config.addinivalue_line("filterwarnings", "ignore:.*multi-threaded, use of fork:DeprecationWarning")
