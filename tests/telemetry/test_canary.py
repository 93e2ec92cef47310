"""One secret, planted in what a failing run has to tell: every sink tells of the failure, and none of the secret.

A new sink is a row of ``what_left``. Argument lists and environments of children are in tests/test_secrets.py; the
status page, whose data are these, in tests/web.
"""

import json
from urllib.parse import quote

import pytest

from opsctl.telemetry.redact import MASK

CANARY = "canary/7f+3a=9c\\é"
SPELLINGS = {
    CANARY,
    quote(CANARY),
    quote(CANARY, safe=""),
    CANARY.replace("\\", "\\\\"),
    json.dumps(CANARY)[1:-1],
    "7f+3a",  # of no spelling not even the middle
}


def everything(folder):
    return "\n".join(path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def what_left(run_opsctl, saas, new_recorder, hole):
    """What every sink has got of a run whose message is about a path with the secret in it."""
    sentry, heart, people = new_recorder(), new_recorder(), new_recorder()
    folder = run_opsctl.folder
    (run_opsctl.work / "file").touch()
    configuration = (
        f'[databases.app]\nurl_env = "DATABASE_URL"\n'
        f"[repositories.odd]\nurl = {json.dumps(f'file/{CANARY}')}\n"
        f'[heartbeats]\nbackup = "http://{heart.address}/ping"\n[notify]\nurls = ["json://{people.address}/hook"]\n'
        f"[metrics]\ntextfile = {json.dumps(str(folder / 'opsctl.prom'))}\n"
    )
    (run_opsctl.work / "opsctl.toml").write_text(configuration)
    log = folder / "opsctl.log"
    env = {"AWS_SECRET_ACCESS_KEY": CANARY, "OPSCTL_LOG_FILE": str(log), "OPSCTL_LOG_CONTEXT": f"note='{CANARY}'"}

    def run(*words, dsn=sentry.dsn, **more):
        return run_opsctl(*words, url=saas.url, env={**env, "SENTRY_DSN": dsn, **more})

    text = run("backup", "--debug", OPSCTL_LOG_FORMAT="console")
    document = run("backup", "--json", "--debug")
    run("backup", dsn=f"http://k@{hole}/7")
    spool = everything(run_opsctl.state / "sentry")
    doctor = run("doctor", "--json")
    prometheus = run("doctor", "--format", "prometheus")
    run("incident", "open", f"seen: {CANARY}")
    assert [text.returncode, document.returncode] == [13, 13], text
    database = (run_opsctl.state / "history.db").read_bytes().decode("utf-8", "replace")
    return {
        "the log for people, with a traceback": text.stderr,
        "the log for programs, with a traceback": document.stderr,
        "the log file": log.read_text(),
        "the JSON document": document.stdout,
        "doctor's document": doctor.stdout + doctor.stderr,
        "doctor for Prometheus": prometheus.stdout + prometheus.stderr,
        "the history's file": database,
        "the history": run("history").stdout + run("history", "--json").stdout,
        "Sentry": "".join(each.body.decode() for each in sentry.received),
        "what waits for Sentry": spool,
        "the heartbeat": "".join(each.path + each.body.decode() for each in heart.received),
        "people": "".join(each.body.decode() for each in people.received),
        "the incident": everything(run_opsctl.state / "incidents"),
        "the metrics": (folder / "opsctl.prom").read_text() + run("metrics").stdout,
        "all of the state folder": everything(run_opsctl.state),
    }


NOTHING_TO_MASK = {"the metrics"}
"""Sinks that messages do not get to."""


def test_no_sink_has_the_secret(what_left):
    for sink, text in what_left.items():
        found = [spelling for spelling in SPELLINGS if spelling in text]
        assert not found, f"{sink}: {text[max(0, text.find(found[0]) - 200) :][:500]}"
        assert text, f"{sink} has got nothing"
        assert MASK in text or sink in NOTHING_TO_MASK, f"{sink} was told nothing of it: {text[:500]}"
