"""Metrics: what is told, what stays when nothing answers, and where it goes."""

import fcntl
import http.server
import json
import os
import re
import socket
import threading
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml  # noqa: TID253  # a test may load what it likes
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families  # noqa: TID253

from opsctl.catalog import Evidence, StoredBackup
from opsctl.manifest import EVIDENCE_LEVELS, parse_manifest
from opsctl.metrics import drills, look_at, sighting
from opsctl.repository import Repository
from opsctl.sightings import Drill, Look, Place, Proof, Seen, Sighting, Sightings, with_look
from opsctl.storage.local import LocalStorage
from opsctl.telemetry.metrics import METRICS, CheckFacts, DoctorFacts, Known, RunFacts, push, render, write_textfile

ROOT = Path(__file__).parents[1]
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BY_NAME = {metric.name: metric for metric in METRICS}

names = st.text(max_size=8)
times = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # the strategy adds it
counts = st.integers(0, 10**12)
proofs = st.dictionaries(st.sampled_from(EVIDENCE_LEVELS), st.builds(Proof, times, times))
sightings = st.builds(Sighting, names, names, counts, counts, proofs=proofs, oldest_at=st.none() | times)
looks = st.builds(
    Look,
    st.sampled_from(["local", "offsite"]),
    st.booleans(),
    st.none() | st.frozensets(st.sampled_from(["a", "b"])),
    st.just(()),
    st.none() | st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 9),
)


def samples(data):
    """Every sample of an exposition by name and labels, as Prometheus's own parser reads it."""
    found = {}
    for family in text_string_to_metric_families(data.decode()):
        for each in family.samples:
            key = each.name, tuple(sorted(each.labels.items()))
            assert key not in found, "twice: node_exporter would refuse the whole file"
            found[key] = each.value
    return found


def value(data, name, **labels):
    return samples(data).get((name, tuple(sorted(labels.items()))))


def known(**more):
    return Known(**{"now": NOW, "homes": {"saasdb": ["local"]}, "seen": Seen(), **more})


# What is told


@given(
    st.dictionaries(names, st.lists(names, max_size=3), max_size=3),
    st.dictionaries(st.tuples(names, names, st.sampled_from(["done", "failed"])), counts, max_size=4),
    st.lists(
        st.builds(CheckFacts, names, names, st.sampled_from(["ok", "crit", "skip"]), st.none() | st.floats(-1e9, 1e9))
    ),
)
def test_whatever_things_are_called_prometheus_can_read_it(homes, totals, checks):
    """Any name is a label's value, none comes twice, and there is nothing that METRICS does not know."""
    seen = Seen({}, {(r, d): Sighting(r, d, 3, 4) for d, places in homes.items() for r in places})
    runs = {(command, database): RunFacts(NOW, None, "lost") for command, database, _ in totals}
    doctor = DoctorFacts(NOW, "crit", checks)
    data = render(known(homes=homes, seen=seen, runs=runs, totals=totals, doctor=doctor), redact=str)

    for name, labels in samples(data):
        assert {key for key, _ in labels} == set(BY_NAME[name].labels)
        assert dict(labels).get("database", "") in {*homes, ""}


def test_a_secret_of_digits_spoils_no_number():
    """Labels are redacted and not the text: the password 1795 is no reason to lose the time of the last backup."""
    data = render(known(homes={"pw-1795": ["local"]}), redact=lambda text: text.replace("1795", "***"))

    assert value(data, "opsctl_metrics_written_timestamp_seconds") == NOW.timestamp()
    assert value(data, "opsctl_backups", database="pw-***", repository="local") == 0


def test_what_is_configured_is_there_from_the_beginning():
    """An alert sees a database that was never backed up, and the first failed run is an increase from 0."""
    data = render(known(intervals={"backup": 3600.0}), redact=str)
    pair = {"database": "saasdb", "repository": "local"}

    assert value(data, "opsctl_backup_last_success_timestamp_seconds", **pair) == 0
    assert value(data, "opsctl_backup_interval_seconds", **pair) == 3600
    assert value(data, "opsctl_runs_total", command="backup", database="saasdb", outcome="failed") == 0
    assert value(data, "opsctl_repository_up", repository="local") is None  # nobody has asked it yet


@settings(max_examples=30)
@given(st.lists(sightings, max_size=4), st.lists(looks, max_size=6))
def test_what_was_seen_stays_until_it_is_seen_anew(before, later):
    """No look takes away what it did not ask for; when a repository last answered never goes back to nothing."""
    start = {(name, database): Sighting(name, database, 1, 1) for name in ("local", "offsite") for database in "abc"}
    seen = Seen(sightings={**start, **{(each.repository, each.database): each for each in before}})
    for number, look in enumerate(later):
        now = NOW + timedelta(minutes=number)
        after = with_look(seen, look, now=now)
        lost = seen.sightings.keys() - after.sightings.keys()
        place = after.places[look.repository]
        assert all(
            name == look.repository and (look.databases is None or each in look.databases) for name, each in lost
        )
        assert place.pruned >= seen.places.get(look.repository, Place(answered=True)).pruned
        assert place.answered_at == (now if look.answered else seen.places.get(look.repository, place).answered_at)
        seen = after


@settings(max_examples=20)
@given(st.lists(sightings, max_size=3), st.dictionaries(names, st.builds(Drill, times, st.floats(0, 1e6)), max_size=2))
def test_sightings_are_read_as_they_were_written(tmp_path_factory, given_sightings, timed):
    store = Sightings(tmp_path_factory.mktemp("state"))
    look = Look(
        "local", answered=True, databases=None, sightings=tuple(replace(s, repository="local") for s in given_sightings)
    )
    written = store.update([look], timed, now=NOW)

    assert store.read() == written


def test_damaged_sightings_are_begun_anew(tmp_path):
    store = Sightings(tmp_path)
    for text in ("", "[]", '{"schema": 2}', '{"schema": 1, "places": {"x": 1}}', "\0"):
        (tmp_path / "sightings.json").write_text(text)
        assert store.read() == Seen()
        assert store.update([Look("local", answered=False)], {}, now=NOW).places["local"].answered is False
    assert (tmp_path / "sightings.json").stat().st_mode & 0o777 == 0o640


def test_runs_that_end_at_once_lose_nothing(tmp_path):
    """What eight runs removed is the sum; one that is stopped while it writes holds nobody up for long."""
    look = Look("local", answered=True, pruned=1)
    with ThreadPoolExecutor(8) as runs:
        list(runs.map(lambda _: Sightings(tmp_path).update([look], {}, now=NOW), range(40)))
    assert Sightings(tmp_path).read().places["local"].pruned == 40

    with (tmp_path / "sightings.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError):
            Sightings(tmp_path).update([look], {}, now=NOW)


# Where it comes from


@pytest.fixture
def copies(stored):
    """``copies(hours_old, …)``: one backup with other times and evidence."""
    manifest = parse_manifest((stored.folder / "manifest.json").read_bytes(), where="here")

    def of(hours, *evidence):
        at = NOW - timedelta(hours=hours)
        moved = replace(
            manifest, id=f"x-{at:%Y%m%dT%H%M%SZ}-0a1b", started_at=at, finished_at=at + timedelta(seconds=30)
        )
        return StoredBackup("local", moved, pinned=False, evidence=evidence)

    return of


def test_only_good_backups_are_told_of(copies):
    """As in doctor: damaged and future ones are counted and are never the newest; a proof is of a level or better."""
    failed = Evidence("stored", passed=False, at=NOW)
    counted = Evidence("counted", passed=True, at=NOW - timedelta(hours=2))
    decoded = Evidence("decoded", passed=True, at=NOW - timedelta(hours=1))
    found = sighting(
        "local", "x", [copies(-5), copies(1, failed), copies(9, decoded), copies(33, counted), copies(57)], now=NOW
    )

    assert (found.backups, found.damaged, found.future) == (5, 1, 1)
    assert found.newest is not None
    assert (found.newest.at, found.newest.level, found.newest.duration_seconds) == (
        NOW - timedelta(hours=9),
        "decoded",
        30,
    )
    assert found.oldest_at == NOW - timedelta(hours=57)
    assert found.proofs["decoded"] == Proof(NOW - timedelta(hours=9), NOW - timedelta(hours=1))
    assert found.proofs["restored"] == Proof(NOW - timedelta(hours=33), NOW - timedelta(hours=2))
    assert "content" not in found.proofs


def test_a_listing_is_what_another_listing_would_be(tmp_path, copies):
    """A run knows what it published, proved and removed since it listed: listing again would tell it nothing new."""
    repository = Repository("local", LocalStorage(tmp_path / "repository"))
    assert repository.listing.answered is None

    def add(manifest):
        upload = repository.begin(manifest.database, manifest.id, created_at=manifest.created_at)
        for each in manifest.files:
            with upload.file(each.name) as file:
                file.write(b"x")
        upload.publish(manifest)

    first, second, third = (copies(hours).manifest for hours in (3, 2, 1))
    add(first)
    before_listing = look_at(repository, now=NOW)
    repository.catalog([first.database])
    add(second)
    add(third)
    repository.record_evidence(second, "counted", "pass", at=NOW, details=None)
    repository.remove(first)
    known_now, fresh = look_at(repository, now=NOW), Repository("local", repository.storage)
    fresh.catalog([first.database])

    assert before_listing.sightings == ()
    assert known_now.sightings == look_at(fresh, now=NOW).sightings
    assert known_now.sightings[0].backups == 2
    assert (known_now.pruned, known_now.databases) == (1, frozenset({first.database}))


def test_a_drill_is_told_with_how_long_it_took(tmp_path, copies):
    """Of those that passed, under the database that the run knows the backup to be of."""
    repository = Repository("local", LocalStorage(tmp_path))
    backup = copies(1)
    repository.listing.answer([], {("saas-db", backup.manifest.id): backup}, 0)
    results = [
        {"id": backup.manifest.id, "outcome": "pass", "restore_seconds": 12.5},
        {"id": backup.manifest.id, "outcome": "pass", "restore_seconds": None},
        {"id": "somebody-else", "outcome": "fail", "restore_seconds": 9.0},
    ]
    found = drills({"backups": results}, [repository], now=NOW)
    data = render(known(homes={"saas-db": []}, seen=Seen(drills=found)), redact=str)

    assert found == {"saas-db": Drill(NOW, 12.5)}
    assert value(data, "opsctl_restore_drill_last_duration_seconds", database="saas-db") == 12.5
    assert drills(None, [repository], now=NOW) == {}


# Where it goes


def test_the_file_is_whole_and_readable_by_anybody(tmp_path):
    """Replaced at once, whatever the umask; one that cannot be written leaves the old one and nothing beside it."""
    path = tmp_path / "opsctl.prom"
    old = os.umask(0o077)
    try:
        write_textfile(path, b"one 1\n")
        write_textfile(path, b"two 2\n")
    finally:
        os.umask(old)
    with pytest.raises(FileNotFoundError):
        write_textfile(tmp_path / "nowhere" / "opsctl.prom", b"")
    (tmp_path / "folder.prom").mkdir()
    with pytest.raises(IsADirectoryError):
        write_textfile(tmp_path / "folder.prom", b"three 3\n")

    assert path.read_bytes() == b"two 2\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder.prom", "opsctl.prom"]


class _Gateway(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, self.headers.get("Authorization"), body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def gateway():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gateway)
    server.received, server.status = [], 202
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_push_replaces_what_is_known_of_this_host(gateway):
    """Under job and instance, with the credentials of the URL in a header and nowhere else."""
    address = f"127.0.0.1:{gateway.server_address[1]}"
    push(known(), f"http://ops:p%40ss@{address}/sub/", host="db-1", redact=str, timeout_seconds=5)
    ((path, authorization, body),) = gateway.received
    gateway.status = 400
    with pytest.raises(OSError, match="400"):
        push(known(), f"http://{address}", host="h", redact=str, timeout_seconds=5)

    assert path == "/sub/metrics/job/opsctl/instance/db-1"
    assert b64decode(authorization.removeprefix("Basic ")) == b"ops:p@ss"
    assert body == render(known(), redact=str)


def test_a_push_that_hangs_is_given_up():
    """A Pushgateway that accepts and never answers, or drips, takes no longer than it may."""
    with socket.create_server(("127.0.0.1", 0)) as hole, pytest.raises(TimeoutError):
        push(known(), f"http://127.0.0.1:{hole.getsockname()[1]}", host="h", redact=str, timeout_seconds=0.2)


# Rules and dashboard

USED = re.compile(r"opsctl_[a-z_]+")
SELECTED = re.compile(r"(opsctl_[a-z_]+)\{([^}]*)\}")
ADDED = {"instance", "job"}
"""Labels that Prometheus adds."""


def expressions():
    rules = yaml.safe_load((ROOT / "deploy/prometheus/opsctl.rules.yml").read_text())
    yield from ((rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"])
    board = json.loads((ROOT / "deploy/grafana/opsctl.json").read_text())
    for panel in board["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", ()))
    yield from ((each["name"], each["definition"]) for each in board["templating"]["list"] if "definition" in each)


def test_rules_and_dashboard_ask_for_metrics_and_labels_there_are():
    """A misspelt one would be an alert that never fires, or an empty panel."""
    found = list(expressions())
    asked = {name for _, text in found for name in USED.findall(text)}
    selectors = [(name, labels) for _, text in found for name, labels in SELECTED.findall(text)]

    assert len(found) > 40
    assert asked <= BY_NAME.keys()
    for name, labels in selectors:
        assert set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", labels)) <= {*BY_NAME[name].labels, *ADDED}, (name, labels)


def test_every_alert_is_tested_and_says_what_to_do():
    rules = yaml.safe_load((ROOT / "deploy/prometheus/opsctl.rules.yml").read_text())["groups"]
    tests = (ROOT / "deploy/prometheus/opsctl.rules.test.yml").read_text()
    for rule in (rule for group in rules for rule in group["rules"]):
        assert rule["alert"] in tests
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description", "explain"}


def test_the_dashboard_is_one_grafana_imports():
    """Schema of Grafana 10, one id per panel, nothing on top of anything, one data source that is chosen on import."""
    board = json.loads((ROOT / "deploy/grafana/opsctl.json").read_text())
    panels, taken = board["panels"], set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells

    assert board["schemaVersion"] >= 38
    assert board.keys() >= {"title", "uid", "templating", "time", "panels"}
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {"${datasource}"}
