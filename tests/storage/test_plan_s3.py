"""The plan of a restore from a bucket: from the manifest and small objects alone, whatever the dump's size."""

import json
from datetime import UTC, datetime

import pytest

from opsctl.repository import Repository

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_plan_reads_nothing_of_the_dump(run_opsctl, credentials, saas, moto, proxied, encrypted):
    """No request touches a file of the backup but its manifest and the evidence that tells how long a restore takes."""
    bucket = moto.new_bucket()
    keys = ""
    if encrypted:
        assert run_opsctl("keygen", "-o", "key").returncode == 0
        recipient = next(line for line in (run_opsctl.work / "key").read_text().splitlines() if "public key" in line)
        keys = f'[encryption]\nrecipients = ["{recipient.split(": ")[1]}"]\nidentity_file = "key"\n'
    with proxied.Proxy(moto.endpoint) as proxy:
        toml = moto.toml(bucket).replace(moto.endpoint, proxy.endpoint)
        text = f'[databases."{saas.name}"]\nurl = "{saas.url}"\n[repositories.offsite]\n{toml}{keys}'
        (run_opsctl.work / "opsctl.toml").write_text(text)
        assert run_opsctl("backup", "--json", env=credentials).returncode == 0
        repository = Repository("offsite", moto.storage(bucket, "backups"))
        (backup,) = repository.catalog().backups
        at = datetime(2026, 11, 1, tzinfo=UTC)
        repository.record_evidence(backup.manifest, "counted", "pass", at=at, details={"restore_seconds": 12.5})
        proxy.requests.clear()
        run = run_opsctl("restore", "latest", "--plan", "--json", env=credentials)

    assert run.returncode == 0, run
    assert run.json["result"]["plan"]["expected"] == {
        "seconds": 12.5,
        "backup_id": backup.id,
        "measured_seconds": 12.5,
        "measured_at": "2026-11-01T00:00:00.000Z",
        "measured_by": "drill",
    }
    objects = [request.split(" ")[1].partition("?")[0].rpartition("/")[2] for request in proxy.requests]
    assert set(objects) <= {bucket, "manifest.json", "20261101T000000000000Z-counted-pass.json"}, proxy.requests
    assert len(proxy.requests) < 10, json.dumps(proxy.requests, indent=1)
