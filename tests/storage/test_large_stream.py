"""More than a GiB on its way to two places at once, and back: memory does not grow with it."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

LIMIT_MIB = 250
ROWS = 5000
MEASURE = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "opsctl", *sys.argv[1:], "--quiet"])
sys.stderr.write(f"\\n{done.returncode} {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}")
"""


def measured(run_opsctl, credentials, *arguments):
    """Peak memory, in MiB, of the largest process of a run that succeeds."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        cwd=run_opsctl.work,
        env=run_opsctl.environment(env=credentials),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    code, kib = done.stderr.rpartition("\n")[2].split()
    assert code == "0", done.stderr
    return int(kib) / 1024


def test_more_than_a_gib(run_opsctl, credentials, database, ceph):
    """Encrypted, into a folder and a bucket at once, then read back from the bucket: below 250 MiB each time."""
    database.execute(
        "create unlogged table noise as select n, (select string_agg(sha512((n * 10000 + k)::text::bytea), '')"
        f" from generate_series(1, 4000) k) as bytes from generate_series(1, {ROWS}) n"
    )
    bucket = ceph.new_bucket()
    assert run_opsctl("keygen", "-o", "key").returncode == 0
    recipient = (run_opsctl.work / "key").read_text().partition("public key: ")[2].split()[0]
    text = f'[databases."{database.name}"]\nurl = "{database.url}"\ncompression_level = 1\n'
    text += f'[encryption]\nrecipients = ["{recipient}"]\nidentity_file = "key"\n'
    local = '[repositories.local]\nurl = "here"\n'
    offsite = f"[repositories.offsite]\n{ceph.toml(bucket)}"
    (run_opsctl.work / "opsctl.toml").write_text(text + local + offsite)
    peaks = {"backup": measured(run_opsctl, credentials, "backup")}
    (backup,) = json.loads(run_opsctl("list", "--json", env=credentials).stdout)["result"]["backups"]
    assert backup["repositories"] == ["local", "offsite"]
    assert backup["stored_bytes"] > 1 << 30

    (run_opsctl.work / "opsctl.toml").write_text(text + offsite)
    peaks["verify"] = measured(run_opsctl, credentials, "verify")
    peaks["export"] = measured(run_opsctl, credentials, "export", "latest", "-o", "/dev/null")
    print(f"peak memory in MiB: {peaks}")  # noqa: T201 - the acceptance run shows it
    assert max(peaks.values()) < LIMIT_MIB, peaks
