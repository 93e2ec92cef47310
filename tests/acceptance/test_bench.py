"""The benchmark runs: every part of it, at a size that says nothing."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.acceptance


@pytest.fixture
def folder():
    """One that the server's account can enter, unlike pytest's."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_the_benchmark_measures_everything_and_leaves_nothing(folder):
    """Every part has its table, nothing of opsctl's fails, and of servers, dumps and repositories nothing stays."""
    command = [sys.executable, "-m", "bench", "--print", "--sizes", "0.002", "--tables", "5"]
    command += ["--rounds", "1", "--backups", "10", "--folder", folder]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=True)

    for title in ("backup: 0.002 GiB", "restore: 0.002 GiB", "list: 0.002 GiB", "start: 0.002 GiB", "backup: 5 tables"):
        assert f"\n### {title}, " in done.stdout
    assert "left out: opsctl" not in done.stderr
    assert list(folder.iterdir()) == []
