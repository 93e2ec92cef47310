"""The record of runs under load, under kill -9, and read by another user."""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

import opsctl
from opsctl.history import Ending, History

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

NOW = datetime(2026, 11, 24, tzinfo=UTC)

WORKER = """
import os, sys, time
from datetime import UTC, datetime
from pathlib import Path
from opsctl.errors import HistoryUnavailable
from opsctl.history import Ending, History

def patiently(step):
    while True:
        try:
            return step()
        except HistoryUnavailable as error:
            if "locked" not in error.message:
                raise

history = History(Path(sys.argv[1]))
for line in sys.stdin:
    run, at = line.strip(), datetime.now(UTC)
    patiently(lambda: history.begin(run, "backup", at=at, host="here", pid=os.getpid(), databases=["a"]))
    print("begun", flush=True)
    time.sleep(0.002)
    patiently(lambda: history.end(run, [Ending("a", "done", 0, bytes=1)], at=datetime.now(UTC)))
    print("ended", flush=True)
"""


class Worker:
    """A process that records runs, one at a time; killed, another one takes its place."""

    def __init__(self, path, seed):
        self._path = path
        self._chance = random.Random(seed)  # noqa: S311
        self._process = None
        self.begun, self.ended = set(), set()

    def record(self, run):
        process = self._process = self._process or self._start()
        process.stdin.write(f"{run}\n")
        process.stdin.flush()
        kill = self._chance.choice([None] * 14 + ["anywhere", "between"])
        if kill == "anywhere":
            time.sleep(self._chance.random() / 50)
            process.kill()
        for reached in (self.begun, self.ended):
            if process.stdout.readline():
                reached.add(run)
            if kill == "between":
                process.kill()
        if kill:
            self.stop()

    def stop(self):
        if self._process:
            self._process.communicate()
            self._process = None

    def _start(self):
        code = [sys.executable, "-c", WORKER, str(self._path)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(opsctl.__file__).parents[1])}
        return subprocess.Popen(code, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_thousand_runs_of_four_processes_and_kill_9(tmp_path):
    """1,000 runs by 4 processes at once, kill -9 among them: nothing is lost but the ends of those that were killed."""
    path = tmp_path / "history.db"
    workers = [Worker(path, seed) for seed in range(4)]

    def work(worker, name):
        for number in range(250):
            worker.record(f"{name}-{number}")
        worker.stop()

    threads = [threading.Thread(target=work, args=(worker, name)) for name, worker in enumerate(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = History(path)
    history.notice_lost(at=datetime.now(UTC), host="here")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    found = {run.run_id: run.outcome for run in history.runs()}
    begun, ended = (set().union(*(getattr(each, word) for each in workers)) for word in ("begun", "ended"))
    assert begun <= found.keys()
    assert {found[run] for run in ended} == {"done"}
    outcomes = list(found.values())
    assert set(outcomes) == {"done", "lost"}
    assert history.totals() == {("backup", "a", word): outcomes.count(word) for word in ("done", "lost")}
    killed = 1000 - len(ended)
    assert len(found) >= 1000 - killed
    assert 10 < outcomes.count("lost") <= killed


@pytest.fixture
def shared():
    """A state folder of root's and the group daemon, where another user gets to."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    shutil.chown(folder, "root", "daemon")
    folder.chmod(0o750)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
def test_another_user_of_the_group_reads_it(shared):
    """Root writes; daemon, who may write nothing there, reads all of it: between runs, and while one writes."""
    path = shared / "history.db"
    history = History(path)
    for number in range(3):
        history.begin(f"r{number}", "backup", at=NOW, host="here", pid=os.getpid())
        history.end(f"r{number}", [Ending("a", "done", 0)], at=NOW)
        assert _read_as(path, "daemon") == str(number + 1)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("begin immediate")
    writer.execute("delete from runs")
    assert _read_as(path, "daemon") == "3"
    writer.close()
    assert "denied" in _read_as(path, "nobody")


def _read_as(path, user):
    """How many runs a user sees, or why not."""
    # The interpreter of the tests may be where only root gets to; SQLite is the same in any.
    code = (
        "import sqlite3, sys\n"
        "try:\n    open(sys.argv[1]).close()\nexcept OSError as error:\n    sys.exit(print(error.strerror))\n"
        "connection = sqlite3.connect(f'file:{sys.argv[1]}?mode=rw', uri=True)\n"
        "print(connection.execute('select count(*) from runs').fetchone()[0])"
    )
    command = ["/usr/sbin/runuser", "-u", user, "--", "/usr/bin/python3", "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=60)
    return (done.stdout or done.stderr).strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
@pytest.mark.parametrize("state", ["read-only", "full"])
def test_state_folder_that_takes_nothing(run_opsctl, saas, state):
    """A state folder that is full or read-only costs warnings: the backup is taken, verified and restored."""
    run_opsctl.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", run_opsctl.state], check=True)
    try:
        if state == "full":
            with suppress(OSError), (run_opsctl.state / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        else:
            subprocess.run(["mount", "-o", "remount,ro", run_opsctl.state], check=True)
        for words in (["backup"], ["verify"], ["restore", "latest", "--into", f"{saas.name}_copy"]):
            run = run_opsctl(*words, "--json", url=saas.url)
            assert run.returncode == 0, run
            loud = [line for line in map(json.loads, run.stderr.splitlines()) if line["level"] != "info"]
            events = [line["event"] for line in loud]
            assert events.count("history.unwritten") == 1, run
            assert set(events) <= {"history.unwritten", "metrics.unseen"}, run
    finally:
        subprocess.run(["umount", run_opsctl.state], check=True)
