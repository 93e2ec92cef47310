"""Incidents as commands, the draft of a postmortem, and bundles: what they say, and what they never say."""

import gzip
import io
import json
import re
import tarfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsctl.bundle import LONGEST_BYTES, read_bundle, safe_name, write_bundle
from opsctl.errors import UsageError
from opsctl.incident import Incidents, summarize
from opsctl.pieces import Piece, take
from opsctl.postmortem import as_block, as_inline, as_markdown, check_changes, durations, spoken, told, unfinished
from opsctl.telemetry.redact import Redactor
from opsctl.telemetry.shapes import without_shapes

NOW = datetime(2026, 11, 24, 3, 14, tzinfo=UTC)


class Clock:
    """A minute passes between two looks at it."""

    def __init__(self):
        self.now = NOW

    def __call__(self):
        self.now += timedelta(minutes=1)
        return self.now


@pytest.fixture
def incident(tmp_path):
    """An incident as `runbook run` leaves it."""
    actor = {"user": "root", "sudo_user": "eve", "host": "db1"}
    found = Incidents(tmp_path, Redactor(), Clock(), actor).open("bot-is-down", "The bot is down", run_id="1")
    bot = {"id": "service.bot", "target": "bot", "status": "crit", "message": "exited with 1"}
    disk = {"id": "disk.space", "target": None, "status": "ok", "message": "all is well"}
    found.append("checks", when="before", status="crit", verdict={"summary": "bot"}, checks=[bot, disk])
    found.append("confirmed", step="restart-bot", how="typed", target="bot", command=["opsctl restart bot"])
    found.append("capture", piece="logs", data={"saas_bot_1": "```\n</details> @eve"})
    found.append("capture", piece="services", reason="Docker does not answer.")
    found.append("step_started", step="restart-bot", effect="change", digest="x", command=["opsctl restart bot"])
    found.append("step_finished", step="restart-bot", outcome="done", duration_seconds=3.21, output="Restarted bot")
    found.append("checks", when="after", step="restart-bot", checks=[{**bot, "status": "ok", "message": "runs"}])
    found.append("mitigated", text="service.bot green")
    found.append("resolved", text="all green")
    return found


def test_a_postmortem_has_moments_timeline_checks_and_outputs(incident):
    """What is known is filled in; the durations count from the detection."""
    found = incident.verify()
    summary = summarize(incident.id, found.events)
    assert durations(summary) == {
        "time_to_acknowledge_seconds": 120,
        "time_to_mitigate_seconds": 480,
        "time_to_resolve_seconds": 540,
    }
    text = as_markdown(summary, found)
    for line in (
        "# Postmortem: The bot is down",
        "| Mitigated | 2026-11-24 03:24:00 UTC, after **8 min** (MTTM) |",
        "| Resolved | 2026-11-24 03:25:00 UTC, after **9 min** (MTTR) |",
        "| People | eve (as root) on db1 |",
        "| 7 | 03:22:00 | step finished | restart-bot: done after 3.2 s |",
        "| 5 | 03:20:00 | capture | services: Docker does not answer. |",
        "| service.bot (bot) | crit | ok | runs |",
        "1 other checks were ok or skipped before and after.",
        "<summary>7 · restart-bot</summary>",
        "| Action | Owner | Due |",
    ):
        assert line in text.splitlines(), text
    assert found.link.hash in text
    assert unfinished(found.events) == []


def test_a_step_without_an_end_is_said(incident):
    """A crash in the middle of a step: nobody may believe that it was done."""
    incident.append("step_started", step="two", command=["opsctl restart api"])
    found = incident.verify()
    assert unfinished(found.events) == ["two"]
    assert "The step two began and has no end" in as_markdown(summarize(incident.id, found.events), found)


HOSTILE = st.text(alphabet="ab `*_[]()<>|#@!~$&\\/:.-+=1\n\r\x1b\u202e\"'", max_size=40)


@settings(max_examples=200)
@given(text=HOSTILE)
def test_hostile_text_stays_text(text):
    """Neither markup, nor a link, a mention, a cell's end, an HTML tag or an order to a terminal comes of it."""
    shown = as_inline(text)
    assert not re.search(r"[\x00-\x1f\u202e<>]", shown)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]|~$]", shown.replace("\\\\", ""))
    assert not re.search(r"[@#]\w|\w://|^[#+=-]|^\d+[.)]", shown.replace("&#8203;", "\0").replace("&#", "\0"))
    block = as_block(text).split("\n")
    assert block[0].endswith("text")
    fence = block[0].removesuffix("text")
    assert block[-1] == fence
    assert not any(line.strip().startswith(fence) for line in block[1:-1])


def test_a_rendered_postmortem_holds_no_markup_of_others(incident):
    """What a log holds ends neither its fence nor its fold."""
    text = as_markdown(incident.summary(), incident.verify())
    assert "````text" in text
    assert text.count("\n</details>\n") - text.count("````text\n{") >= 0
    assert [told(each) for each in incident.events()][3:5] == ["logs: saved", "services: Docker does not answer."]
    assert [(each.before, each.after) for each in check_changes(incident.events())] == [("crit", "ok"), ("ok", "ok")]
    assert [spoken(each) for each in (0, 59, 60, 3661, 90000)] == ["0 s", "59 s", "1 min", "1 h 1 min", "1 d 1 h"]


def test_pieces_neither_fail_nor_hold_up_each_other():
    """One hangs, one has a bug, one fails in order: each says why, the others are there."""
    from threading import Event

    hang = Event()
    try:
        pieces = [
            Piece("hangs", hang.wait),
            Piece("bug", lambda: 1 / 0),
            Piece("fails", lambda: read_bundle(io.BytesIO())),
            Piece("works", lambda: 7),
        ]
        found = {each.name: each for each in take(pieces, seconds=0.5)}
    finally:
        hang.set()
    assert found["works"].data == 7
    assert found["works"].reason is None
    assert found["hangs"].reason == "No answer within 0.5 s."
    assert "ZeroDivisionError" in found["bug"].reason
    assert "not a bundle" in found["fails"].reason


# Bundles


def packed(members=None, folder="b"):
    sink = io.BytesIO()
    write_bundle(sink, folder, members or {"doctor.json": b"{}"}, made_at=NOW, about={})
    return sink.getvalue()


def test_a_bundle_is_read_back_and_always_the_same():
    """Its list is true, its bytes depend on what is in it alone."""
    members = {"doctor.json": b"{}", "logs/a.txt": b"x" * 100}
    assert read_bundle(io.BytesIO(packed(members))) == members
    assert packed(members) == packed(members)
    assert [safe_name(each) for each in ("/a/../b", "..", "é", "activity saasdb")] == [
        "_a_.._b",
        "_",
        "_",
        "activity_saasdb",
    ]


def tar_of(*members, data=b"x"):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        for name, changes in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in changes.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def bomb():
    sink = io.BytesIO()
    with gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=9) as packed_file:
        member = tarfile.TarInfo("b/big")
        member.size = LONGEST_BYTES - 1024
        packed_file.write(member.tobuf())
        for _ in range(LONGEST_BYTES // 2**20 + 2):
            packed_file.write(bytes(2**20))
    return sink.getvalue()


HOSTILE_TARS = {
    "symlink": lambda: tar_of(("b/doctor.json", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0})),
    "hard link": lambda: tar_of(("b/doctor.json", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd", "size": 0})),
    "device": lambda: tar_of(("b/zero", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5, "size": 0})),
    "pipe": lambda: tar_of(("b/pipe", {"type": tarfile.FIFOTYPE, "size": 0})),
    "folder": lambda: tar_of(("b/folder", {"type": tarfile.DIRTYPE, "size": 0})),
    "way up": lambda: tar_of(("b/../../etc/passwd", {})),
    "absolute": lambda: tar_of(("/etc/passwd", {})),
    "twice": lambda: tar_of(("b/x", {}), ("c/x", {})),
    "many": lambda: tar_of(*((f"b/{number}", {}) for number in range(1100))),
    "no list": lambda: tar_of(("b/doctor.json", {})),
    "list of nothing": lambda: tar_of(("b/manifest.json", {}), data=b'{"schema":"opsctl.bundle/1","members":7}'),
    "deep list": lambda: tar_of(("b/manifest.json", {}), data=b"[" * 100_000),
    "another schema": lambda: tar_of(("b/manifest.json", {}), data=b'{"schema":"opsctl.bundle/9","members":[]}'),
    "bomb": bomb,
    "cut off": lambda: packed()[:-20],
    "no tar": lambda: gzip.compress(b"hello"),
    "no gzip": lambda: b"\x1f\x8bhello",
    "one byte changed": lambda: gzip.compress(gzip.decompress(packed()).replace(b"{}", b"[]", 1)),
}


@pytest.mark.parametrize("name", HOSTILE_TARS)
def test_a_hostile_bundle_is_refused(name):
    """Whatever comes from elsewhere: a plain message, no file outside of memory, no more memory than is allowed."""
    with pytest.raises(UsageError, match="not a bundle"):
        read_bundle(io.BytesIO(HOSTILE_TARS[name]()))


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_bundles_never_crash(data):
    """Any change is refused, or changes nothing of the members."""
    whole = bytearray(packed({"doctor.json": b"{}", "disk.json": b"[]"}))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_bundle(io.BytesIO(bytes(whole)))
    except UsageError:
        return
    assert found == {"doctor.json": b"{}", "disk.json": b"[]"}


# The commands


@pytest.fixture
def opsctl(run_opsctl, saas, canned_engine):
    """The program with a database and two services, of which only the engine's answers are canned."""
    (run_opsctl.work / "opsctl.toml").write_text(
        "[databases.saasdb]\nurl_env = 'DATABASE_URL'\n[repositories.local]\nurl = './backups'\n"
        "[services.bot]\ncompose_project = 'saas'\ncompose_service = 'bot'\n"
        "[services.api]\ncompose_project = 'saas'\ncompose_service = 'api'\n"
    )

    def run(*words, env=None, **options):
        return run_opsctl(*words, url=saas.url, env={"DOCKER_HOST": canned_engine.host, **(env or {})}, **options)

    run.work, run.state = run_opsctl.work, run_opsctl.state
    return run


def test_an_incident_by_hand_from_open_to_export(opsctl, saas):
    """Opened with a capture of everything, noted from stdin and as text, closed after a last look, exported."""
    opened = opsctl("incident", "open", "API answers 502", "--detected-at", "2026-11-24", "--json").json["result"]
    assert {each["piece"]: each["reason"] for each in opened["captured"]} == dict.fromkeys(
        ["doctor", "services", "logs", "disk", "backups", "history", "activity saasdb"]
    )
    name = opened["id"]
    assert opsctl("incident", "note", "text alone").returncode == 0
    assert opsctl("incident", "note", name, input="from stdin\n").returncode == 0
    assert opsctl("incident", "note", name, "traffic is back", "--moment", "mitigated").returncode == 0
    future = opsctl("incident", "note", "x", "--at", "2999-01-01", "--json")
    assert (future.returncode, future.json["error"]["code"]) == (2, "usage")
    assert opsctl("incident", "close", "--note", "rolled back").returncode == 0
    assert opsctl("incident", "close", "--json").json["error"]["code"] == "no_such_incident"

    [listed] = opsctl("incident", "list", "--json").json["result"]["incidents"]
    assert (listed["id"], listed["status"], listed["scenario"], listed["is_intact"]) == (name, "closed", None, True)
    shown = opsctl("incident", "show", name[-4:], "--json").json["result"]
    notes = [each["fields"]["text"] for each in shown["timeline"] if each["kind"] in {"note", "mitigated"}]
    assert notes == ["text alone", "from stdin", "traffic is back"]
    captured = {
        each["fields"]["piece"]: each["fields"]["data"] for each in shown["timeline"] if each["kind"] == "capture"
    }
    assert "line 4 ***" in captured["logs"]["saas_bot_1"]
    assert captured["activity saasdb"]["blocked"]["waiting"] == 0
    assert captured["disk"][0]["free_bytes"] > 0
    text = opsctl("incident", "export", name, "--md").stdout
    assert text.startswith("# Postmortem: API answers 502\n")
    assert "MTTR" in text
    (opsctl.work / "pm.md").unlink(missing_ok=True)
    assert opsctl("incident", "export", "-o", "pm.md").returncode == 0
    assert (opsctl.work / "pm.md").read_text() == text
    assert opsctl("incident", "export", "--json").json["result"]["incident"]["id"] == name


def test_verify_ends_with_15_for_a_changed_timeline(opsctl):
    """One byte is enough; so is a hash that somebody kept and that is not in the chain any more."""
    assert opsctl("incident", "open", "x", "--no-capture").returncode == 0
    [verified] = opsctl("incident", "verify", "--json").json["result"]["incidents"]
    assert opsctl("incident", "verify", "latest", "--head", verified["head"]).returncode == 0
    assert opsctl("incident", "verify", "latest", "--head", "0123456789").returncode == 15
    [path] = (opsctl.state / "incidents").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"x"', b'"y"'))
    run = opsctl("incident", "verify", "--json")
    assert (run.returncode, run.json["error"]["code"]) == (15, "timeline_changed")
    assert run.json["result"]["incidents"][0]["problems"][0]["line"] == 1
    assert opsctl("incident", "list", "--json").json["result"]["incidents"][0]["status"] == "damaged"
    assert opsctl("incident", "show", "nothing", "--json").json["exit_code"] == 14


def test_a_bundle_can_be_judged_elsewhere(opsctl, run_opsctl):
    """Its verdict is doctor's, and what could not be read is said; a hostile one ends with 3, as doctor's errors do."""
    assert opsctl("incident", "open", "x", "--no-capture").returncode == 0
    assert opsctl("backup").returncode == 0
    made = opsctl("bundle", "latest", "-o", "ticket.tar.gz", "--json").json["result"]
    assert {each["name"] for each in made["members"]} >= {
        "doctor.json", "services.json", "backups.json", "history.json", "disk.json", "versions.json",
        "configuration.json", "activity_saasdb.json", "logs/saas_bot_1.txt", "timeline.jsonl", "postmortem.md",
    }  # fmt: skip
    assert (opsctl.work / "ticket.tar.gz").stat().st_mode & 0o777 == 0o600
    with (opsctl.work / "ticket.tar.gz").open("rb") as file:
        runs = json.loads(read_bundle(file)["history.json"])
    assert [(each["command"], each["outcome"]) for each in runs] == [("backup", "done")]
    now = opsctl("doctor", "--json").json["result"]
    then = run_opsctl("doctor", "--input", "ticket.tar.gz", "--json").json["result"]
    assert {each["id"]: each["status"] for each in then["checks"]} == {
        each["id"]: each["status"] for each in now["checks"]
    }
    (opsctl.work / "bad.tar.gz").write_bytes(HOSTILE_TARS["symlink"]())
    assert run_opsctl("doctor", "--input", "bad.tar.gz").returncode == 3


# Secrets


def planted(number):
    """A hundred of them; some with characters that are escaped where they stand."""
    return f"cnry{number:03d}" + ("zz%9q", "p@ss:w", "a+b/c=", "Xy7-_k")[number % 4]


COMMANDS = (
    "mysql --password={} -e 1", "PGPASSWORD={} psql", "curl -H 'Authorization: Bearer {}' http://x", "x --api-key {}",
    "curl https://u:{}@h/", "psql postgresql://u:{}@h/d", "curl 'http://h/?token={}&a=1'", "export STRIPE_KEY={}",
    "alter role x password '{}'", 'echo {{"password":"{}","a":1}}',
)  # fmt: skip
LOG_LINES = (
    "login password={}", "Authorization: Basic {}", "token: {}", '{{"secret": "{}", "level": "info"}}',
    "connecting to redis://:{}@cache:6379/0", "Set-Cookie: sid={}; Path=/", "GET /?access_token={}", "api_key => '{}'",
    "client_secret={}", "dsn=https://{}@sentry.example/1",
)  # fmt: skip


def test_a_hundred_planted_secrets_are_nowhere(opsctl, saas, canned_engine):
    """In variables, commands, logs, statements and notes, known by value or by shape: in no file, export or bundle."""
    secrets = [planted(number) for number in range(100)]
    environment = {f"SERVICE_{number}_TOKEN": secrets[number] for number in range(10)}
    environment |= {"PGPASSWORD": secrets[10], "AWS_SECRET_ACCESS_KEY": secrets[11]}
    encoded = quote(secrets[12], safe="")
    with (opsctl.work / "opsctl.toml").open("a") as file:
        file.write(f"[databases.away]\nurl = 'postgresql://me:{encoded}@127.0.0.1:1/away'\n")
        file.write(f"[http.site]\nurl = 'http://127.0.0.1:1/'\nheaders = {{ Authorization = '{secrets[13]}' }}\n")
    (opsctl.work / ".env").write_text(f"MAIL_PASSWORD={secrets[14]}\n")
    bot = canned_engine.containers["bot"]
    bot["Config"]["Env"] += [f"VALUE_{number}_KEY={secrets[number]}" for number in range(20, 30)]
    bot["Args"] = [word for number in range(30, 40) for word in ("--password", secrets[number])]
    lines = [template.format(secrets[40 + number]) for number, template in enumerate(LOG_LINES)]
    lines += [f"a line with {each} in it" for each in (*secrets[:15], *secrets[20:30])]
    canned_engine.logs = [("2026-11-24T11:18:00.1Z", 1, f"{line}\n".encode()) for line in lines]
    statements = [f"select '{secrets[number]}'" for number in range(50, 55)]
    statements += [f"select 1 /* */ where 'x' = $a${secrets[number]}$a$" for number in range(55, 60)]
    with ExitStack() as stack:
        for statement in statements:
            connection = stack.enter_context(saas.connect(autocommit=False))
            connection.execute(statement)
        run = opsctl("incident", "open", f"password={secrets[60]}", "--json", env=environment)
        assert run.returncode == 0, run
        outputs = [run.stdout + run.stderr]
        [path] = (opsctl.state / "incidents").glob("*.jsonl")
        found = Incidents(path.parent, Redactor(), lambda: NOW).find("latest")
        for number, template in enumerate(COMMANDS):
            found.append("note", text=template.format(secrets[61 + number]))
            found.append("step_started", step="x", command=[template.format(secrets[71 + number])])
        for number in range(81, 90):
            found.append("step_finished", step="x", output=f"\n{LOG_LINES[number - 81].format(secrets[number])}\n")
        found.append("note", argv=["mysql", "--password", secrets[90]], env={"API_TOKEN": secrets[91]})
        found.append("note", text=f"-----BEGIN PRIVATE KEY-----\n{secrets[92]}\n-----END PRIVATE KEY-----")
        note = opsctl("incident", "note", f"the env says {secrets[3]} and {encoded}", env=environment)
        assert note.returncode == 0, note
        for words in (
            ("incident", "export", "--md"), ("incident", "export", "--json"), ("incident", "show"),
            ("bundle", "latest", "-o", "t.tar.gz", "--json"),
        ):  # fmt: skip
            run = opsctl(*words, env=environment)
            assert run.returncode == 0, run
            outputs.append(run.stdout + run.stderr)
    members = read_bundle(io.BytesIO((opsctl.work / "t.tar.gz").read_bytes()))
    outputs += [data.decode() for data in members.values()]
    outputs += [each.read_text() for each in (opsctl.state / "incidents").iterdir()]
    assert "cnry" not in re.sub("|".join(map(re.escape, environment)), "", "".join(outputs)), [
        output[max(0, at.start() - 80) : at.end() + 20] for output in outputs for at in re.finditer("cnry", output)
    ]
    assert "***" in members["logs/saas_bot_1.txt"].decode()
    assert len(lines) == members["logs/saas_bot_1.txt"].decode().count("stdout")
    assert found.verify().is_intact


@pytest.mark.parametrize(
    "text",
    [
        "password authentication failed for user saasuser",
        "passed: 3, failed: 0",
        "postgresql://saasuser@db:5432/saasdb",
        "the tokens table has 5 rows; compass: north",
        "db.connect (saasdb): Connection refused",
        "$ opsctl restart bot --yes bot",
    ],
)
def test_what_is_no_secret_stays(text):
    """A timeline in which everything is masked helps nobody."""
    assert without_shapes(text) == text
    json.dumps(text)


@pytest.mark.parametrize("piece", ["-", "a-", "password", 'password="', "a://", "eyJ", "token: ", "%3A%2F%2F", "key_"])
def test_long_lines_of_a_log_are_masked_in_time(piece):
    """A tenth of a megabyte on one line, whatever is in it: the test's time limit is the only clock."""
    without_shapes(piece * (100_000 // len(piece)))
