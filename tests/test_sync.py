"""`opsctl sync`, and the copying at the end of a backup: what comes where, byte for byte, and what never does."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest

pytestmark = pytest.mark.end_to_end

NEWEST = datetime(2026, 5, 1, 12, tzinfo=UTC)


def configure(run_opsctl, *, database=None, **retentions):
    """A repository per name, in the folder of that name; the one called ``backups`` comes first."""
    text = f'[databases."{database.name}"]\nurl = "{database.url}"\n' if database else ""
    for name, retention in retentions.items():
        text += f'[repositories.{name}]\nurl = "{name}"\n' + (f"retention = {{ {retention} }}\n" if retention else "")
    (run_opsctl.work / "opsctl.toml").write_text(text)


@pytest.fixture
def history(stored):
    """Five backups, one a day, newest first, all of them in ``backups``."""
    backups = [stored.copy(NEWEST - timedelta(days=days)) for days in range(5)]
    shutil.rmtree(stored.folder)
    return backups


@pytest.fixture
def sync(run_opsctl):
    def run(*arguments, code=0):
        done = run_opsctl("sync", "--json", *arguments)
        assert done.returncode == code, done
        return done.json["result"]

    return run


def contents(folder):
    """Every file of a backup below its folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def there(run_opsctl, repository):
    return {path.parent.name for path in (run_opsctl.work / repository).glob("*/*/manifest.json")}


def counterpart(run_opsctl, backup, repository="offsite"):
    return run_opsctl.work / repository / backup.folder.parent.name / backup.id


def add_evidence(backup, level, outcome):
    folder = backup.folder / "evidence"
    folder.mkdir(exist_ok=True)
    path = folder / f"20260502T00000000000{len(list(folder.iterdir()))}Z-{level}-{outcome}.json"
    path.write_text(json.dumps({"about": backup.id}))


def test_what_is_missing_is_copied_byte_for_byte(run_opsctl, history, sync):
    """Every file, the manifest as it was written, the pin, and the evidence that passed; nothing the second time."""
    configure(run_opsctl, backups="", offsite="")
    history[1].rewrite(written_by="a later version")  # fields that this one does not know
    (history[2].folder / "pin").touch()
    add_evidence(history[3], "decoded", "fail")
    add_evidence(history[3], "decoded", "pass")
    result = sync()

    assert result["failures"] == []
    assert [each["id"] for each in result["copied"]] == [each.id for each in history]
    assert result["copied"][0] == {
        "id": history[0].id,
        "database": history[0].manifest["database"],
        "from": "backups",
        "to": "offsite",
        "bytes": sum(each["stored_bytes"] for each in history[0].manifest["files"]),
    }
    for backup in history:
        expected = {name: data for name, data in contents(backup.folder).items() if not name.endswith("fail.json")}
        assert contents(counterpart(run_opsctl, backup)) == expected
    assert not [path for path in (run_opsctl.work / "offsite").rglob("*") if path.stat().st_mode & 0o077]
    assert sync() == {"copied": [], "failures": []}
    assert "Nothing is missing anywhere." in run_opsctl("sync").stdout
    assert run_opsctl("verify", "--all").returncode == 0


def test_only_what_the_own_retention_keeps(run_opsctl, history, sync):
    """Each repository gets what its rules would keep; a prune after it removes nothing, another sync copies nothing."""
    configure(run_opsctl, backups="keep_last = 4", offsite="keep_last = 2", third="keep_within = '60h'")
    copied = {(each["id"], each["to"]) for each in sync()["copied"]}

    assert copied == {(history[0].id, "offsite"), (history[1].id, "offsite")} | {
        (backup.id, "third") for backup in history[:3]
    }
    pruned = run_opsctl("prune", "--json").json["result"]["remove"]
    assert [(each["id"], each["repository"]) for each in pruned] == [(history[4].id, "backups")]
    assert sync()["copied"] == []


def test_damaged_copies_are_no_source(run_opsctl, history, sync):
    """One known to be damaged is not read; one that turns out to be is passed over for the next; else it is named."""
    configure(run_opsctl, backups="", second="", offsite="")
    shutil.copytree(run_opsctl.work / "backups", run_opsctl.work / "second")
    add_evidence(history[0], "stored", "fail")  # known in backups, intact in second
    data = bytearray(history[1].dump.read_bytes())
    data[len(data) // 2] ^= 1
    history[1].dump.write_bytes(data)  # unknown yet
    for repository in ("backups", "second"):  # in both
        counterpart(run_opsctl, history[2], repository).joinpath("dump.zst").write_bytes(b"short")
    result = sync(code=3)

    sources = {each["id"]: each["from"] for each in result["copied"] if each["to"] == "offsite"}
    assert sources == {
        history[0].id: "second",
        history[1].id: "second",
        history[3].id: "backups",
        history[4].id: "backups",
    }
    (failure,) = result["failures"]
    assert (failure["id"], failure["to"]) == (history[2].id, "offsite")
    assert "backups: dump.zst is damaged" in failure["error"]
    assert "second: dump.zst is damaged" in failure["error"]
    assert not list((run_opsctl.work / "offsite").rglob("*.partial"))


def test_another_runs_copy_and_a_killed_ones(run_opsctl, history, sync):
    """A copy written to a moment ago is somebody's: left alone, and said. One that stands still is done again."""
    configure(run_opsctl, backups="", offsite="")
    parent = counterpart(run_opsctl, history[0]).parent
    for backup in history[:2]:
        partial = parent / f".{backup.id}.partial"
        partial.mkdir(parents=True)
        (partial / "dump.zst").write_bytes(b"some")
    headless = counterpart(run_opsctl, history[2])  # a prune was killed in it, and now it is wanted again
    headless.mkdir()
    (headless / "dump.zst").write_bytes(b"some")
    an_hour_ago = (datetime.now(UTC) - timedelta(hours=1)).timestamp()
    for path in (parent / f".{history[1].id}.partial" / "dump.zst", headless / "dump.zst"):
        os.utime(path, (an_hour_ago, an_hour_ago))
    result = sync(code=3)

    assert there(run_opsctl, "offsite") == {each.id for each in history[1:]}
    (failure,) = result["failures"]
    assert failure["id"] == history[0].id
    assert "being written" in failure["error"]
    assert (parent / f".{history[0].id}.partial" / "dump.zst").read_bytes() == b"some"
    assert contents(headless) == contents(history[2].folder)


def test_a_repository_that_cannot_be_written(run_opsctl, history, sync):
    """It is tried once and named; the others get theirs."""
    configure(run_opsctl, backups="", offsite="", third="")
    (run_opsctl.work / "offsite").mkdir()
    (run_opsctl.work / "offsite" / history[0].folder.parent.name).write_text("in the way")
    result = sync(code=3)

    assert there(run_opsctl, "third") == {each.id for each in history}
    assert [(each["id"], each["to"]) for each in result["failures"]] == [(history[0].id, "offsite"), (None, "offsite")]
    assert "4 more" in result["failures"][1]["error"]


def test_no_repository_answers(run_opsctl):
    """13 when none can be read; 3, with the name, when one cannot."""
    configure(run_opsctl, backups="")
    (run_opsctl.work / "backups").write_text("no folder")
    assert run_opsctl("sync").returncode == 13
    configure(run_opsctl, backups="", offsite="")
    done = run_opsctl("sync", "--json")
    assert done.returncode == 3
    assert [each["to"] for each in done.json["result"]["failures"]] == ["backups"]


def test_databases_go_where_they_belong(run_opsctl, history, database, sync):
    """A database is copied to its own repositories only; one that is not configured any more stays where it is."""
    name = history[0].manifest["database"]
    text = '[repositories.backups]\nurl = "backups"\n[repositories.offsite]\nurl = "offsite"\n'
    (run_opsctl.work / "opsctl.toml").write_text(f'{text}[databases.other]\nurl = "{database.url}"\n')
    assert sync()["copied"] == []
    assert run_opsctl("sync", name).returncode == 10
    here = f'[databases."{name}"]\nurl = "{database.url}"\nrepositories = ["backups"]\n'
    (run_opsctl.work / "opsctl.toml").write_text(text + here)
    assert sync()["copied"] == []
    (run_opsctl.work / "opsctl.toml").write_text(text)
    assert len(sync(name)["copied"]) == 5


def test_a_backup_brings_the_others_up_to_date(run_opsctl, database):
    """After it, each repository has what its retention keeps, before the rotation looks."""
    configure(run_opsctl, database=database, backups="keep_last = 3")
    for _ in range(3):
        assert run_opsctl("backup", "--json").json["result"]["copied"] == []
    before = there(run_opsctl, "backups")
    configure(run_opsctl, database=database, backups="keep_last = 3", offsite="keep_last = 2", third="keep_last = 9")
    result = run_opsctl("backup", "--json").json["result"]

    new = result["backups"][0]["id"]
    oldest = min(before)
    assert {(each["id"], each["to"]) for each in result["copied"]} == {
        (max(before), "offsite"),
        *((each, "third") for each in before),
    }
    assert {(each["id"], each["repository"]) for each in result["pruned"]} == {(oldest, "backups")}
    assert there(run_opsctl, "offsite") == {new, max(before)}
    assert there(run_opsctl, "third") == {new, *before}


def test_what_one_repository_missed_comes_with_the_next_backup(run_opsctl, database):
    """One that could not be written: 3, named. The next backup after that copies it, and ends with 0."""
    configure(run_opsctl, database=database, backups="", offsite="")
    (run_opsctl.work / "offsite").write_text("no folder")
    missed = run_opsctl("backup", "--json")
    assert missed.returncode == 3, missed
    (entry,) = missed.json["result"]["backups"]
    assert {each["name"]: each["status"] for each in entry["repositories"]} == {
        "backups": "stored",
        "offsite": "failed",
    }
    (run_opsctl.work / "offsite").unlink()
    caught_up = run_opsctl("backup", "--json")
    assert caught_up.returncode == 0, caught_up
    assert [each["id"] for each in caught_up.json["result"]["copied"]] == [entry["id"]]
    assert there(run_opsctl, "offsite") == there(run_opsctl, "backups")
