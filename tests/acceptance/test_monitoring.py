"""What other monitoring reads of doctor's report, as strictly as it reads it."""

import re
import subprocess
from datetime import UTC, datetime

import pytest

from opsctl.checks.check import CheckResult
from opsctl.checks.report import report
from opsctl.cli.doctor_formats import as_nagios, as_prometheus

pytestmark = [pytest.mark.acceptance, pytest.mark.end_to_end]

NUMBER = r"-?\d+(?:\.\d+)?"
RANGE = rf"@?(?:(?:~|{NUMBER})?:)?(?:{NUMBER})?"
PERFORMANCE = re.compile(
    rf"(?P<label>'(?:[^'=]|'')+'|[^'=\s]+)=(?P<value>{NUMBER})(?P<unit>[um]?s|%|[KMGT]?B|c)?"
    rf"(?:;(?P<warn>{RANGE})(?:;(?P<crit>{RANGE})(?:;(?:{NUMBER})?(?:;(?:{NUMBER})?)?)?)?)?(?:\s+|$)"
)
"""``'label'=value[unit];[warn];[crit];[min];[max]`` of the Monitoring Plugins Development Guidelines."""

AWKWARD = [
    CheckResult("db.clock", "t", "ok", "o'clock | 50 %", target="it's a=b", value=0.0004, unit="s", warn=2, crit=60),
    CheckResult(
        "disk.space", "t", "warn", "é\nline", target='C:\\ "x"\n', value=4.5, unit="%", warn=5.0, crit=3.0, falling=True
    ),
    CheckResult("db.slots", "t", "ok", "fine", value=123456789012, unit="B", warn=1024**3),
    CheckResult("db.invalid_indexes", "t", "ok", "fine", value=0),
    CheckResult("db.connect", "t", "skip", "not looked at", because="x"),
]


def performance(line):
    """The values of a plugin's line by their label; the whole of it has to be understood."""
    text, bar, data = line.rstrip("\n").partition(" | ")
    assert bar
    assert "\n" not in line.rstrip("\n")
    assert re.match(r"OPSCTL (OK|WARNING|CRITICAL|UNKNOWN) - ", text)
    found, at = {}, 0
    while at < len(data):
        match = PERFORMANCE.match(data, at)
        assert match, data[at:]
        label = match["label"].strip("'").replace("''", "'")
        assert label not in found
        found[label] = match
        at = match.end()
    return found


def test_nagios_understands_every_value(run_opsctl, saas):
    """A real run, and names and numbers that are awkward."""
    run = run_opsctl("doctor", "db", "--format", "nagios", url=saas.url)
    real = performance(run.stdout)
    awkward = performance(as_nagios(report(AWKWARD)))

    assert run.returncode == 0, run
    assert len(real) > 5
    assert awkward['disk.space:C:\\ "x"\n'.replace("\n", " ").strip()]["warn"] == "5:"
    assert awkward["db.slots"]["value"] == "123456789012"
    assert awkward["db.clock:it's a_b"]["value"] == "0.0004"


def test_promtool_has_nothing_to_say(run_opsctl, saas, need):
    """`promtool check metrics` parses and lints it: a real run, and names that need escapes."""
    promtool = need("promtool")
    run = run_opsctl("doctor", "db", "--format", "prometheus", url=saas.url)
    for text in (run.stdout, as_prometheus(report(AWKWARD), at=datetime(2026, 11, 24, tzinfo=UTC)) + "\n"):
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
        )

        assert (checked.returncode, checked.stdout + checked.stderr) == (0, ""), checked
