"""Dumps with several sessions: stored as one file, and worth as much as any other."""

import pytest

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def configure(run_opsctl):
    """``configure(database)``: two sessions dump it."""

    def write(database, more=""):
        text = f'[databases."{database.name}"]\nurl = "{database.url}"\njobs = 2\nfacts = "content"\n{more}'
        (run_opsctl.work / "opsctl.toml").write_text(text)

    return write


def test_everything_comes_back(run_opsctl, configure, rich, only_backup, facts_of):
    """Every row and large object, from one file that verify decodes and several sessions load; no file is left."""
    configure(rich)
    facts = facts_of(rich)
    assert run_opsctl("backup").returncode == 0
    manifest = only_backup(run_opsctl.work / "backups").manifest
    assert manifest["format"] == "directory"
    assert [each["name"] for each in manifest["files"]] == ["dump.tar.zst", "globals.sql.zst"]
    verified = run_opsctl("verify", "--json").json["result"]["backups"]
    assert [(each["outcome"], each["evidence"]) for each in verified] == [("pass", "decoded")]
    rich.execute("DROP SCHEMA billing CASCADE; SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    run = run_opsctl("restore", "latest", "--yes", rich.name, "--jobs", "2", "--json")

    assert run.returncode == 0, run
    assert run.json["result"]["evidence"] == "content"
    restored = facts_of(rich)
    assert (restored.tables, restored.large_objects_hash) == (facts.tables, facts.large_objects_hash)
    assert list((run_opsctl.state / "spool").iterdir()) == []


def test_what_cannot_be_is_refused(run_opsctl, configure, database):
    """A staging folder that cannot be, and the programs of a container: 10, named, and nothing is left."""
    configure(database, '[state]\nstaging_path = "/proc/1/opsctl"\n')
    nowhere = run_opsctl("backup", "--json")
    assert nowhere.returncode == 10, nowhere
    assert "/proc/1/opsctl" in nowhere.json["error"]["message"]
    configure(database, 'tools = "service"\nservice = "db"\n')
    inside = run_opsctl("backup", "--json")
    assert inside.returncode == 10, inside
    assert "jobs" in inside.json["error"]["message"]
    assert not any(path.is_file() for path in run_opsctl.work.glob("backups/*/**/*"))


def test_the_plan_looks_at_the_disk(run_opsctl, stored, database):
    """What does not fit beside the state is said before anything is made: only one session streams."""
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases."{stored.manifest["database"]}"]\nurl = "{database.url}"\n'
    )
    dump, *others = stored.manifest["files"]
    stored.rewrite(files=[{**dump, "bytes": 10**18}, *others])
    run = run_opsctl("restore", "latest", "--into", f"{database.name}_copy", "--jobs", "2", "--plan", "--json")

    assert run.returncode == 16, run
    blockers = run.json["result"]["plan"]["blockers"]
    assert ["free disk in" in blocker for blocker in map(str, blockers)] == [True]
    assert not (run_opsctl.state / "spool").exists()
