"""docs/disaster-recovery.md, followed on a machine that knows nothing: another server, no state, three things kept."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from servers import throwaway_server

pytestmark = [pytest.mark.acceptance, pytest.mark.end_to_end]

PAGE = (Path(__file__).parents[1] / "docs/disaster-recovery.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?P<not_run><!-- not run:[^\n]+-->\n)?```(?P<kind>sh|toml)\n(?P<text>.*?)```", re.DOTALL)
TABLES = ("companies", "users", "messages", "events")


def rows_of(database):
    counts = " union all ".join(f"select '{table}', count(*) from public.{table}" for table in TABLES)
    return sorted(database.execute(counts))


@pytest.fixture
def kept(run_opsctl, saas, tmp_path):
    """What is left of the old machine: an encrypted repository elsewhere, the identity, and what was in the tables."""
    repository, key = tmp_path / "elsewhere", tmp_path / "kept.key"
    recipient = run_opsctl("keygen", "-o", key).stdout.strip()
    role = f"owner_{saas.name}"
    saas.execute(f"create role {role} login; alter table users owner to {role}")
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases.saasdb]\nurl = "{saas.url}"\n[repositories.offsite]\nurl = "{repository}"\n'
        f'[encryption]\nrecipients = ["{recipient}"]\n'
    )
    assert run_opsctl("backup").returncode == 0
    yield repository, key, recipient, role
    saas.execute(f"reassign owned by {role} to {saas.cluster.user}; drop owned by {role}; drop role {role}")


def test_the_page_leads_to_a_database_that_is_proven(kept, run_opsctl, saas, binaries, tmp_path):
    """Every block of the page, from top to bottom, with its own configuration but for the addresses."""
    repository, key, recipient, role = kept
    machine, programs = tmp_path / "machine", tmp_path / "bin"
    machine.mkdir()
    programs.mkdir()
    (programs / "opsctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m opsctl "$@"\n')
    (programs / "opsctl").chmod(0o755)
    blocks = [match for match in BLOCK.finditer(PAGE) if match["not_run"] is None]
    (written,) = [match["text"] for match in blocks if match["kind"] == "toml"]
    written = re.sub(r'url = "s3:.*\nendpoint_url = .*', f'url = "{repository}"', written)
    (machine / "opsctl.toml").write_text(re.sub(r"recipients = .*", f'recipients = ["{recipient}"]', written))
    (machine / "opsctl.key").write_bytes(key.read_bytes())
    (machine / "opsctl.key").chmod(0o600)
    with throwaway_server(binaries) as new:
        url = new.url("saasdb")
        path = f"{programs}:{binaries.folder}:{os.environ['PATH']}"
        environment = run_opsctl.environment(url=url, env={"PATH": path, "OPSCTL_STATE_DIR": str(tmp_path / "new")})
        scripts = [match["text"] for match in blocks if match["kind"] == "sh"]
        for script in scripts:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=machine,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        restored = replace(saas, cluster=new, name="saasdb")
        assert rows_of(restored) == rows_of(saas)
        assert restored.execute("select tableowner from pg_tables where tablename = 'users'") == [(role,)]
        listed = run_opsctl("list", "--json", env=environment, cwd=machine).json["result"]["backups"]

    assert len(scripts) == 5
    assert [each["evidence"]["level"] for each in listed] == ["counted", "decoded"]
    assert all(each["encrypted"] for each in listed)
