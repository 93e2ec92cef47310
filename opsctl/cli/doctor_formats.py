"""What `doctor` prints for each reader: a person, Nagios, a CI server, Prometheus. JSON is the usual envelope."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from textwrap import wrap
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from opsctl.checks.check import CheckResult, Status
from opsctl.checks.report import Report

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES: Mapping[Status, str] = {
    "ok": "green",
    "warn": "yellow",
    "crit": "bold red",
    "unknown": "magenta",
    "skip": "dim",
}
NAGIOS_WORDS: Mapping[Status, str] = {"ok": "OK", "warn": "WARNING", "crit": "CRITICAL", "unknown": "UNKNOWN"}
TEXT_COLUMNS = 72
NAGIOS_UNITS = frozenset({"s", "%", "B", "c"})
"""The plugin guidelines know no others."""


def as_text(found: Report) -> list["RenderableType"]:
    """The verdict, then what is not well and what to do about it, then a line per check."""
    from rich.text import Text

    lines: list[RenderableType] = [
        Text.assemble((found.status.upper(), STYLES[found.status]), "  ", found.verdict.summary)
    ]
    for each in found.checks:
        if each.status not in {"ok", "skip"}:
            lines += ["", Text.assemble((f"{each.status:7}", STYLES[each.status]), " ", (each.name, "bold"))]
            lines += [Text(f"        {line}", style=style) for line, style in _explained(each, found.verdict.scenario)]
    lines += ["", _table(found)]
    if found.verdict.scenario:
        lines += ["", Text.assemble("What to do now:  ", (f"opsctl runbook run {found.verdict.scenario}", "bold cyan"))]
    return lines


def _explained(result: CheckResult, told_at_the_end: str | None) -> Iterator[tuple[str, str]]:
    """Lines with their style, 80 columns wide with the margin; a command stays whole."""
    yield from ((line, "") for line in wrap(result.message, TEXT_COLUMNS))
    remedy = result.remedy
    if remedy is not None:
        yield from ((line, "italic") for line in wrap(remedy.text, TEXT_COLUMNS))
        if remedy.command:
            yield f"$ {remedy.command}", "cyan"
        if remedy.scenario not in {None, told_at_the_end}:
            yield f"$ opsctl runbook run {remedy.scenario}", "cyan"


def _table(found: Report) -> "RenderableType":
    from rich.text import Text

    from opsctl.cli.output import PlainTable

    table = PlainTable()
    has_targets = len({each.target for each in found.checks if each.target}) > 1
    for name in ["STATUS", "CHECK", *(["TARGET"] if has_targets else [])]:
        table.add_column(name, no_wrap=True)
    table.add_column("FOUND")
    for each in found.checks:
        target = [each.target or ""] if has_targets else []
        told = each.message if each.status in {"ok", "skip"} else "see above"
        table.add_row(Text(each.status, style=STYLES[each.status]), each.id, *target, Text(told))
    return table


def as_nagios(found: Report) -> str:
    """One line as the plugin guidelines want it: summary, then the values as performance data."""
    summary = " ".join(found.verdict.summary.replace("|", "/").split())
    measured = [_performance(each, each.value) for each in found.checks if each.value is not None]
    return f"OPSCTL {NAGIOS_WORDS[found.status]} - {summary}" + (f" | {' '.join(measured)}" if measured else "")


def _performance(result: CheckResult, value: float) -> str:
    name = f"{result.id}:{result.target}" if result.target else result.id
    label = " ".join(name.split()).replace("|", "/").replace("=", "_").replace("'", "''")
    unit = result.unit if result.unit in NAGIOS_UNITS else ""
    limits = ";".join(_range(limit, value, falling=result.falling) for limit in (result.warn, result.crit))
    return f"'{label}'={_number(value)}{unit};{limits}".rstrip(";")


def _range(limit: float | None, value: float, *, falling: bool) -> str:
    """What is fine, as the guidelines write it: ``10`` is from 0 to 10, ``10:`` from there on, ``~:10`` up to there."""
    if limit is None:
        return ""
    if falling:
        return f"{_number(limit)}:"
    return _number(limit) if min(limit, value) >= 0 else f"~:{_number(limit)}"


def _number(value: float) -> str:
    """Neither an exponent nor a bare point: plugins' readers know neither."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def as_junit(found: Report, *, warnings_fail: bool) -> str:
    """A test suite: what is critical failed, what is unknown is an error."""
    bad: set[Status] = {"crit", "warn"} if warnings_fail else {"crit"}
    suite = ET.Element(
        "testsuite",
        name="opsctl doctor",
        tests=str(len(found.checks)),
        failures=str(sum(each.status in bad for each in found.checks)),
        errors=str(found.counts["unknown"]),
        skipped=str(found.counts["skip"]),
        time=f"{sum(each.duration_seconds for each in found.checks):.3f}",
    )
    for each in found.checks:
        case = ET.SubElement(
            suite, "testcase", classname=each.id, name=_xml(each.name), time=f"{each.duration_seconds:.3f}"
        )
        if each.status in bad or each.status == "unknown":
            kind = "error" if each.status == "unknown" else "failure"
            problem = ET.SubElement(case, kind, type=each.code or each.status, message=_xml(each.message))
            problem.text = _xml(each.remedy.text if each.remedy else "")
        elif each.status == "skip":
            ET.SubElement(case, "skipped", message=_xml(each.message))
        else:
            ET.SubElement(case, "system-out").text = _xml(each.message)
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode")


def _xml(text: str) -> str:
    """Text without the characters XML has no way to write."""
    return "".join(
        each
        for each in text
        if each in "\t\n" or " " <= each <= "\ud7ff" or (each >= "\ue000" and each not in "\ufffe\uffff")
    )


def as_prometheus(found: Report, *, at: datetime) -> str:
    """Prometheus's text format: a state and, where there is one, a value per check."""
    from opsctl.telemetry.metrics import CheckFacts, DoctorFacts, render_doctor

    checks = [CheckFacts(each.id, each.target or "", each.status, each.value, each.unit) for each in found.checks]
    return render_doctor(DoctorFacts(at, found.status, checks)).decode().removesuffix("\n")
