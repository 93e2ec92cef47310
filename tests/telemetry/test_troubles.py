"""What a run's result says is wrong and what is well, and how it is told."""

from datetime import UTC, datetime

from opsctl.cli.output import Outcome
from opsctl.cli.troubles import drill_message, found_by, found_by_checks, messages
from opsctl.errors import BackupDamaged, DatabaseUnreachable, ExitCode
from opsctl.telemetry.told import News, Trouble

EVERYTHING = ("failure", "recovery", "drill", "doctor")


def backup_of(database, error=None, **repositories):
    places = [
        {"name": name, "status": "failed" if why else "stored", "error": why} for name, why in repositories.items()
    ]
    failed = error and {"code": "dump_failed", "message": error, "hint": None}
    return {"database": database, "status": "failed" if error else "stored", "repositories": places, "error": failed}


def proof_of(database, outcome, *problems, restored_on=None, seconds=None):
    item = {"id": f"{database}-1", "database": database, "outcome": outcome, "evidence": None, "repositories": []}
    return {**item, "problems": list(problems), "restored_on": restored_on, "restore_seconds": seconds}


def test_of_several_databases_only_the_failed_one_is_a_trouble():
    """Every database, and every repository of it, fails and recovers for itself."""
    items = [backup_of("app", local=None, offsite="denied"), backup_of("billing", "pg_dump ended"), backup_of("log")]
    found = found_by("backup", Outcome({"backups": items}, exit_code=ExitCode.ATTENTION))
    assert {each.key: each.cause for each in found.troubles} == {
        "backup/app/offsite": "not_stored",
        "backup/billing": "dump_failed",
    }
    assert found.well == {"backup/", "backup/app", "backup/app/local", "backup/log"}


def test_a_failure_before_anything_began_is_the_commands():
    """Why a server cannot be reached is part of the cause."""
    error = DatabaseUnreachable("No such host.", reason="dns")
    (trouble,) = found_by("backup", Outcome(None, error=error, fields={"database": "app"})).troubles
    assert (trouble.key, trouble.cause) == ("backup/app", "database_unreachable/dns")


def test_what_needs_attention_says_why():
    """The warnings of the log are the message, where the result names no culprit."""
    outcome = Outcome({"backups": [backup_of("app")]}, exit_code=ExitCode.ATTENTION, fields={"database": "app"})
    found = found_by("backup", outcome, ["the clocks are 400 s apart"])
    assert [(each.cause, each.message) for each in found.troubles] == [("attention", "the clocks are 400 s apart")]
    assert found.well == {"backup/"}


def test_a_backup_of_less_is_a_trouble_of_its_database():
    """It was stored, and somebody has to look: with the command that shows what is gone. The next usual one ends it."""
    less = {**backup_of("app"), "id": "app-2", "compared_with": "app-1", "unusual": [{"message": "t has 0 rows"}]}
    outcome = Outcome({"backups": [less, backup_of("log")]}, exit_code=ExitCode.ATTENTION)
    found = found_by("backup", outcome)
    assert [(each.key, each.cause, each.message) for each in found.troubles] == [
        ("backup/app", "unusual", "t has 0 rows")
    ]
    assert "opsctl diff app-1 app-2" in found.troubles[0].hint
    assert found.well == {"backup/", "backup/log"}


def test_a_damaged_backup_and_one_that_was_not_judged_are_two_troubles():
    items = [proof_of("app", "fail", "local: 3 rows differ"), proof_of("app", "pass"), proof_of("log", "unknown", "x")]
    found = found_by("verify", Outcome({"backups": items}, error=BackupDamaged("Damaged: app-1.")))
    assert {each.key: each.cause for each in found.troubles} == {"verify/app": "damaged", "verify/log": "unknown"}
    assert "3 rows differ" in found.troubles[0].message
    assert found.well == {"verify/"}


def test_a_skipped_check_is_neither_well_nor_a_trouble():
    """Nobody looked at what depends on something that failed; a warning wakes nobody, and ends an alarm."""
    checks = [
        {"id": "db.connect", "target": "app", "status": "crit", "message": "refused", "remedy": {"text": "Start it."}},
        {"id": "db.age", "target": "app", "status": "skip", "message": "", "remedy": None},
        {"id": "disk", "target": None, "status": "warn", "message": "85 %", "remedy": None},
        {"id": "clock", "target": None, "status": "unknown", "message": "?", "remedy": None},
    ]
    found = found_by_checks(checks)
    assert [each.key for each in found.troubles] == ["check/db.connect (app)", "check/clock"]
    assert found.troubles[0].hint == "Start it."
    assert found.well == {"check/disk"}


def test_who_wants_no_checks_hears_of_no_checks():
    """`on` chooses; all that one run found is one message."""
    failed = Trouble("backup/app", "dump_failed", "backup of app failed", "It ended.", "Look.")
    crit = Trouble("check/disk", "crit", "disk is crit", "99 %")
    news = News(new=(failed, crit), again=((crit, datetime(2026, 11, 24, tzinfo=UTC)),))
    (message,) = messages(news, on=("failure",), host="db1", run="run 1")
    assert message.title == "db1: backup of app failed"
    assert message.body == "backup of app failed: It ended.\nLook.\n\nrun 1"
    (message,) = messages(news, on=EVERYTHING, host="db1", run="run 1")
    assert message.title == "db1: backup of app failed, and 2 more"
    assert "So since 2026-11-24 00:00 UTC." in message.body
    assert messages(news, on=("recovery",), host="db1", run="run 1") == []


def test_a_drill_says_what_it_proved():
    """Passed, failed and not judged are three words; reading a backup back is no drill."""
    passed = proof_of("app", "pass", restored_on="17", seconds=12.0)
    outcome = Outcome({"backups": [passed]})
    message = drill_message("drill", outcome, host="db1", run="run 1")
    assert (message.kind, message.title) == ("success", "db1: drill passed")
    assert "app-1: pass, restored in 12.0 s" in message.body
    failed = Outcome({"backups": [passed, proof_of("log", "fail", "local: rows differ", restored_on="17")]})
    message = drill_message("verify", failed, host="db1", run="run 1")
    assert (message.kind, message.title) == ("failure", "db1: drill failed")
    assert "local: rows differ" in message.body
    unknown = Outcome({"backups": [proof_of("app", "unknown", "no server")]})
    assert drill_message("drill", unknown, host="db1", run="run 1").title == "db1: drill could not be judged"
    assert drill_message("verify", unknown, host="db1", run="run 1") is None
    assert drill_message("backup", Outcome({"backups": [backup_of("app")]}), host="db1", run="run 1") is None
