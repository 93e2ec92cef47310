"""Sixty days of a small company: repositories, a history, checks and incidents as runs would have left them.

``build(folder)`` writes them by opsctl's own records, without a server; ``fill`` makes them large.
"""

import random
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

from opsctl.catalog import Evidence
from opsctl.history import Ending, History
from opsctl.incident import Incidents
from opsctl.manifest import DatabaseProperties, Facts, Manifest, StoredFile, TableFacts, backup_id
from opsctl.repository import segment
from opsctl.sightings import Drill, Sightings
from opsctl.telemetry.redact import Redactor
from opsctl.times import format_time

HOSTILE = '<script>alert("x")</script>\x1b[31m\u202egpj'
"""A database's name that wants to be something else."""

NOW = datetime(2026, 11, 24, 15, 20, tzinfo=UTC)
DAY = timedelta(days=1)

CONFIG = """
[databases.saasdb]
url = "postgresql://saasuser:hunter2-canary@127.0.0.1:1/saasdb"

[databases.billing]
url = "postgresql://saasuser:hunter2-canary@127.0.0.1:1/billing"

[repositories.local]
url = "./backups"

[repositories.offsite]
url = "./offsite"

[schedule]
backup = "0 3 * * *"
drill = "0 5 * * 0"
doctor = "*/5 * * * *"
"""

PROPERTIES = DatabaseProperties("saasuser", "UTF8", "c", "C", "C", None, None, None, None, -1, ())


def manifest(database: str, at: datetime, *, plain: int, seconds: float, number: int = 0) -> Manifest:
    facts = Facts("counts", (TableFacts("public", "users", plain // 100),), (), (), ("saasuser",), PROPERTIES)
    stored = plain * 31 // 100
    dump = StoredFile("dump.zst", plain, stored, "0" * 64, "1" * 64)
    return Manifest(
        id=backup_id(segment(database), at, f"{number:04x}"),
        database=database,
        started_at=at,
        finished_at=at + timedelta(seconds=seconds),
        opsctl_version="0.1.0",
        pg_dump_version="18.4",
        server_version="18.4",
        host="db1",
        files=(dump,),
        facts=facts,
        restore_command="zstd -d --stdout dump.zst | pg_restore",
        system_identifier="7",
        database_oid=16384,
    )


def put(repository: Path, each: Manifest, *evidence: Evidence) -> None:
    """A backup as it lies in a local repository, but for the dump's bytes."""
    folder = repository / segment(each.database) / each.id
    (folder / "evidence").mkdir(parents=True)
    (folder / "manifest.json").write_bytes(each.to_json())
    for proof in evidence:
        (folder / proof.key).write_text("{}")


def build(folder: Path, *, now: datetime = NOW, hostile: bool = False) -> Path:
    """The story, in ``folder``; its state folder."""
    chance = random.Random(7)  # noqa: S311 - the same story every time
    (folder / "opsctl.toml").write_text(CONFIG)
    state = folder / "state"
    history = History(state / "history.db")
    for database, plain, pace in (("saasdb", 9_400_000_000, 11e6), ("billing", 640_000_000, 9e6)):
        _sixty_days(folder, history, chance, database, plain, pace, now)
    if hostile:
        last = now - timedelta(hours=3)
        put(folder / "backups", manifest(HOSTILE, last, plain=1_000, seconds=0.2))
        _run(history, "hostile", "backup", last, 1, Ending(HOSTILE, "failed", 12, "x", f"{HOSTILE} hunter2-canary"))
    _checks(history, now, hostile=hostile)
    _incidents(state, now)
    Sightings(state).update([], {"saasdb": Drill(now - 2 * DAY, 431.0)}, now=now)
    return state


def _sixty_days(
    folder: Path, history: History, chance: random.Random, database: str, plain: float, pace: float, now: datetime
) -> None:
    first = (now - 60 * DAY).replace(hour=3, minute=0, second=0)
    for day in range(61):
        at = first + day * DAY + timedelta(seconds=chance.uniform(0, 9))
        plain *= 1 + chance.uniform(0.001, 0.009)
        size = int(plain * (0.62 if (database, day) == ("billing", 47) else 1))
        seconds = size / pace * chance.uniform(0.9, 1.15) * (2.6 if day in {33, 34} else 1)
        run_id = f"{database[:2]}{day:04x}"
        if day in ({12, 41, 60} if database == "billing" else {25}):
            message = "The database billing refuses the login: password authentication failed."
            error = ("database_unreachable", message) if database == "billing" else ("repository_unreachable", None)
            _run(history, run_id, "backup", at, 2.2, Ending(database, "failed", 12, *error))
            continue
        each = manifest(database, at, plain=size, seconds=seconds, number=day * 977 % 65536)
        proofs = []
        if day % 7 == 2:
            proofs.append(Evidence("counted", True, at + timedelta(hours=2)))
        elif day % 2:
            proofs.append(Evidence("decoded", True, at + timedelta(minutes=40)))
        if (database, day) == ("saasdb", 44):
            proofs = [Evidence("stored", False, at + timedelta(hours=1))]
        put(folder / "backups", each, *proofs)
        if day > 20:
            put(folder / "offsite", each)
        done = Ending(database, "done", 0, None, None, each.id, each.dump.bytes, each.stored_bytes)
        _run(history, run_id, "backup", at, seconds, done)
        if proofs and day > 50:
            outcome = ("done", 0) if proofs[0].passed else ("failed", 15)
            _run(history, f"v{run_id}", "verify", at + timedelta(hours=1), 95.0, Ending(database, *outcome))


def _run(history: History, run_id: str, command: str, at: datetime, seconds: float, ending: Ending) -> None:
    history.begin(run_id, command, at=at, host="db1", pid=1, databases=[ending.database] if ending.database else [])
    history.end(run_id, [ending], at=at + timedelta(seconds=seconds))


def check(id_: str, status: str, message: str, target: str | None = None, **more: object) -> dict[str, object]:
    """A check's result as doctor's JSON has it."""
    empty = dict.fromkeys(("code", "value", "unit", "warn", "crit", "because", "remedy"))
    result = {"id": id_, "title": id_, "status": status, "message": message, "target": target}
    return {**empty, **result, "falling": False, "details": {}, "duration_seconds": 0.01, **more}


def remedy(text: str, command: str | None = None, scenario: str | None = None) -> dict[str, str | None]:
    return {"text": text, "command": command, "scenario": scenario}


def _checks(history: History, now: datetime, *, hostile: bool) -> None:
    well = [
        check("disk.space", "ok", "/var/lib: 61 % used, 148.2 GiB free.", "/var/lib", value=61.0, unit="%"),
        check("disk.inodes", "ok", "/var/lib: 4 % used.", "/var/lib"),
        check("host.memory", "ok", "5.2 GiB of 15.6 GiB available."),
        check("clock.skew", "ok", "0.2 s apart from the server's clock.", "saasdb", value=0.2, unit="s"),
        check("db.connect", "ok", "Connected in 4 ms.", "saasdb", value=0.004, unit="s"),
        check("db.connections", "ok", "31 of 100 connections are in use.", "saasdb", value=31.0),
        check("db.long_transactions", "ok", "The oldest transaction is 2.1 s old.", "saasdb"),
        check("db.wraparound", "ok", "11 % of the way to a forced shutdown.", "saasdb", value=11.0, unit="%"),
        check("db.replication", "ok", "One standby, 16.0 KiB behind.", "saasdb"),
        check("backup.fresh", "ok", "The newest backup is 12 h old.", "saasdb"),
        check("backup.size", "ok", "2.9 GiB, as the last ones.", "saasdb"),
        check("repository.reachable", "ok", "Listed in 80 ms.", "local"),
        check("service.state", "ok", "Runs since 12 days, healthy.", "bot"),
    ]
    if hostile:
        well.append(check("db.connect", "ok", f"Connected to {HOSTILE}.", HOSTILE))
    first = {"status": "ok", "verdict": {}, "checks": [*well, check("db.connect", "ok", "Connected.", "billing")]}
    history.record_checks(first, at=now - 20 * DAY, is_whole=True)
    bad = [
        check(
            "db.connect",
            "crit",
            'The server refuses the login: password authentication failed for user "saasuser".',
            "billing",
            code="auth",
            remedy=remedy(
                "Compare the password in BILLING_URL with the one of the role; somebody may have rotated it.",
                "psql -d 'host=10.0.0.7 dbname=billing user=saasuser' -c 'select 1'",
                "database-refuses-the-login",
            ),
        ),
        check(
            "backup.fresh",
            "warn",
            "The newest backup of billing is 36 h old; one is expected every 24 h.",
            "billing",
            value=129_600.0,
            unit="s",
            remedy=remedy("See why the last runs failed, then take one now.", "opsctl backup billing"),
        ),
        check(
            "db.sequences",
            "warn",
            "public.events_id_seq has used 81 % of an integer; it ends in about 40 days.",
            "saasdb",
            remedy=remedy("Change the column and its sequence to bigint before it ends."),
        ),
    ]
    skip = check("db.connections", "skip", "db.connect failed.", "billing", because="db.connect")
    verdict = {"cause": "db.connect", "target": "billing", "code": "auth", "summary": "x", "scenario": None}
    second = {"status": "crit", "verdict": verdict, "checks": [*well, *bad, skip]}
    history.record_checks(second, at=now - timedelta(hours=12), is_whole=True)
    history.record_checks(second, at=now - timedelta(minutes=3), is_whole=True)


def _incidents(state: Path, now: datetime) -> None:
    clock = [now - 18 * DAY]
    incidents = Incidents(state / "incidents", Redactor(), lambda: clock[0], {"user": "oncall", "host": "db1"})
    old = incidents.open("disk-is-full", "/var/lib at 97 %: the WAL archive stood still")
    for minutes, kind in ((4, "acknowledged"), (21, "mitigated"), (55, "resolved"), (90, "closed")):
        clock[0] = now - 18 * DAY + timedelta(minutes=minutes)
        old.append(kind)
    clock[0] = now - timedelta(hours=2)
    new = incidents.open("database-refuses-the-login", "billing: password authentication failed since 03:00")
    clock[0] = now - timedelta(hours=1, minutes=52)
    new.append("acknowledged")
    new.append("note", text="Rotation of Tuesday did not reach the backup host.")


def fill(folder: Path, *, backups: int, runs: int, now: datetime = NOW, databases: int = 5) -> Path:
    """As many backups and runs, one an hour: a configuration, a repository and a history."""
    names = [f"tenant{number}" for number in range(databases)]
    sections = [f'[databases.{name}]\nurl = "postgresql://127.0.0.1:1/{name}"\n' for name in names]
    (folder / "opsctl.toml").write_text("\n".join(sections) + '[repositories.local]\nurl = "./backups"\n')
    for number in range(backups):
        at = now - timedelta(hours=1 + number // databases)
        each = manifest(names[number % databases], at, plain=900_000_000 - 1_000 * number, seconds=80.0, number=number)
        put(folder / "backups", each, Evidence("decoded", True, at + timedelta(minutes=10)))
    state = folder / "state"
    history = History(state / "history.db")
    build_checks = folder / "checks"
    build_checks.mkdir()
    _checks(history, now, hostile=False)
    _incidents(state, now)
    _many_runs(history, state / "history.db", names, runs, now)
    return state


def _many_runs(history: History, path: Path, names: list[str], runs: int, now: datetime) -> None:
    """One real run of each kind, then copies of them: 100,000 commits would take minutes."""
    for number, name in enumerate(names):
        at = now - timedelta(minutes=30 + number)
        _run(history, f"last{number}", "backup", at, 80, Ending(name, "done", 0, None, None, f"{name}-last", 9, 3))
        _run(history, f"fail{number}", "backup", at - DAY, 1, Ending(name, "failed", 12, "x", "No answer."))
    with sqlite3.connect(path) as connection:
        columns = [row[1] for row in connection.execute("pragma table_info(runs)")]
        template = connection.execute("select * from runs where run_id = 'last0'").fetchone()
        base = dict(zip(columns, template, strict=True))

        def rows():
            for number in range(runs):
                at = now - timedelta(minutes=40 + number)
                times = {"started_at": format_time(at), "finished_at": format_time(at + timedelta(seconds=20))}
                name = names[number % len(names)]
                command = "doctor" if number % 3 else "backup"
                yield tuple(
                    {**base, "run_id": f"{number:016x}", "database": name, "command": command, **times}.values()
                )

        connection.executemany(f"insert into runs values ({', '.join('?' * len(columns))})", rows())
