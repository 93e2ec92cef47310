"""A timeline that was changed anywhere is found out; one that a crash cut off says so and goes on."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsctl.errors import LockHeld, NoSuchIncident, TimelineUnwritable
from opsctl.incident import TEXT_BYTES, Incidents, bounded, shortened, summarize
from opsctl.telemetry.redact import Redactor
from opsctl.timeline import KINDS, Head, Link, examine, parse_line, write_line

NOW = datetime(2026, 11, 24, 3, 14, tzinfo=UTC)
NAME = "20261124T031400Z-beef"

texts = st.text(alphabet='ab"\\{}:, \n\x00é\u2028😀', max_size=12)
fields = st.dictionaries(
    st.sampled_from(["text", "output", "step", "nested"]),
    texts | st.integers() | st.none() | st.lists(texts, max_size=3) | st.dictionaries(texts, texts, max_size=2),
    max_size=3,
)
several = st.lists(st.tuples(st.sampled_from(KINDS), fields), min_size=1, max_size=6)


def written(events, *, torn=()):
    """The bytes of a timeline and of the record of its end; before the events in ``torn`` a write was cut off."""
    data, link = b"", Link()
    for number, (kind, more) in enumerate(events):
        said = {"incident": NAME, **more} if number == 0 else more
        cut = write_line(link, at=NOW, kind="note", actor={}, fields={})[:-9] if number in torn else b""
        line = write_line(link, at=NOW, kind=kind, actor={"user": "é"}, fields=said, torn=cut)
        data += (cut + b"\n" if cut else b"") + line
        link = parse_line(line[:-1]).link
    return data, Head(NAME, link, len(data)).to_bytes()


@given(events=several)
def test_what_was_written_is_intact(events):
    """Whatever the events say, they are read back as they were, and nothing is wrong with them."""
    found = examine(*_with_name(written(events)))
    assert found.is_intact, found.problems
    assert [(each.kind, each.fields) for each in found.events][1:] == [(kind, dict(more)) for kind, more in events][1:]


def _with_name(pair):
    return pair[0], NAME, pair[1]


@settings(max_examples=300)
@given(events=several, torn=st.sets(st.integers(0, 5)), data=st.data())
def test_one_changed_byte_is_found(events, torn, data):
    """Any byte, of a line, its end, a cut-off line or the record of the end: changed, removed or added."""
    timeline, head = written(events, torn=torn)
    assert examine(timeline, NAME, head).is_intact
    where = data.draw(st.integers(0, len(timeline) + len(head) - 1))
    whole = timeline + head
    change = data.draw(st.sampled_from(["changed", "removed", "added"]))
    byte = bytes([data.draw(st.integers(0, 255))])
    if change == "changed":
        changed = whole[:where] + byte + whole[where + 1 :]
    elif change == "removed":
        changed = whole[:where] + whole[where + 1 :]
    else:
        changed = whole[:where] + byte + whole[where:]
    size = len(timeline) + (len(changed) - len(whole) if where < len(timeline) else 0)
    if changed[:size] != timeline or changed[size:] != head:
        found = examine(changed[:size], NAME, changed[size:])
        assert found.problems or found.torn, (change, where, byte)


@given(events=several, data=st.data())
def test_removed_and_reordered_lines_are_found(events, data):
    """A line taken out, doubled, or put elsewhere breaks the chain; the last ones are missed by the head."""
    timeline, head = written(events)
    lines = timeline.splitlines(keepends=True)
    kept = data.draw(st.lists(st.sampled_from(lines), max_size=len(lines) + 1))
    found = examine(b"".join(kept), NAME, head)
    assert found.is_intact == (kept == lines)


@given(events=several, data=st.data())
def test_a_cut_end_is_found(events, data):
    """However many bytes are missing at the end, also whole lines: the record of the end knows of them."""
    timeline, head = written(events)
    length = data.draw(st.integers(0, len(timeline) - 1))
    assert not examine(timeline[:length], NAME, head).is_intact


def test_a_line_can_be_checked_with_public_tools(tmp_path):
    """Only sed and sha256sum are enough, as the docs say."""
    incident = incidents(tmp_path).open("bot-is-down", "The bot does not answer")
    script = """sed -E 's/,"hash":"[0-9a-f]{64}"\\}$/}/' "$1" | tr -d '\\n' | sha256sum"""
    done = subprocess.run(["sh", "-c", script, "sh", incident.path], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == incident.events()[0].hash


def incidents(folder, redactor=None, now=NOW):
    actor = {"user": "eve", "host": "db1"}
    return Incidents(folder / "incidents", redactor or Redactor(), lambda: now, actor, lock_seconds=2)


def test_an_incident_from_its_opening_to_its_end(tmp_path):
    """Files are their owner's alone; the summary has every moment, told late or not."""
    all_of_them = incidents(tmp_path)
    incident = all_of_them.open("bot-is-down", "The bot is silent", detected_at=NOW - timedelta(minutes=5))
    assert incident.summary().status == "open"
    incident.append("step_started", step="restart-bot")
    incident.append("mitigated", text="answers again", happened_at=NOW - timedelta(minutes=1))
    incident.close()
    assert {path.name: path.stat().st_mode & 0o777 for path in incident.path.parent.iterdir()} == {
        f"{incident.id}.jsonl": 0o600,
        f"{incident.id}.head": 0o600,
    }
    assert incident.path.parent.stat().st_mode & 0o777 == 0o700
    found = all_of_them.find("latest").summary()
    assert (found.status, found.scenario, found.is_intact, found.events) == ("closed", "bot-is-down", True, 4)
    moments = [found.detected_at, found.acknowledged_at, found.mitigated_at, found.resolved_at]
    assert [(moment - NOW).total_seconds() / 60 for moment in moments] == [-5, 0, -1, 0]


def test_incidents_are_found_by_what_is_unique(tmp_path):
    """By id, its beginning or its end, newest first; what means several or none is said."""
    old, new = (incidents(tmp_path, now=NOW + timedelta(hours=each)).open(None, "x") for each in (0, 1))
    found = incidents(tmp_path)
    assert [each.id for each in found.list()] == [new.id, old.id]
    assert found.find(old.id[:11]).id == found.find(old.id[-4:]).id == old.id
    for wanted in ("2026", "no", "", "../x", "*"):
        with pytest.raises(NoSuchIncident):
            found.find(wanted)
    with pytest.raises(NoSuchIncident, match="2 incidents are open"):
        found.the_open_one()
    old.close()
    assert found.the_open_one().id == new.id
    new.close()
    with pytest.raises(NoSuchIncident, match="No incident is open"):
        found.the_open_one()


def test_a_cut_off_line_is_said_and_the_chain_goes_on(tmp_path):
    """What kill -9 or a full disk leaves of a line stays where it is; the next line tells of it."""
    incident = incidents(tmp_path).open(None, "x")
    whole = incident.path.read_bytes()
    incident.append("note", text="never finished")
    cut = incident.path.read_bytes()[:-20]
    incident.path.write_bytes(cut)
    incident.write_head(Head(incident.id, incident.events()[0].link, len(whole)))
    found = incident.verify()
    assert found.is_intact
    assert "cut off" in found.remarks[0].message

    incident.append("note", text="goes on")
    found = incident.verify()
    assert found.is_intact, found.problems
    assert [each.fields.get("text") for each in found.events] == [None, "goes on"]
    assert [(each.line, "goes on after it" in each.message) for each in found.remarks] == [(2, True)]
    assert incident.path.read_bytes().startswith(cut + b"\n")
    incident.path.write_bytes(incident.path.read_bytes().replace(b"never", b"newer"))
    assert not incident.verify().is_intact


@pytest.mark.parametrize("missing", [1, 2, 20])
def test_a_gap_at_the_end_is_not_healed_by_going_on(tmp_path, missing):
    """Events that were cut off are missed for ever, also when the next ones are written after them."""
    incident = incidents(tmp_path).open(None, "x")
    for number in range(3):
        incident.append("note", text=str(number))
    incident.path.write_bytes(incident.path.read_bytes()[:-missing])
    assert not incident.verify().is_intact
    incident.append("note", text="on")
    assert not incident.verify().is_intact
    assert incident.events()[-1].seq == 5


def test_files_that_are_gone_are_missed(tmp_path):
    """Without its head a timeline is not whole; without its timeline a head tells that there was one."""
    all_of_them = incidents(tmp_path)
    incident = all_of_them.open(None, "x")
    head = incident.path.with_suffix(".head")
    kept = head.read_bytes()
    head.unlink()
    assert "missing" in incident.verify().problems[0].message
    head.write_bytes(kept)
    other = all_of_them.open(None, "y")
    other.path.write_bytes(incident.path.read_bytes())
    assert not other.verify().is_intact
    incident.path.unlink()
    assert [each.id for each in all_of_them.list()].count(incident.id) == 1
    assert not incident.verify().is_intact
    assert incident.summary().status == "damaged"


WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from opsctl.incident import Incidents
from opsctl.telemetry.redact import Redactor
incident = Incidents(Path(sys.argv[1]), Redactor(), lambda: datetime.now(UTC)).find("latest")
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    incident.append("note", text=f"{sys.argv[3]} {number}", output="x" * 20000)
"""


def writer(folder, count, name):
    command = [sys.executable, "-c", WRITER, str(folder / "incidents"), str(count), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])


def test_several_writers_keep_the_chain_though_one_is_killed(tmp_path):
    """Four at once, one of them ended with kill -9: one chain, each writer's lines in their order, none lost."""
    incident = incidents(tmp_path).open(None, "x")
    running = [writer(tmp_path, 25, name) for name in "abc"]
    killed = writer(tmp_path, 100_000, "killed")
    for each in (*running, killed):
        assert each.stdout.readline() == b"ready\n"
    for each in running:
        assert each.wait(timeout=60) == 0
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=60)
    for each in (*running, killed):
        each.stdout.close()
    incident.append("note", text="after")
    found = incident.verify()
    assert found.is_intact, found.problems
    said = [each.fields["text"] for each in found.events if each.kind == "note"]
    for name in "abc":
        assert [text for text in said if text.startswith(f"{name} ")] == [f"{name} {number}" for number in range(25)]
    assert said[-1] == "after"


def test_a_writer_that_hangs_is_named(tmp_path):
    """The lock is waited for, not for ever."""
    import fcntl

    incident = incidents(tmp_path).open(None, "x")
    with incident.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockHeld, match=incident.id):
            incident.append("note", text="waits")


def test_a_full_disk_is_said_and_leaves_no_half_line(tmp_path):
    """A file that may not grow any further: the line is taken back, the message names the way out."""
    import resource

    incident = incidents(tmp_path).open(None, "x")
    before = incident.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        with pytest.raises(TimelineUnwritable) as caught:
            incident.append("note", text="y" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "OPSCTL_STATE_DIR" in caught.value.hint
    assert incident.path.read_bytes() == before
    assert incident.verify().is_intact


def test_a_lost_head_update_is_made_good(tmp_path):
    """Killed between the line and the record of the end: the event counts, and the next one follows it."""
    incident = incidents(tmp_path).open(None, "x")
    head = incident.path.with_suffix(".head").read_bytes()
    incident.append("note", text="written")
    incident.path.with_suffix(".head").write_bytes(head)
    assert incident.verify().is_intact
    assert incident.append("note", text="next").seq == 3
    assert incident.verify().is_intact


def test_secrets_are_masked_before_anything_is_shortened(tmp_path):
    """Else half a secret might be left where a text was cut."""
    incident = incidents(tmp_path, Redactor(["s3cr3t-canary"])).open(None, "s3cr3t-canary")
    event = incident.append("note", text="x" * (TEXT_BYTES // 2 - 5) + "s3cr3t-canary" + "y" * TEXT_BYTES)
    assert "bytes left out" in event.fields["text"]
    assert b"s3cr" not in incident.path.read_bytes()


@given(text=st.text(alphabet="aé😀\n", min_size=50), limit=st.integers(20, 60))
def test_long_texts_keep_both_ends_and_say_what_is_missing(text, limit):
    """The digest is that of the whole text."""
    data, short = text.encode(), shortened(text, limit)
    if len(data) <= limit:
        assert short == text
    else:
        assert text.startswith(short.partition("\n… ")[0])
        assert sha256(data).hexdigest() in short
        assert len(short.encode()) < limit + 140
    assert bounded([{"a": text}]) == [{"a": text}]


def test_any_fields_can_be_written(tmp_path):
    """What JSON does not know is written as text; lone surrogates and NaN spoil no line."""
    incident = incidents(tmp_path).open(None, "x")
    incident.append("note", text="\ud800\u2028\n", path=tmp_path, number=float("nan"), raw=b"\xff", at_=NOW, none=None)
    assert incident.verify().is_intact
    assert json.loads(incident.path.read_text().split("\n")[1])["path"] == str(tmp_path)
    with pytest.raises(ValueError, match="prev"):
        incident.append("note", prev="x")
    with pytest.raises(NoSuchIncident):
        incidents(tmp_path)._incident("20261124T031400Z-0000").append("note")


def test_an_unreadable_timeline_is_no_incident_without_a_status():
    """Even of nothing a summary can be made."""
    assert summarize(NAME, ()).status == "damaged"
    assert os.sep not in NAME
