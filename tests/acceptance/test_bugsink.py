"""Runs of opsctl, read back from the database of a real Sentry-compatible server: Bugsink, from PyPI."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing

import pytest

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

CANARY = "hunter2-canary"
NOWHERE = f"postgresql://me:{CANARY}@127.0.0.1:1/app"


@pytest.fixture(scope="module")
def programs(pytestconfig):
    """Where Bugsink's programs are; installed once, kept from run to run."""
    folder = pytestconfig.cache.mkdir("bugsink")
    if not (folder / "done").exists():
        shutil.rmtree(folder / "venv", ignore_errors=True)
        try:
            environment = {**os.environ, "HOME": str(folder)}  # pip asks rustc, which may write there
            subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, env=environment)
            install = [folder / "venv/bin/pip", "install", "--quiet", "bugsink>=2.6"]
            subprocess.run(install, check=True, capture_output=True, env=environment)
        except subprocess.CalledProcessError as error:
            text = f"Bugsink cannot be installed: {error.stderr or error}"
            pytest.fail(text) if pytestconfig.getoption("--require-services") else pytest.skip(text)
        (folder / "done").touch()
    return folder / "venv/bin"


class Bugsink:
    """A running server with one project: ``dsn``; ``events()`` from its own database."""

    def __init__(self, programs, folder):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._programs = programs
        self._environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(folder), "HOME": str(folder)}
        self._run("bugsink-create-conf", "--template=local", "--host=127.0.0.1", f"--port={self.port}")
        self._run("bugsink-manage", "migrate")
        self._run("bugsink-manage", "migrate", "snappea", "--database=snappea")
        self.token = self._run("bugsink-manage", "create_auth_token").split()[-1]
        self.process = None

    def _run(self, program, *arguments):
        command = [self._programs / program, *arguments]
        options = {"cwd": self.folder, "env": self._environment, "capture_output": True, "text": True}
        return subprocess.run(command, check=True, **options).stdout

    def start(self):
        with (self.folder / "log").open("w") as log:
            command = [self._programs / "gunicorn", f"--bind=127.0.0.1:{self.port}", "--threads=2", "bugsink.wsgi"]
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def ask(self, path, data=None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/canonical/0/{path}",
            data=json.dumps(data).encode() if data is not None else None,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    @property
    def databases(self):
        return [path for path in self.folder.rglob("*.sqlite3") if path.name != "snappea.sqlite3"]

    def events(self):
        """What the server keeps of each event, the oldest first."""
        (database,) = self.databases
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            rows = connection.execute("select data from events_event order by ingested_at, digest_order").fetchall()
        return [json.loads(row[0]) for row in rows]

    def issues(self):
        (database,) = self.databases
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            query = "select calculated_value, digested_event_count from issues_issue order by first_seen"
            return connection.execute(query).fetchall()


@pytest.fixture
def bugsink(programs, tmp_path):
    folder = tmp_path / "bugsink"
    folder.mkdir()
    server = Bugsink(programs, folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def dsn(bugsink):
    team = bugsink.ask("teams/", {"name": "ops"})
    project = bugsink.ask("projects/", {"name": "opsctl", "team": team["id"]})
    return bugsink.ask(f"projects/{project['id']}/")["dsn"]


def test_a_real_server_keeps_failures_without_secrets(run_opsctl, saas, bugsink, dsn):
    """Two equal nights are one issue, another cause is another one; what happened while it was down arrives later."""
    work = run_opsctl.work
    (work / "file").touch()
    (work / "opsctl.toml").write_text(
        f'[databases.app]\nurl = "{NOWHERE}"\n[repositories.local]\nurl = "backups"\n'
        f'[schedule]\nbackup = "0 3 * * *"\n[sentry]\nenvironment = "staging"\n'
    )
    odd = work / "odd.toml"
    odd.write_text(
        f'[databases.app]\nurl = "{NOWHERE}"\n[repositories.odd]\nurl = "file/{CANARY}"\n'
        '[sentry]\nenvironment = "staging"\n'
    )
    environment = {"SENTRY_DSN": dsn}
    runs = [run_opsctl("backup", "--json", "--debug", env=environment) for _ in range(2)]
    assert [run.returncode for run in runs] == [12, 12]
    assert run_opsctl("list", "--config", odd, env=environment).returncode == 13
    assert run_opsctl("backup", "--no-such-option", env=environment).returncode == 2

    events = bugsink.events()
    assert [event["tags"]["command"] for event in events] == ["backup", "backup", "list"]
    assert [event["tags"]["run_id"] for event in events[:2]] == [run.json["run_id"] for run in runs]
    assert {event["environment"] for event in events} == {"staging"}
    assert {event["release"].partition("@")[0] for event in events} == {"opsctl"}
    assert events[0]["breadcrumbs"]["values"]
    assert "***" in json.dumps(events[2])
    assert sorted(count for _, count in bugsink.issues()) == [1, 2]

    bugsink.stop()
    down = run_opsctl("backup", "--json", env=environment)
    assert down.returncode == 12
    kept = [path for path in (run_opsctl.state / "sentry").iterdir() if not path.name.startswith(".")]
    assert len(kept) == 2  # the event, and the end of the check-in
    bugsink.start()
    assert run_opsctl("notify", "test", env=environment).returncode == 0
    assert run_opsctl("backup", "--json", env=environment).returncode == 12
    run_ids = [event["tags"]["run_id"] for event in bugsink.events()]
    assert run_ids.count(down.json["run_id"]) == 1
    assert sorted(count for _, count in bugsink.issues()) == [1, 1, 4]
    assert [path.name for path in (run_opsctl.state / "sentry").iterdir()] == [".lock"]

    bugsink.stop()
    for path in bugsink.folder.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
