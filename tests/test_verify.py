"""`opsctl verify`: damage of every kind is found and named, what is intact earns evidence, and no server is needed."""

import json
import re
import shutil
import stat
from datetime import UTC, datetime, timedelta

import pytest

pytestmark = pytest.mark.end_to_end

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def only(run):
    (backup,) = run.json["result"]["backups"]
    return backup


def evidence_in_list(run_opsctl):
    return {each["id"]: each["evidence"] for each in run_opsctl("list", "--json").json["result"]["backups"]}


# What is intact


def test_pass_is_decoded_and_recorded(run_opsctl, stored):
    """Intact: the evidence is ``decoded``, in the result, in the list, and as an object beside the backup."""
    run = run_opsctl("verify", "--json")

    assert run.returncode == 0, run
    assert {key: only(run)[key] for key in ("id", "outcome", "evidence", "problems", "restore_seconds")} == {
        "id": stored.id,
        "outcome": "pass",
        "evidence": "decoded",
        "problems": [],
        "restore_seconds": None,
    }
    (evidence,) = stored.evidence
    assert re.fullmatch(r"\d{8}T\d{6,12}Z-decoded-pass\.json", evidence.name)
    assert stat.S_IMODE(evidence.stat().st_mode) == 0o600
    body = json.loads(evidence.read_text())
    assert (body["backup_id"], body["level"], body["outcome"]) == (stored.id, "decoded", "pass")
    shown = evidence_in_list(run_opsctl)[stored.id]
    assert shown["level"] == "decoded"
    assert shown["at"] == body["at"]
    assert "decoded" in run_opsctl("list").stdout


def test_newest_of_each_database_by_default(run_opsctl, stored):
    """Without a name the newest backup of every database is verified; ``--all`` verifies every one."""
    older = stored.copy(NOON)
    other = run_opsctl.work / "backups" / "shop" / "shop-20260501T120000Z-0000"
    shutil.copytree(older.folder, other)
    (other / "manifest.json").write_text(json.dumps({**older.manifest, "id": other.name, "database": "shop"}))

    newest = run_opsctl("verify", "--json").json["result"]["backups"]
    everything = run_opsctl("verify", "--all", "--json").json["result"]["backups"]
    assert {each["id"] for each in newest} == {stored.id, other.name}
    assert {each["id"] for each in everything} == {stored.id, older.id, other.name}
    assert {each["outcome"] for each in everything} == {"pass"}


def test_named_backups(run_opsctl, stored):
    """Named backups are verified, and only those; a name and ``--all`` together are a usage error."""
    older = stored.copy(NOON)

    assert only(run_opsctl("verify", older.id, "--json"))["id"] == older.id
    assert stored.evidence == []
    assert run_opsctl("verify", older.id, "--all").returncode == 2
    assert run_opsctl("verify", "nothing").returncode == 14


def test_nothing_to_verify_is_14(run_opsctl):
    """Nothing verified is no success."""
    assert run_opsctl("verify").returncode == 14
    assert run_opsctl("verify", "--all").returncode == 14


def test_every_verification_is_kept(run_opsctl, stored):
    """Evidence is added, never replaced."""
    run_opsctl("verify")
    run_opsctl("verify")

    assert len(stored.evidence) == 2


# What is damaged


@pytest.mark.parametrize("where", [0.0, 0.001, 0.25, 0.5, 0.9, 1.0])
def test_one_flipped_bit_is_found(run_opsctl, stored, where):
    """One bit anywhere in the dump: 15, the file is named, and the backup is marked in the list."""
    data = bytearray(stored.dump.read_bytes())
    data[round(where * (len(data) - 1))] ^= 0x10
    stored.dump.write_bytes(data)
    run = run_opsctl("verify", "--json")

    assert run.returncode == 15, run
    assert (only(run)["outcome"], only(run)["evidence"]) == ("fail", None)
    assert "dump.zst" in " ".join(only(run)["problems"])
    assert run.json["error"]["code"] == "backup_damaged"
    assert stored.id in run.json["error"]["message"]
    (evidence,) = stored.evidence
    assert evidence.name.endswith("-stored-fail.json")
    (entry,) = run_opsctl("list", "--json").json["result"]["backups"]
    assert (entry["evidence"], entry["failed_in"]) == (None, ["local"])
    assert "DAMAGED in local" in run_opsctl("list").stdout


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("dump.zst", lambda data: data[:-1]),
        ("dump.zst", lambda data: data[: len(data) // 2]),
        ("dump.zst", lambda data: b""),
        ("dump.zst", lambda data: data + b"\0"),
        ("dump.zst", lambda data: None),
        ("globals.sql.zst", lambda data: data[:-1]),
        ("globals.sql.zst", lambda data: None),
    ],
    ids=["last byte", "half", "empty", "longer", "deleted", "roles cut", "roles deleted"],
)
def test_cut_longer_or_missing_files_are_found(run_opsctl, stored, file, damage):
    """A file that is shorter, longer or gone makes the backup damaged, whichever file it is."""
    path = stored.folder / file
    changed = damage(path.read_bytes())
    path.unlink() if changed is None else path.write_bytes(changed)
    run = run_opsctl("verify", "--json")

    assert run.returncode == 15, run
    assert file in " ".join(only(run)["problems"])


def test_one_damaged_backup_does_not_hide_the_others(run_opsctl, stored):
    """``--all`` goes on after damage: everything else is verified, and the exit code is still 15."""
    damaged, older = stored.copy(NOON + timedelta(hours=1)), stored.copy(NOON)
    damaged.dump.write_bytes(b"not a zstd frame")
    run = run_opsctl("verify", "--all", "--json")

    assert run.returncode == 15
    outcomes = {each["id"]: each["outcome"] for each in run.json["result"]["backups"]}
    assert outcomes == {stored.id: "pass", damaged.id: "fail", older.id: "pass"}
    assert evidence_in_list(run_opsctl)[older.id]["level"] == "decoded"
    text = run_opsctl("verify", "--all").stdout
    assert re.search(rf"fail +{damaged.id}", text)
    assert re.search(rf"pass +{older.id}", text)


def test_damaged_manifest_is_named_everywhere(run_opsctl, stored):
    """A backup whose manifest is damaged is listed apart; naming it, and verifying all, ends with 15."""
    older = stored.copy(NOON)
    (older.folder / "manifest.json").write_bytes(b"{}")

    result = run_opsctl("list", "--json").json["result"]
    assert [each["id"] for each in result["backups"]] == [stored.id]
    assert [each["id"] for each in result["incomplete"]] == [older.id]
    for command in (("show",), ("verify",), ("restore", "--plan"), ("export",), ("pin",)):
        run = run_opsctl(*command, older.id, "--json")
        assert (run.returncode, run.json["error"]["code"]) == (15, "backup_damaged"), command
    run = run_opsctl("verify", "--all", "--json")
    assert run.returncode == 15
    assert {each["id"]: each["outcome"] for each in run.json["result"]["backups"]} == {
        older.id: "fail",
        stored.id: "pass",
    }


def test_damaged_manifest_of_the_newest_backup_is_no_success(run_opsctl, stored):
    """Plain ``verify`` says so when the newest backup, or the only one, has a manifest that cannot be read."""
    older = stored.copy(NOON)
    (stored.folder / "manifest.json").write_bytes(b"{}")
    run = run_opsctl("verify", "--json")
    shutil.rmtree(older.folder)
    only_one = run_opsctl("verify", "--json")

    assert run.returncode == 15, run
    assert {each["id"]: each["outcome"] for each in run.json["result"]["backups"]} == {
        stored.id: "fail",
        older.id: "pass",
    }
    assert only_one.returncode == 15, only_one
    assert only(only_one)["id"] == stored.id


def test_rows_missing_inside_the_archive_are_found(run_opsctl, stored):
    """Digests made to fit hide nothing: two rows melted into one are a count that the facts do not have."""
    plain = stored.plain_dump()
    changed = plain.replace(b"customer 1\t1\t", b"customer 1 1 ", 1)
    start = changed.index(b"customer 1 1 ")
    end = changed.index(b"\n", start)
    stored.replace_dump(changed[:end] + b" " + changed[end + 1 :])
    run = run_opsctl("verify", "--json")

    assert run.returncode == 15, run
    assert (only(run)["outcome"], only(run)["evidence"]) == ("fail", "stored")
    assert only(run)["problems"] == [
        "local: table billing.invoices has 79 rows in the dump, 80 in the manifest",
    ]
    assert stored.evidence[0].name.endswith("-decoded-fail.json")


def test_archive_that_pg_restore_cannot_read_is_found(run_opsctl, stored):
    """An archive cut in the middle whose digests fit is still not decoded."""
    plain = stored.plain_dump()
    stored.replace_dump(plain[: len(plain) * 2 // 3])
    run = run_opsctl("verify", "--json")

    assert run.returncode == 15, run
    assert only(run)["problems"]


def test_nothing_is_believed_of_a_dump_that_is_none(run_opsctl, stored):
    """Bytes that are no archive at all, with fitting digests, fail."""
    stored.replace_dump(b"-- not an archive\n" * 1000)

    assert run_opsctl("verify").returncode == 15


# What could not be examined


def test_unknown_is_never_a_pass(run_opsctl, stored):
    """No pg_restore here reads that archive: unknown, 3, and no evidence of anything."""
    stored.rewrite(pg_dump_version="99.0")
    run = run_opsctl("verify", "--json")

    assert run.returncode == 3, run
    assert only(run)["outcome"] == "unknown"
    assert "99" in " ".join(only(run)["problems"])
    assert stored.evidence == []
    assert evidence_in_list(run_opsctl)[stored.id] is None


# Several copies, and what comes later


def test_each_copy_counts(run_opsctl, stored):
    """The copy that is damaged is named with its repository; the other one keeps its evidence."""
    (run_opsctl.work / "opsctl.toml").write_text(
        '[repositories.first]\nurl = "backups"\n[repositories.second]\nurl = "other"\n'
    )
    shutil.copytree(run_opsctl.work / "backups", run_opsctl.work / "other")
    stored.dump.unlink()
    run = run_opsctl("verify", "--json")

    assert run.returncode == 15
    assert only(run)["repositories"] == [
        {"name": "first", "outcome": "fail"},
        {"name": "second", "outcome": "pass"},
    ]
    assert only(run)["problems"][0].startswith("first: ")
    (entry,) = run_opsctl("list", "--json").json["result"]["backups"]
    assert (entry["evidence"]["level"], entry["failed_in"]) == ("decoded", ["first"])


def test_damage_outlives_older_evidence_until_it_is_repaired(run_opsctl, stored):
    """What was proven before a failure is worth nothing; a later pass of the same depth is."""
    run_opsctl("verify")
    good = stored.dump.read_bytes()
    stored.dump.write_bytes(good[:-1])
    run_opsctl("verify")
    assert evidence_in_list(run_opsctl)[stored.id] is None

    stored.dump.write_bytes(good)
    run_opsctl("verify")
    assert evidence_in_list(run_opsctl)[stored.id]["level"] == "decoded"


def test_no_server_and_no_configuration_needed(run_opsctl, stored):
    """A repository alone can be verified: neither DATABASE_URL nor a server is asked for."""
    run = run_opsctl("verify", stored.id, env={"PGHOST": "127.0.0.1", "PGPORT": "1"})

    assert run.returncode == 0, run


def test_quiet_on_success_only(run_opsctl, stored):
    """``--quiet`` says nothing when all is well, and everything when it is not."""
    good = run_opsctl("verify", "--quiet")
    stored.dump.write_bytes(b"")
    bad = run_opsctl("verify", "--quiet")

    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    assert bad.returncode == 15
    assert stored.id in bad.stdout
    assert "dump.zst" in bad.stderr
