"""`opsctl prune`, and the rotation after a backup: what goes, why, and what never does."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest

pytestmark = pytest.mark.end_to_end

NEWEST = datetime(2026, 5, 1, 12, tzinfo=UTC)


def configure(run_opsctl, retention, *, url=None, more=""):
    database = f'[databases.db]\nurl = "{url}"\n' if url else ""
    (run_opsctl.work / "opsctl.toml").write_text(
        f'{database}[repositories.local]\nurl = "backups"\nretention = {{ {retention} }}\n{more}'
    )


@pytest.fixture
def history(stored):
    """Seven backups, one a day, newest first."""
    backups = [stored.copy(NEWEST - timedelta(days=days)) for days in range(7)]
    shutil.rmtree(stored.folder)
    return backups


def prune(run_opsctl, *arguments):
    run = run_opsctl("prune", "--json", *arguments)
    assert run.returncode == 0, run
    return run.json["result"]


def ids(lines):
    return [each["id"] for each in lines]


def on_disk(run_opsctl, repository="backups"):
    return {path.parent.name for path in (run_opsctl.work / repository).glob("*/*/manifest.json")}


def add_evidence(backup, level, outcome):
    folder = backup.folder / "evidence"
    folder.mkdir(exist_ok=True)
    (folder / f"20260502T00000000000{len(list(folder.iterdir()))}Z-{level}-{outcome}.json").write_text("{}")


def test_without_a_policy_everything_stays(run_opsctl, history):
    """No retention configured: nothing is ever removed."""
    result = prune(run_opsctl)

    assert ids(result["keep"]) == [each.id for each in history]
    assert {reason for each in result["keep"] for reason in each["reasons"]} == {"no policy"}
    assert result["remove"] == []
    assert on_disk(run_opsctl) == {each.id for each in history}


def test_dry_run_gives_reasons_and_changes_nothing(run_opsctl, history):
    """``--dry-run`` names every backup with its reasons and touches none."""
    configure(run_opsctl, "keep_last = 2, keep_weekly = 2")
    before = sorted(run_opsctl.work.rglob("*"))
    result = prune(run_opsctl, "--dry-run")
    text = run_opsctl("prune", "--dry-run").stdout

    assert sorted(run_opsctl.work.rglob("*")) == before
    reasons = {each["id"]: each["reasons"] for each in result["keep"]}
    assert reasons == {
        history[0].id: ["last 1", "weekly 2026-W18", "newest good"],
        history[1].id: ["last 2"],
        history[5].id: ["weekly 2026-W17"],
    }
    assert ids(result["remove"]) == [history[index].id for index in (2, 3, 4, 6)]
    assert {reason for each in result["remove"] for reason in each["reasons"]} == {"kept by no rule"}
    assert {each["repository"] for each in (*result["keep"], *result["remove"])} == {"local"}
    assert text.count("would remove") == 4
    assert "weekly 2026-W17" in text


def test_prune_does_what_the_dry_run_said(run_opsctl, history):
    """Exactly what was shown is removed, and nothing of it is left; pruning again removes nothing."""
    configure(run_opsctl, "keep_last = 2, keep_weekly = 2")
    planned = prune(run_opsctl, "--dry-run")
    done = prune(run_opsctl)

    assert done["remove"] == planned["remove"]
    assert done["keep"] == planned["keep"]
    assert on_disk(run_opsctl) == set(ids(planned["keep"]))
    assert {each.name for each in history[0].folder.parent.iterdir()} == set(ids(planned["keep"]))
    assert prune(run_opsctl)["remove"] == []


def test_the_newest_good_backup_stays_whatever_the_policy(run_opsctl, history):
    """A backup that failed verification protects nothing: the newest one that did not stays."""
    add_evidence(history[0], "stored", "fail")
    configure(run_opsctl, "keep_within = '1h'")
    result = prune(run_opsctl)

    assert {each["id"]: each["reasons"] for each in result["keep"]} == {
        history[0].id: ["failed verification, no newer good one exists"],
        history[1].id: ["within 1h", "newest good"],
    }


def test_a_failed_backup_goes_once_a_newer_good_one_exists(run_opsctl, history):
    """One that failed counts for no rule and goes as soon as something better is there."""
    add_evidence(history[1], "decoded", "fail")
    configure(run_opsctl, "keep_last = 2")
    result = prune(run_opsctl)

    assert ids(result["keep"]) == [history[0].id, history[2].id]
    assert {each["id"]: each["reasons"] for each in result["remove"]}[history[1].id] == [
        "failed verification, a newer good one exists"
    ]


def test_the_newest_proofs_stay(run_opsctl, history):
    """For each level a restore has to earn, the newest backup proven to it, or better, is kept."""
    add_evidence(history[3], "counted", "pass")
    add_evidence(history[5], "content", "pass")
    add_evidence(history[6], "content", "pass")
    configure(run_opsctl, "keep_last = 1")
    result = prune(run_opsctl)

    assert {each["id"]: each["reasons"] for each in result["keep"]} == {
        history[0].id: ["last 1", "newest good"],
        history[3].id: ["newest proven restored or better", "newest proven counted or better"],
        history[5].id: ["newest proven content"],
    }


def test_pinned_backups_stay_until_they_are_unpinned(run_opsctl, history):
    """A pin wins over the policy; without it the policy decides again."""
    configure(run_opsctl, "keep_last = 1")
    run_opsctl("pin", history[4].id)
    assert ids(prune(run_opsctl)["keep"]) == [history[0].id, history[4].id]

    run_opsctl("unpin", history[4].id)
    assert ids(prune(run_opsctl)["remove"]) == [history[4].id]


def test_a_date_in_the_future_counts_for_nothing(run_opsctl, history):
    """A backup of a host with a wrong clock neither goes nor pushes a real one out."""
    future = history[0].copy(datetime.now(UTC).replace(microsecond=0) + timedelta(days=400))
    configure(run_opsctl, "keep_last = 1")
    result = prune(run_opsctl)

    assert {each["id"]: each["reasons"] for each in result["keep"]} == {
        future.id: ["dated in the future"],
        history[0].id: ["last 1", "newest good"],
    }


def test_backups_of_another_server_are_counted_apart(run_opsctl, history):
    """The same database's name on another server is another database: neither pushes the other out."""
    for backup in history[3:]:
        backup.rewrite(system_identifier="7000000000000000000")
    configure(run_opsctl, "keep_last = 1")

    assert ids(prune(run_opsctl)["keep"]) == [history[0].id, history[3].id]


def test_every_repository_has_its_own_policy(run_opsctl, history):
    """Each repository is pruned by its own rules; one without any keeps everything."""
    shutil.copytree(run_opsctl.work / "backups", run_opsctl.work / "offsite")
    configure(
        run_opsctl,
        "keep_last = 1",
        more='[repositories.offsite]\nurl = "offsite"\nretention = { keep_last = 3 }\n',
    )
    prune(run_opsctl)

    assert on_disk(run_opsctl) == {history[0].id}
    assert on_disk(run_opsctl, "offsite") == {each.id for each in history[:3]}


def test_orphans_go_after_two_days(run_opsctl, history):
    """What an interrupted backup left is removed when nothing was written to it for 48 hours, and not before."""
    parent = history[0].folder.parent
    made = {
        ".old-20260101T000000Z-0000.partial": 49,
        ".young-20260101T000000Z-0000.partial": 47,
        "headless-20260101T000000Z-0000": 49,
        ".empty-20260101T000000Z-0000.partial": 0,
        ".still-20260101T000000Z-0000.partial": 49,
    }
    for name, hours in made.items():
        folder = parent / name
        folder.mkdir()
        if name.startswith(".empty"):
            continue  # a backup that waits for its locks has nothing but its folder
        (folder / "dump.zst").write_bytes(b"some")
        then = (datetime.now(UTC) - timedelta(hours=hours)).timestamp()
        os.utime(folder / "dump.zst", (then, then))
    (parent / ".still-20260101T000000Z-0000.partial" / "globals.sql.zst").write_bytes(b"new")
    result = prune(run_opsctl)

    assert set(ids(result["remove"])) == {"old-20260101T000000Z-0000", "headless-20260101T000000Z-0000"}
    assert "incomplete, and not written to for 49 hours" in result["remove"][0]["reasons"]
    assert {each.name for each in parent.iterdir()} - {each.id for each in history} == {
        ".young-20260101T000000Z-0000.partial",
        ".empty-20260101T000000Z-0000.partial",
        ".still-20260101T000000Z-0000.partial",
    }


def test_damaged_manifests_are_never_removed(run_opsctl, history):
    """A folder whose manifest cannot be read may hold a good dump: it is left for a person to judge."""
    (history[6].folder / "manifest.json").write_text("{")
    for path in history[6].folder.iterdir():
        os.utime(path, (0, 0))
    configure(run_opsctl, "keep_last = 1")
    prune(run_opsctl)

    assert history[6].dump.exists()


def test_rotation_after_a_backup(run_opsctl, database):
    """Every backup applies the retention; what went is in ``result.pruned`` and in the text."""
    configure(run_opsctl, "keep_last = 1", url=database.url)
    first = run_opsctl("backup", "--json").json["result"]
    second = run_opsctl("backup", "--json").json["result"]

    assert first["pruned"] == []
    assert [each["id"] for each in second["pruned"]] == [first["backups"][0]["id"]]
    assert on_disk(run_opsctl) == {second["backups"][0]["id"]}
    assert f"pruned {second['backups'][0]['id']} from local" in run_opsctl("backup").stdout


def test_rotation_leaves_other_databases_alone(run_opsctl, history, database):
    """A backup of one database prunes that one only: another one's schedule may have died."""
    configure(run_opsctl, "keep_last = 1", url=database.url)
    result = run_opsctl("backup", "--json").json["result"]

    assert result["pruned"] == []
    assert {each.id for each in history} < on_disk(run_opsctl)


def test_failed_backup_prunes_nothing(run_opsctl, history):
    """When no new backup was taken, no old one goes."""
    configure(run_opsctl, "keep_last = 1", url="postgresql://127.0.0.1:1/x")
    shutil.move(history[0].folder.parent, run_opsctl.work / "backups" / "db")
    for path in (run_opsctl.work / "backups").glob("*/*/manifest.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "database": "db"}))
    run = run_opsctl("backup", "--json")

    assert run.returncode == 12
    assert len(on_disk(run_opsctl)) == 7


@pytest.mark.parametrize(
    "retention", ["keep_last = -1", "keep_within = 'soon'", "keep_within = '1d1d'", "keep_forever = true"]
)
def test_a_policy_that_cannot_be_read_is_a_configuration_error(run_opsctl, history, retention):
    """A mistake in the retention removes nothing and is said before anything else: 10, naming the key."""
    configure(run_opsctl, retention)
    run = run_opsctl("prune", "--json")

    assert run.returncode == 10, run
    assert retention.partition(" ")[0] in run.json["error"]["message"]
    assert len(on_disk(run_opsctl)) == 7


def test_nothing_to_prune(run_opsctl):
    """An empty repository is no error."""
    assert "There are no backups yet." in run_opsctl("prune").stdout


# A plan as a file


def test_a_plan_is_written_and_carried_out(run_opsctl, history):
    """``--plan`` removes nothing; ``--apply`` removes exactly what the file says, not what has become due since."""
    configure(run_opsctl, "keep_last = 4")
    plan = run_opsctl.work / "plan.json"
    plan.write_text("an older one")
    planned = prune(run_opsctl, "--plan", "plan.json")
    document = json.loads(plan.read_text())

    assert plan.stat().st_mode & 0o777 == 0o600
    assert document["schema"] == "opsctl.prune-plan/1"
    assert document["made_at"].endswith("Z")
    assert (document["keep"], document["remove"]) == (planned["keep"], planned["remove"])
    assert [each["id"] for each in document["remove"]] == [each.id for each in history[4:]]
    assert len(on_disk(run_opsctl)) == 7

    configure(run_opsctl, "keep_last = 2")
    shutil.rmtree(history[6].folder)  # gone already: fine
    shown = prune(run_opsctl, "--apply", "plan.json", "--dry-run")
    done = prune(run_opsctl, "--apply", "plan.json")
    assert ids(shown["remove"]) == ids(done["remove"]) == [history[4].id, history[5].id]
    assert on_disk(run_opsctl) == {each.id for each in history[:4]}
    reasons = {each["id"]: each["reasons"] for each in done["keep"]}
    assert reasons[history[3].id] == ["not in the plan file", "kept by no rule"]
    assert ids(prune(run_opsctl)["remove"]) == [history[2].id, history[3].id]


def test_guarantees_win_over_a_plan(run_opsctl, history):
    """What has become the newest good, a pinned or a proven backup since is kept and named; exit code 3."""
    configure(run_opsctl, "keep_last = 1")
    orphan = history[0].folder.parent / ".was-20260101T000000Z-0000.partial"
    orphan.mkdir()
    os.utime(orphan, (0, 0))
    prune(run_opsctl, "--plan", "plan.json")
    add_evidence(history[0], "stored", "fail")  # the second is the newest good one now
    (history[3].folder / "pin").touch()
    add_evidence(history[5], "content", "pass")
    (orphan / "dump.zst").write_bytes(b"alive")
    run = run_opsctl("prune", "--apply", "plan.json", "--json")

    assert run.returncode == 3, run
    kept = {each["id"]: each["reasons"] for each in run.json["result"]["keep"]}
    assert kept == {
        history[0].id: ["failed verification, no newer good one exists"],
        history[1].id: ["last 1", "newest good"],
        history[3].id: ["pinned"],
        history[5].id: [f"newest proven {level}" for level in ("restored or better", "counted or better", "content")],
        "was-20260101T000000Z-0000": ["incomplete, and written to since"],
    }
    assert on_disk(run_opsctl) == {history[index].id for index in (0, 1, 3, 5)}
    assert orphan.exists()
    assert f"Kept {history[1].id}" in run_opsctl("prune", "--apply", "plan.json").stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("{", "is no plan"),
        ("[]", "is no plan"),
        ('{"schema": "opsctl.prune/1", "remove": []}', "its schema is 'opsctl.prune/1'"),
        ('{"schema": "opsctl.prune-plan/1", "remove": [{"id": "x"}]}', "is no plan"),
        ('{"schema": "opsctl.prune-plan/1", "remove": [{"id": 1, "repository": "local"}]}', "is no plan"),
        ('{"schema": "opsctl.prune-plan/1", "remove": [{"id": "x", "repository": "gone"}]}', "'gone'"),
    ],
)
def test_what_is_no_plan(run_opsctl, history, text, words):
    """2, the file named; nothing is removed."""
    configure(run_opsctl, "keep_last = 1")
    if text is not None:
        (run_opsctl.work / "plan.json").write_text(text)
    run = run_opsctl("prune", "--apply", "plan.json", "--json")

    assert run.returncode == 2, run
    assert "plan.json" in run.json["error"]["message"]
    assert words in run.json["error"]["message"]
    assert run.json["error"]["hint"]
    assert len(on_disk(run_opsctl)) == 7


def test_a_plan_that_cannot_be_written(run_opsctl, history):
    """An error with the file's name, and nothing half-written."""
    run = run_opsctl("prune", "--plan", "nowhere/plan.json", "--json")
    assert run.returncode == 1, run
    assert "nowhere/plan.json" in run.json["error"]["message"]
    assert run_opsctl("prune", "--plan", "a", "--apply", "b").returncode == 2
