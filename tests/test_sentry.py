"""What Sentry is told of a failed run, by a server of our own that records it."""

import gzip
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import opsctl

KEY = "0123canary4567"
PASSWORD = "hunter2-canary"
NOWHERE = f"postgresql://me:{PASSWORD}@127.0.0.1:1/app"


class Recorder(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.envelopes.append(body)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        """Quiet."""


class SentryServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Recorder)
        self.envelopes = []
        self.status = 200

    @property
    def dsn(self):
        return f"http://{KEY}@127.0.0.1:{self.server_address[1]}/7"

    @property
    def events(self):
        """The events of all envelopes: each envelope is a header line, then pairs of item header and item."""
        found = []
        for envelope in self.envelopes:
            lines = envelope.split(b"\n")
            for header, item in zip(lines[1::2], lines[2::2], strict=False):
                if header and json.loads(header)["type"] == "event":
                    found.append(json.loads(item))
        return found


@pytest.fixture
def sentry():
    server = SentryServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def assert_only_log_lines(stderr):
    for line in stderr.splitlines():
        json.loads(line)


def test_one_event_per_failure(run_opsctl, sentry):
    """A failed run is one event with what is needed to find the run and to group the same failure of every night."""
    run = run_opsctl("backup", "--json", url=NOWHERE, env={"SENTRY_DSN": sentry.dsn})
    assert run.returncode == 12
    assert len(sentry.envelopes) == 1
    (event,) = sentry.events
    tags = {"command": "backup", "code": "database_unreachable", "run_id": run.json["run_id"], "database": "app"}
    assert tags.items() <= event["tags"].items()
    assert event["fingerprint"] == ["opsctl", "backup", "database_unreachable/refused", "app"]
    assert event["release"] == f"opsctl@{opsctl.__version__}"
    assert event["environment"] == "production"
    assert event["level"] == "error"
    (error,) = [each for each in event["exception"]["values"] if each["type"] == "DatabaseUnreachable"]
    assert "Connection refused" in error["value"]


def test_event_holds_nothing_of_the_environment(run_opsctl, sentry):
    """No arguments, no local variables, no source lines, no secret; breadcrumbs are lines of our own log."""
    (run_opsctl.work / "file").touch()
    (run_opsctl.work / "opsctl.toml").write_text(
        f"[databases.app]\nurl_env = 'DATABASE_URL'\n[repositories.odd]\nurl = 'file/{PASSWORD}'\n"
    )
    run_opsctl("list", "--json", url=NOWHERE, env={"SENTRY_DSN": sentry.dsn})
    (event,) = sentry.events
    text = json.dumps(event)
    assert PASSWORD not in text
    assert KEY not in text
    assert "***" in text
    assert "sys.argv" not in text
    assert "--json" not in text
    assert '"vars"' not in text
    assert "context_line" not in text
    assert [each["category"] for each in event["breadcrumbs"]["values"]] == ["run.failed"]
    assert not event.get("modules")


def test_same_failure_is_the_same_issue(run_opsctl, sentry):
    """The fingerprint does not change from night to night; another database's failure is another issue."""
    other = NOWHERE.replace("/app", "/other")
    for url in (NOWHERE, NOWHERE, other):
        run_opsctl("backup", url=url, env={"SENTRY_DSN": sentry.dsn})
    first, second, third = (event["fingerprint"] for event in sentry.events)
    assert first == second != third


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["backup"], 0),
        (["list"], 0),
        (["backup", "--no-such-option"], 2),
        (["restore"], 2),
        (["restore", "latest"], 16),
        (["restore", "latest", "--yes", "another"], 16),
    ],
    ids=["success", "reading", "unknown option", "usage", "not confirmed", "wrongly confirmed"],
)
def test_nothing_is_sent_unless_something_failed(run_opsctl, saas, sentry, arguments, code):
    """Successes, mistyped command lines and refusals are no failures of a backup or a server."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    assert run_opsctl(*arguments, url=saas.url, env={"SENTRY_DSN": sentry.dsn}).returncode == code
    assert sentry.envelopes == []


def test_broken_configuration_is_reported(run_opsctl, sentry):
    """A configuration that cannot be read stops every backup: the DSN of the environment is enough to hear of it."""
    (run_opsctl.work / "opsctl.toml").write_text("[databases.app\n")
    assert run_opsctl("backup", env={"SENTRY_DSN": sentry.dsn}).returncode == 10
    (event,) = sentry.events
    assert event["tags"]["code"] == "configuration"


def test_settings_of_the_file(run_opsctl, sentry):
    """dsn_env and environment of [sentry] are obeyed."""
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases.app]\nurl = "{NOWHERE}"\n[sentry]\ndsn_env = "MY_DSN"\nenvironment = "staging"\n'
    )
    run_opsctl("backup", env={"MY_DSN": sentry.dsn, "SENTRY_DSN": "http://x@127.0.0.1:1/1"})
    (event,) = sentry.events
    assert event["environment"] == "staging"


def test_no_dsn_no_traffic(run_opsctl, sentry):
    """Without a DSN the SDK is not even loaded: a failure is as fast as ever."""
    run = run_opsctl("backup", "--json", url=NOWHERE, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert " psycopg\n" in run.stderr
    assert "sentry_sdk" not in run.stderr
    assert run.returncode == 12
    assert sentry.envelopes == []


@pytest.mark.parametrize("status", [429, 500, 400])
def test_server_that_refuses(run_opsctl, sentry, status):
    """A Sentry that is full or broken changes nothing about the run and prints nothing."""
    sentry.status = status
    run = run_opsctl("backup", "--json", url=NOWHERE, env={"SENTRY_DSN": sentry.dsn})
    assert run.returncode == 12
    assert_only_log_lines(run.stderr)
    assert len(run.stderr.splitlines()) == 1


def test_black_hole_delays_the_end_a_little(run_opsctl):
    """A Sentry that takes connections and never answers holds nobody up for long, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as hole:
        dsn = f"http://{KEY}@127.0.0.1:{hole.getsockname()[1]}/7"
        started = time.monotonic()
        run = run_opsctl("backup", "--json", url=NOWHERE, env={"SENTRY_DSN": dsn}, timeout=60)
        took = time.monotonic() - started
    assert run.returncode == 12
    assert took < 15
    assert_only_log_lines(run.stderr)
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "dsn",
    ["not a dsn", "http://", "http://127.0.0.1/7", "ftp://key@127.0.0.1/7", "http://key@127.0.0.1:1/7", "http://k@[/7"],
)
def test_dsn_that_leads_nowhere(run_opsctl, dsn):
    """An invalid or unreachable DSN breaks no run, changes no exit code and prints nothing."""
    run = run_opsctl("backup", "--json", url=NOWHERE, env={"SENTRY_DSN": dsn})
    assert run.returncode == 12
    assert run.json["error"]["code"] == "database_unreachable"
    assert_only_log_lines(run.stderr)
    assert len(run.stderr.splitlines()) == 1
