"""What doctor prints for other programs, read by strict readers of each format."""

import re
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsctl.checks.check import CheckResult, Remedy
from opsctl.checks.report import report
from opsctl.cli.doctor_formats import as_junit, as_nagios, as_prometheus

NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
RANGE = re.compile(rf"(?:(?P<start>~|{NUMBER})?:)?(?P<end>{NUMBER})?")
PERFORMANCE = re.compile(
    rf"'(?P<label>(?:[^'=|\n]|'')+)'=(?P<value>{NUMBER})(?P<unit>s|%|B|c)?(?P<limits>(?:;[^;\s]*){{0,4}})"
)
"""One value, as the plugin guidelines have it: https://www.monitoring-plugins.org/doc/guidelines.html."""

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (\S+)')

numbers = st.floats(-1e12, 1e12, allow_nan=False).map(lambda value: round(value, 6))
limits = st.none() | numbers
results = st.builds(
    CheckResult,
    id=st.sampled_from(["db.connect", "own.queue"]),
    title=st.just("all is well"),
    status=st.sampled_from(["ok", "warn", "crit", "unknown", "skip"]),
    message=st.text(),
    target=st.none() | st.text(min_size=1),
    value=limits,
    unit=st.sampled_from([None, "s", "%", "B", "days"]),
    warn=limits,
    crit=limits,
    falling=st.booleans(),
    remedy=st.none() | st.builds(Remedy, text=st.text(), command=st.none() | st.text()),
)


def alerts(limit, value):
    """Whether a reader of the guidelines takes the value to be outside of the range."""
    match = RANGE.fullmatch(limit)
    assert match, limit
    start = {"~": float("-inf"), None: 0.0}.get(match["start"])
    start = float(match["start"]) if start is None else start
    end = float("inf") if match["end"] is None else float(match["end"])
    assert start <= end, limit
    return not start <= value <= end


def performance(line):
    """The values of a plugin's line, as (label, value, limits); it fails where the guidelines are not kept."""
    assert "\n" not in line
    summary, separator, measured = line.partition(" | ")
    assert re.match(r"OPSCTL (OK|WARNING|CRITICAL|UNKNOWN) - ", summary)
    assert "|" not in summary
    found, position = [], 0
    while separator and position < len(measured):
        match = PERFORMANCE.match(measured, position)
        assert match, measured[position:]
        position = match.end()
        assert measured[position : position + 1] in {"", " "}
        position += 1
        found.append((match["label"], float(match["value"]), match["limits"].split(";")[1:]))
    return found


@given(st.lists(results, max_size=3))
def test_nagios(found):
    """Whatever a check is called and says: one line, every value in it, and its limits mean what they mean here."""
    measured = [each for each in found if each.value is not None]
    values = performance(as_nagios(report(found)))

    assert [value for _, value, _ in values] == pytest.approx([each.value for each in measured])
    for result, (_, value, given_limits) in zip(measured, values, strict=True):
        for limit, text in zip((result.warn, result.crit), [*given_limits, "", ""], strict=False):
            assert (limit is None) == (text == "")
            if limit is not None and limit != value:
                assert alerts(text, value) == (value < limit if result.falling else value > limit)


@given(st.lists(results, max_size=3), st.booleans())
def test_junit(found, warnings_fail):
    """Whatever a check is called and says, XML readers read it, and count what the suite says."""
    suite = ET.fromstring(as_junit(report(found), warnings_fail=warnings_fail)).find("testsuite")  # noqa: S314  # our own

    assert len(suite.findall("testcase")) == int(suite.get("tests")) == len(found)
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert len(suite.findall(f"testcase/{tag}")) == int(suite.get(attribute))


@given(st.lists(results, max_size=3))
def test_prometheus(found):
    """Whatever a check is called and says, each line is a sample or a comment, with no time of its own, and none twice.

    Twice the same labels would cost the reader the whole file.
    """
    text = as_prometheus(report(found), at=datetime(2026, 11, 24, tzinfo=UTC))
    samples = [line for line in text.split("\n") if not line.startswith("#")]

    for line in samples:
        match = SAMPLE.fullmatch(line)
        assert match, line
        float(match[3])
    states = {(each.id, each.target) for each in found}
    values = {(each.id, each.target, each.unit) for each in found if each.value is not None}
    assert len({line.rpartition(" ")[0] for line in samples}) == len(samples) == len(states) + len(values) + 2
