"""What a Sentry makes of our reports: Bugsink, which speaks Sentry's protocol, is installed and run for these tests.

What it stores is read back through its API and from its SQLite files. It drops check-ins; tests/telemetry has those.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from servers import throwaway_server
from waiting import wait_for

import opsctl
from opsctl.postgres.processes import die_with_parent

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.end_to_end,
    pytest.mark.xdist_group("bugsink"),
    pytest.mark.timeout(900),
]

BUGSINK = "bugsink>=2.6,<2.7"
CORE = "kanarie-5b1d"
PASSWORD = f"p@ss:{CORE}/é"
"""Other spellings of it (in a URL, in JSON, quoted) have its core in common: that is looked for."""
REFUSING = "postgresql://me@127.0.0.1:1/app"
STALL_SECONDS = 2
SLACK_SECONDS = 3
"""For a busy machine. A run that waited for the server's answer would take ten seconds longer."""


@dataclass
class Bugsink:
    """The server: a process group of gunicorn and its worker."""

    folder: Path
    address: str
    token: str
    gunicorn: list
    environment: dict
    process: subprocess.Popen | None = None

    def start(self):
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.gunicorn,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509
            )
        wait_for(self._answers, "Bugsink")

    def _answers(self):
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return self.ask("teams/")
        except OSError:
            return None

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    @contextmanager
    def running(self):
        try:
            self.start()
            yield
        finally:
            self.end()

    @contextmanager
    def away(self):
        """Nothing listens at its address."""
        self.end()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def stopped(self):
        """It takes connections, because the kernel does that, and never answers."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def ask(self, path, document=None):
        """The answer to a GET, or to a POST of ``document``."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.address}/api/canonical/0/{path}",
            data=None if document is None else json.dumps(document).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    def new_project(self, name):
        (team,) = self.ask("teams/")["results"]
        number = self.ask("projects/", {"name": name, "team": team["id"]})["id"]
        return Project(self, number, self.ask(f"projects/{number}/")["dsn"])

    def stored(self):
        """All bytes it has written: its databases with their journals, its log, what it has not digested."""
        return b"".join(path.read_bytes() for path in self.folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Project:
    """One project of the server: every test has its own."""

    server: Bugsink
    number: str
    dsn: str

    def issues(self):
        return self.server.ask(f"issues/?project={self.number}")["results"]

    def events(self, issue, search=""):
        """What was sent, the first first; ``search`` as in the server's own search box."""
        found = self.server.ask(f"events/?issue={issue['id']}&order=asc&q={quote(search)}")["results"]
        return [self.server.ask(f"events/{each['id']}/")["data"] for each in found]

    def all_events(self):
        return [event for issue in self.issues() for event in self.events(issue)]


@pytest.fixture(scope="module")
def programs(pytestconfig):
    """Where Bugsink's programs are: in a virtual environment of its own, kept from run to run."""
    folder = pytestconfig.cache.mkdir("bugsink-2.6")
    venv = folder / "venv"
    if not (folder / "done").exists():
        shutil.rmtree(venv, ignore_errors=True)
        environment = {**os.environ, "HOME": str(folder)}  # pip asks rustc, which may write there
        pip = [sys.executable, "-m", "pip", "--python", venv / "bin/python"]
        options = ["--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        try:
            for command in (
                [sys.executable, "-m", "venv", "--without-pip", venv],
                [*pip, "install", *options, BUGSINK],
            ):
                subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        except subprocess.CalledProcessError as error:
            text = f"Bugsink cannot be installed: {error.stderr or error}"
            pytest.fail(text) if pytestconfig.getoption("--require-services") else pytest.skip(text)
        (folder / "done").touch()
    return venv / "bin"


@pytest.fixture(scope="module")
def bugsink(programs, tmp_path_factory):
    """The running server, with a team."""
    folder = tmp_path_factory.mktemp("bugsink")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "PYTHONPATH": str(folder)}

    def run(program, *arguments):
        command = [programs / program, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("bugsink-create-conf", "--template=local", "--host=127.0.0.1", f"--port={port}")
    with (folder / "bugsink_conf.py").open("a") as conf:
        conf.write(f'BUGSINK["INGEST_STORE_BASE_DIR"] = "{folder}/ingestion"\n')  # else it is one of the whole host
    run("bugsink-manage", "migrate")
    run("bugsink-manage", "migrate", "snappea", "--database=snappea")
    token = run("bugsink-manage", "create_auth_token").split()[-1]
    gunicorn = [programs / "gunicorn", f"--bind=127.0.0.1:{port}", "--workers=1", "--threads=4", "bugsink.wsgi"]
    server = Bugsink(folder, f"http://127.0.0.1:{port}", token, gunicorn, environment)
    with server.running():
        server.ask("teams/", {"name": "ops"})
        yield server


@pytest.fixture(scope="module")
def listening(binaries):
    """A server with a role that may connect with the canary as its password, and may read nothing."""
    from psycopg import connect
    from psycopg.sql import SQL, Identifier, Literal

    with throwaway_server(binaries, listen=True) as running:
        with connect(running.url(), autocommit=True) as connection:
            connection.execute(SQL("create role reader login password {}").format(Literal(PASSWORD)))
            connection.execute(SQL("create table {} ()").format(Identifier(PASSWORD)))
        yield running


def configure(run_opsctl, more=""):
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases.app]\nurl_env = "DATABASE_URL"\n[repositories.local]\nurl = "backups"\n'
        f'[sentry]\nenvironment = "staging"\n{more}'
    )


def spooled(run_opsctl):
    return [path for path in (run_opsctl.state / "sentry").glob("*") if not path.name.startswith(".")]


def test_a_failure_of_every_night_is_one_issue(run_opsctl, bugsink, listening):
    """Two nights with the same cause are one issue with two events, found by their tags; another cause is another."""
    project = bugsink.new_project("nights")
    configure(run_opsctl)
    wrong = f"postgresql://reader:wrong@127.0.0.1:{listening.port}/postgres"
    runs = [
        run_opsctl("backup", "--json", url=url, env={"SENTRY_DSN": project.dsn}) for url in (REFUSING, REFUSING, wrong)
    ]
    refused, unknown = project.issues()
    nights = project.events(refused)
    release = f"opsctl@{opsctl.__version__}"
    tags = {"command": "backup", "code": "database_unreachable", "database": "app"}
    search = " ".join(f"{key}:{value}" for key, value in (tags | {"environment": "staging"}).items())

    assert [run.returncode for run in runs] == [12, 12, 12]
    assert (refused["digested_event_count"], unknown["digested_event_count"]) == (2, 1)
    assert [event["tags"]["run_id"] for event in nights] == [run.json["run_id"] for run in runs[:2]]
    assert project.events(refused, f"{search} release:{release}") == nights
    assert project.events(refused, "environment:production") == []
    for event in nights:
        assert tags.items() <= event["tags"].items()
        assert (event["release"], event["environment"]) == (release, "staging")
        crumbs = event["breadcrumbs"]["values"]
        assert [each["category"] for each in crumbs] == ["run.failed"]
        assert "Connection refused" in crumbs[0]["message"]
    (other,) = project.events(unknown)
    assert tags.items() <= other["tags"].items()
    assert "password" in other["exception"]["values"][-1]["value"]


def test_a_secret_reaches_neither_its_api_nor_its_disk(run_opsctl, bugsink, listening, tmp_path):
    """Where a password can stand: the URL, the command line, an error's text, the log and what a caller adds to it."""
    project = bugsink.new_project("canary")
    configure(run_opsctl)
    url = f"postgresql://reader:{quote(PASSWORD, safe='')}@127.0.0.1:{listening.port}/postgres"
    wrong = url.replace("reader", "postgres")
    environment = {"SENTRY_DSN": project.dsn, "OPSCTL_LOG_CONTEXT": json.dumps({"request_id": f"r-{PASSWORD}"})}
    arguments = ("backup", "--json", "--debug", "--log-file", tmp_path / f"{quote(PASSWORD, safe='')}.log")
    own_process = {"PYTHONUNBUFFERED": "1"}  # whose sys.argv the SDK could see
    runs = [run_opsctl(*arguments, url=each, env=environment | own_process) for each in (url, wrong)]
    events = project.all_events()
    stored = bugsink.stored()
    crumbs = [each for event in events for each in event["breadcrumbs"]["values"]]
    told = [event["exception"]["values"][-1]["value"] for event in events]

    assert len(events) == 2, runs
    assert {event["tags"]["run_id"] for event in events} == {run.json["run_id"] for run in runs}
    assert any("***" in text for text in told), told
    assert any(each["data"].get("request_id") == "r-***" for each in crumbs), crumbs
    for run in runs:
        assert run.json["run_id"].encode() in stored  # it is there that has to be looked
        assert CORE not in run.stdout + run.stderr
    assert CORE not in json.dumps(events, ensure_ascii=False)
    assert CORE.encode() not in stored
    assert b"--log-file" not in stored


def test_a_stalled_server_costs_two_seconds_and_loses_nothing(run_opsctl, bugsink):
    """While it does not answer runs end as ever and keep their events; the first run after that brings them."""
    project = bugsink.new_project("stalled")
    configure(run_opsctl)

    def night():
        started = time.monotonic()
        run = run_opsctl("backup", "--json", url=REFUSING, env={"SENTRY_DSN": project.dsn})
        return run, time.monotonic() - started

    before, usual = night()
    with bugsink.stopped():
        stalled = [night() for _ in range(2)]
        kept = spooled(run_opsctl)
    after, _ = night()
    (issue,) = project.issues()
    arrived = [event["tags"]["run_id"] for event in project.events(issue)]

    runs = [before, *(run for run, _ in stalled), after]
    assert len(kept) == 2
    for run, took in stalled:
        assert took < usual + STALL_SECONDS + SLACK_SECONDS
        assert run.returncode == before.returncode == 12
        assert [json.loads(line)["event"] for line in run.stderr.splitlines()] == ["run.failed"]
        assert run.json["error"] == before.json["error"]
    assert sorted(arrived) == sorted(run.json["run_id"] for run in runs)  # each once, although it was sent twice
    assert spooled(run_opsctl) == []


def test_what_happened_while_it_was_away_arrives_later(run_opsctl, bugsink):
    """Nothing listens: the event and the end of the check-in are kept, and sent by the next run with an address."""
    project = bugsink.new_project("away")
    configure(run_opsctl, '[schedule]\nbackup = "0 3 * * *"\n')
    environment = {"SENTRY_DSN": project.dsn}
    with bugsink.away():
        missed = run_opsctl("backup", "--json", url=REFUSING, env=environment)
        kept = spooled(run_opsctl)
    tried = run_opsctl("notify", "test", env=environment)
    mistyped = run_opsctl("backup", "--no-such-option", env=environment)
    next_night = run_opsctl("backup", "--json", url=REFUSING, env=environment)
    counts = sorted(each["digested_event_count"] for each in project.issues())
    arrived = [event["tags"]["run_id"] for event in project.all_events()]

    assert [run.returncode for run in (missed, tried, mistyped, next_night)] == [12, 0, 2, 12]
    assert len(kept) == 2
    assert counts == [1, 2]  # the test is an issue of its own, and a mistyped command line is none
    assert [arrived.count(run.json["run_id"]) for run in (missed, next_night)] == [1, 1]
    assert spooled(run_opsctl) == []


def test_a_check_is_an_event_when_it_changes(run_opsctl, bugsink, saas):
    """Fine, failing, still failing, fine again: two events of one issue."""
    project = bugsink.new_project("checks")
    check = '[[checks]]\nid = "queue"\nkind = "sql"\ndatabase = "app"\nsql = "select {}"\nwarn = 10\ncrit = 20\n'
    codes, counts = [], []
    for value in (5, 30, 30, 5):
        configure(run_opsctl, check.format(value))
        run = run_opsctl("doctor", "own.queue", url=saas.url, env={"SENTRY_DSN": project.dsn})
        codes.append(run.returncode)
        counts.append(sum(each["digested_event_count"] for each in project.issues()))
    (issue,) = project.issues()
    failing, well = project.events(issue)

    assert codes == [0, 2, 2, 0]
    assert counts == [0, 1, 1, 2]
    tags = {"command": "doctor", "check": "own.queue", "target": "app", "status": "crit", "before": "ok"}
    assert tags.items() <= failing["tags"].items()
    assert (failing["level"], well["level"]) == ("error", "info")
    assert (well["tags"]["status"], well["tags"]["before"]) == ("ok", "crit")
