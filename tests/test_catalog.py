"""`list`, `show`, `export`, `pin` and `unpin`: what the repositories hold, and what is no backup."""

import json
import os
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from opsctl.manifest import parse_manifest

pytestmark = pytest.mark.end_to_end

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def listed(run_opsctl, *arguments):
    run = run_opsctl("list", "--json", *arguments)
    assert run.returncode == 0, run
    return run.json["result"]


def two_repositories(run_opsctl, second="other"):
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[repositories.local]\nurl = "backups"\n[repositories.offsite]\nurl = "{second}"\n'
    )


# list


def test_nothing_yet(run_opsctl):
    """A repository that does not exist yet is an empty one, and listing does not create it."""
    assert listed(run_opsctl) == {"backups": [], "incomplete": [], "unreachable": []}
    assert "There are no backups yet." in run_opsctl("list").stdout
    assert list(run_opsctl.work.iterdir()) == []


def test_list_entry(run_opsctl, stored):
    """The keys of an entry are the documented ones, its numbers the manifest's."""
    (entry,) = listed(run_opsctl)["backups"]
    manifest = stored.manifest

    assert {key: entry[key] for key in ("id", "database", "pinned", "encrypted", "evidence", "repositories")} == {
        "id": stored.id,
        "database": manifest["database"],
        "pinned": False,
        "encrypted": False,
        "evidence": None,
        "repositories": ["local"],
    }
    assert entry["created_at"] == manifest["started_at"]
    assert entry["bytes"] == manifest["files"][0]["bytes"]
    assert entry["stored_bytes"] == sum(file["stored_bytes"] for file in manifest["files"])
    assert stored.id in run_opsctl("list").stdout


def test_newest_first_whatever_the_order_on_the_disk(run_opsctl, stored):
    """Backups are listed by the time they were taken, newest first, across databases."""
    older = [stored.copy(NOON + timedelta(hours=hours)) for hours in (5, 1, 3)]
    expected = [stored.id, older[0].id, older[2].id, older[1].id]

    assert [each["id"] for each in listed(run_opsctl)["backups"]] == expected


def test_list_of_one_database(run_opsctl, stored):
    """``list DB`` shows that database's backups only; one without any is an empty list."""
    name = stored.manifest["database"]

    assert [each["id"] for each in listed(run_opsctl, name)["backups"]] == [stored.id]
    assert listed(run_opsctl, name[:-1])["backups"] == []


def test_copies_in_two_repositories_are_one_backup(run_opsctl, stored):
    """A backup is listed once, with every repository that has it."""
    two_repositories(run_opsctl)
    shutil.copytree(run_opsctl.work / "backups", run_opsctl.work / "other")
    only_offsite = stored.copy(NOON, repository=run_opsctl.work / "other")
    found = {each["id"]: each["repositories"] for each in listed(run_opsctl)["backups"]}

    assert found == {stored.id: ["local", "offsite"], only_offsite.id: ["offsite"]}


def test_what_is_no_backup_is_shown_apart(run_opsctl, stored):
    """A .partial folder, one without a manifest and one with a damaged manifest are named and never counted."""
    parent = stored.folder.parent
    without_manifest, damaged = stored.copy(NOON), stored.copy(NOON + timedelta(hours=1))
    (without_manifest.folder / "manifest.json").unlink()
    (damaged.folder / "manifest.json").write_text(json.dumps(damaged.manifest)[:-20])
    partial = parent / f".{stored.id[:-4]}ffff.partial"
    shutil.copytree(stored.folder, partial)
    result = listed(run_opsctl)

    assert [each["id"] for each in result["backups"]] == [stored.id]
    reasons = {each["id"]: each["reason"] for each in result["incomplete"]}
    assert reasons.pop(damaged.id).startswith("The manifest ")
    assert reasons == {without_manifest.id: "interrupted", f"{stored.id[:-4]}ffff": "interrupted"}
    assert {each["database"] for each in result["incomplete"]} == {stored.manifest["database"]}
    text = run_opsctl("list").stdout
    assert "Not backups" in text
    assert without_manifest.id in text.partition("Not backups")[2]
    assert run_opsctl("show", without_manifest.id).returncode == 15


def test_incomplete_ones_are_named_by_their_database(run_opsctl, stored):
    """The name of a database is shown as it is, not as its folder has to be called."""
    folder = run_opsctl.work / "backups" / "My%20Shop%2F2" / ".x-20260101T000000Z-0000.partial"
    folder.mkdir(parents=True)

    (incomplete,) = listed(run_opsctl)["incomplete"]
    assert incomplete["database"] == "My Shop/2"
    assert incomplete["modified_at"][:4] == str(datetime.now(UTC).year)


def test_latest_is_never_an_incomplete_or_a_future_one(run_opsctl, stored):
    """``latest`` is the newest whole backup that is not dated after now."""
    newer = stored.copy(datetime.now(UTC) + timedelta(minutes=1))
    interrupted = stored.copy(datetime.now(UTC).replace(microsecond=0))
    (interrupted.folder / "manifest.json").unlink()

    assert run_opsctl("show", "latest", "--json").json["result"]["id"] == stored.id
    assert newer.id in run_opsctl("list").stdout


def test_repository_that_does_not_answer_is_named(run_opsctl, stored):
    """The other repositories are listed all the same; the run needs attention (3)."""
    (run_opsctl.work / "file").write_text("")
    two_repositories(run_opsctl, "file/below")
    run = run_opsctl("list", "--json")

    assert run.returncode == 3
    assert run.json["result"]["unreachable"] == ["offsite"]
    assert [each["id"] for each in run.json["result"]["backups"]] == [stored.id]
    assert '"repository": "offsite"' in run.stderr


def test_no_repository_answers(run_opsctl):
    """When none is left, listing fails with 13."""
    (run_opsctl.work / "backups").write_text("a file")

    assert run_opsctl("list", "--json").json["exit_code"] == 13


# show


def test_show_is_the_whole_manifest(run_opsctl, stored):
    """``show`` holds everything the manifest records, digests and facts included."""
    run = run_opsctl("show", stored.id, "--json")

    assert run.json["result"]["manifest"] == stored.manifest
    assert run.json["result"]["id"] == stored.id


def test_show_for_people(run_opsctl, stored):
    """The text names server, owner, every file with its digest, every table, and the restore line."""
    text = run_opsctl("show", stored.id).stdout

    for expected in (
        *(file["sha256"] for file in stored.manifest["files"]),
        "billing.invoices",
        "rich_reader",
        stored.manifest["restore_command"],
        f"PostgreSQL {stored.manifest['server_version']}",
    ):
        assert expected in text


def test_ways_to_name_a_backup(run_opsctl, stored):
    """latest, latest:DATABASE, the id and a unique beginning of it all name the same backup."""
    older = stored.copy(NOON)
    name = stored.manifest["database"]

    for wanted in ("latest", f"latest:{name}", stored.id, stored.id[:-2]):
        assert run_opsctl("show", wanted, "--json").json["result"]["id"] == stored.id, wanted
    assert run_opsctl("show", f"{name}-2026050", "--json").json["result"]["id"] == older.id


@pytest.mark.parametrize("wanted", ["nothing", "latest:nothing", "", "gone_", "-"])
def test_names_that_name_no_single_backup_are_14(run_opsctl, stored, wanted):
    """Unknown, empty and ambiguous names are refused with what to do; nothing is guessed."""
    stored.copy(NOON)
    run = run_opsctl("show", "--json", "--", wanted)

    assert run.returncode == 14, run
    assert run.json["error"]["code"] == "no_such_backup"
    assert run.json["error"]["hint"]


def test_empty_name_is_not_the_only_backup(run_opsctl, stored):
    """An unset variable in a script chooses nothing, even when there is one backup only."""
    assert run_opsctl("show", "").returncode == 14


def test_latest_of_several_databases_asks_which(run_opsctl, stored):
    """``latest`` alone is not enough when there are several databases; the hint has the words to use."""
    other = run_opsctl.work / "backups" / "shop" / "shop-20260501T120000Z-0000"
    shutil.copytree(stored.folder, other)
    manifest = {**stored.manifest, "id": other.name, "database": "shop"}
    (other / "manifest.json").write_text(json.dumps(manifest))
    run = run_opsctl("show", "latest", "--json")

    assert run.returncode == 14
    assert "latest:shop" in run.json["error"]["hint"]
    assert run_opsctl("show", "latest:shop", "--json").json["result"]["id"] == other.name


def test_damaged_manifest_is_15_by_name(run_opsctl, stored):
    """Asked for by its id, a backup with a damaged manifest is damaged, not unknown."""
    stored.rewrite(files="lost")
    run = run_opsctl("show", stored.id, "--json")

    assert run.returncode == 15
    assert "files" in run.json["error"]["message"]


def test_manifest_of_a_newer_opsctl(run_opsctl, stored):
    """A schema this opsctl does not know is said to be newer; it is not read halfway."""
    stored.rewrite(schema=2)
    run = run_opsctl("show", stored.id, "--json")

    assert run.returncode == 15
    assert "schema 2" in run.json["error"]["message"]


# export


def test_export_is_the_dump_byte_for_byte(run_opsctl, stored):
    """To a file and to stdout, exactly what pg_dump wrote; the file is private and its run has a JSON result."""
    run = run_opsctl("export", "latest", "-o", "out.dump", "--json")
    out = run_opsctl.work / "out.dump"
    process = run_opsctl.start("export", "latest", "--quiet", encoding=None, errors=None)
    piped, errors = process.communicate(timeout=60)

    assert run.json["result"] == {"id": stored.id, "file": "out.dump", "bytes": len(stored.plain_dump())}
    assert out.read_bytes() == stored.plain_dump()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert (piped, errors) == (stored.plain_dump(), b"")


def test_export_of_a_damaged_backup_leaves_no_file(run_opsctl, stored):
    """What is not what was dumped is never left under the wanted name: 15, and what was there before stays."""
    data = bytearray(stored.dump.read_bytes())
    data[len(data) // 2] ^= 1
    stored.dump.write_bytes(data)
    out = run_opsctl.work / "out.dump"
    out.write_text("an older export")
    run = run_opsctl("export", "latest", "-o", "out.dump")

    assert run.returncode == 15
    assert out.read_text() == "an older export"
    assert sorted(each.name for each in run_opsctl.work.iterdir()) == ["backups", "out.dump"]


def test_export_takes_the_intact_copy(run_opsctl, stored):
    """A copy that failed verification is not read while another repository has one that did not."""
    two_repositories(run_opsctl)
    shutil.copytree(run_opsctl.work / "backups", run_opsctl.work / "other")
    stored.dump.write_bytes(b"")
    assert run_opsctl("verify").returncode == 15
    run = run_opsctl("export", "latest", "-o", "out.dump")

    assert run.returncode == 0, run
    assert (run_opsctl.work / "out.dump").stat().st_size == stored.manifest["files"][0]["bytes"]


def test_export_to_stdout_has_no_room_for_json(run_opsctl, stored):
    """One document on stdout, or the dump: both is a usage error."""
    run = run_opsctl("export", "latest", "--json")

    assert run.returncode == 2
    assert run.json["error"]["code"] == "usage"


def test_export_into_a_pipe_or_through_a_link(run_opsctl, stored):
    """What is no plain file is written to and stays what it is; a link goes on leading where it led."""
    pipe, link, target = (run_opsctl.work / name for name in ("pipe", "link", "target"))
    os.mkfifo(pipe)
    link.symlink_to(target)
    read = run_opsctl.work / "read"
    with read.open("wb") as sink, subprocess.Popen(["cat", pipe], stdout=sink):
        assert run_opsctl("export", "latest", "-o", pipe).returncode == 0
    assert read.read_bytes() == stored.plain_dump()
    assert pipe.is_fifo()
    assert run_opsctl("export", "latest", "-o", link).returncode == 0
    assert link.is_symlink()
    assert target.read_bytes() == stored.plain_dump()


def test_export_to_an_impossible_place(run_opsctl, stored):
    """A file that cannot be written is a failure with a hint, not a traceback."""
    run = run_opsctl("export", "latest", "-o", "missing/out.dump", "--json")

    assert run.returncode == 1
    assert "missing/out.dump" in run.json["error"]["message"]


# pin, unpin


def test_pin_and_unpin(run_opsctl, stored):
    """A pin lies beside the backup in every repository that has it; both commands may be repeated."""
    two_repositories(run_opsctl)
    shutil.copytree(run_opsctl.work / "backups", run_opsctl.work / "other")
    for command, pinned in (("pin", True), ("pin", True), ("unpin", False), ("unpin", False)):
        run = run_opsctl(command, stored.id, "--json")

        assert run.json["result"] == {"id": stored.id, "pinned": pinned, "repositories": ["local", "offsite"]}
        assert [each["pinned"] for each in listed(run_opsctl)["backups"]] == [pinned]
        assert len(list(run_opsctl.work.rglob("pin"))) == 2 * pinned
    assert "(pinned)" not in run_opsctl("list").stdout


def test_manifest_stays_as_it_was_written(run_opsctl, stored):
    """Pins and evidence are objects of their own: nothing ever rewrites a manifest."""
    before = (stored.folder / "manifest.json").read_bytes()
    status = (stored.folder / "manifest.json").stat()
    run_opsctl("pin", "latest")
    run_opsctl("verify")

    assert (stored.folder / "manifest.json").read_bytes() == before
    assert (stored.folder / "manifest.json").stat().st_mtime_ns == status.st_mtime_ns
    assert parse_manifest(before, where="here").id == stored.id
