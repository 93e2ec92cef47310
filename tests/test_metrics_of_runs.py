"""Metrics at the end of real runs: what a run leaves for node_exporter and the Pushgateway, however it ended."""

import socket
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families  # noqa: TID253  # a test may load what it likes

CANARY = "canary-7f3a9c"


def values(text, **labels):
    """Name to value of the samples with these labels, as Prometheus's own parser reads them."""
    families = text_string_to_metric_families(text)
    wanted = labels.items()
    return {each.name: each.value for family in families for each in family.samples if wanted <= each.labels.items()}


@pytest.fixture
def configure(run_opsctl):
    """``configure(url, …)``: a database under the name saasdb, two repositories, and where metrics go."""

    def write(url, *metrics, second="offsite"):
        lines = [
            "[databases.saasdb]",
            f'url = "{url}"',
            '[repositories.local]\nurl = "backups"',
            "[repositories.offsite]",
        ]
        lines += [f'url = "{second}"', "[schedule]", 'backup = "0 3 * * *"', "[metrics]", *metrics]
        (run_opsctl.work / "opsctl.toml").write_text("\n".join(lines))

    return write


def test_a_failed_run_erases_nothing(run_opsctl, saas, configure):
    """The file is written by every recorded run. The last success and what a repository held outlive their failure."""
    textfile = run_opsctl.work / "opsctl.prom"
    configure(saas.url, f'textfile = "{textfile.name}"')
    first = run_opsctl("backup", "--json")
    pair = {"database": "saasdb", "repository": "offsite"}
    before = values(textfile.read_text(), **pair)
    backup = first.json["result"]["backups"][0]
    run_opsctl("verify", "--json")
    proven = values(textfile.read_text(), level="decoded", **pair)
    configure("postgresql://u@127.0.0.1:1/x", f'textfile = "{textfile.name}"', second=f"{textfile}/none")
    failed = run_opsctl("backup", "--json")
    after = values(textfile.read_text(), **pair)
    printed = run_opsctl("metrics", "--json").json["result"]["metrics"]
    runs = values(textfile.read_text(), command="backup", database="saasdb")
    totals = {outcome: values(textfile.read_text(), outcome=outcome) for outcome in ("done", "failed")}

    assert (first.returncode, failed.returncode) == (0, 12), failed
    started = datetime.strptime(backup["id"].split("-")[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    assert 0 <= before["opsctl_backup_last_success_timestamp_seconds"] - started < 1
    assert before["opsctl_backup_last_size_bytes"] == backup["bytes"]
    assert before["opsctl_backups"] == 1
    assert before["opsctl_backup_interval_seconds"] == 86400
    assert proven["opsctl_backup_evidence_timestamp_seconds"] > started
    unchanged = ("last_success_timestamp_seconds", "last_size_bytes", "last_stored_bytes", "last_duration_seconds")
    assert all(after[f"opsctl_backup_{each}"] == before[f"opsctl_backup_{each}"] for each in unchanged)
    assert (
        after["opsctl_backup_last_attempt_timestamp_seconds"] > before["opsctl_backup_last_attempt_timestamp_seconds"]
    )
    assert after["opsctl_backup_evidence_level"] == 2
    up = {name: values(textfile.read_text(), repository=name)["opsctl_repository_up"] for name in ("local", "offsite")}
    assert up == {"local": 1, "offsite": 0}
    assert runs["opsctl_run_last_state"] == 2
    assert {outcome: each["opsctl_runs_total"] for outcome, each in totals.items()} == {"done": 1, "failed": 1}
    assert textfile.stat().st_mode & 0o777 == 0o644
    assert {each["name"] for each in printed} == {
        f.name + ("_total" if f.type == "counter" else "") for f in text_string_to_metric_families(textfile.read_text())
    }


def test_what_cannot_be_told_fails_no_run(run_opsctl, saas, configure):
    """A file that cannot be written is a warning; a Pushgateway that hangs is neither a word nor a delay to speak of.

    Its password is nowhere.
    """
    with socket.create_server(("127.0.0.1", 0)) as hole:
        url = f"http://ops:{CANARY}@127.0.0.1:{hole.getsockname()[1]}"
        configure(saas.url, 'textfile = "nowhere/opsctl.prom"', f'pushgateway_url = "{url}"')
        run = run_opsctl("backup")
        quiet = run_opsctl("backup", "--quiet")
    printed = run_opsctl("metrics")

    assert (run.returncode, quiet.returncode) == (0, 0), run
    assert "metrics.unwritten" in run.stderr
    assert "metrics.unpushed" in run.stderr
    assert "metrics.unpushed" not in quiet.stderr
    assert CANARY not in run.stdout + run.stderr + quiet.stderr + printed.stdout + printed.stderr
    assert 'opsctl_backups{database="saasdb",repository="local"} 2.0' in printed.stdout


def test_checks_are_those_of_the_last_doctor(run_opsctl, saas, configure, stored):
    """Printing metrics checks nothing; a database that is gone from the configuration has no series left."""
    configure(saas.url)
    run_opsctl("doctor", "--json")
    printed = run_opsctl("metrics").stdout
    configure("postgresql://u@127.0.0.1:1/x")
    later = run_opsctl("metrics").stdout

    assert values(printed, check="db.connect", target="saasdb")["opsctl_check_state"] == 0
    assert values(later, check="db.connect", target="saasdb")["opsctl_check_state"] == 0
    assert values(printed)["opsctl_doctor_state"] in {0, 1, 2, 3}
    written = values(printed)["opsctl_metrics_written_timestamp_seconds"]
    assert (
        0
        <= written - values(printed)["opsctl_doctor_last_run_timestamp_seconds"]
        < timedelta(minutes=5).total_seconds()
    )
