"""An incident as the draft of a postmortem, in Markdown that is safe to show on GitHub. Pure.

Whatever a timeline holds was written by programs and people nobody has vetted: none of it becomes markup, a link, a
mention, or a character that a terminal obeys.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from opsctl.incident import Summary, moment_of, shortened
from opsctl.timeline import Event, Examined

OUTPUT_BYTES = 8 * 1024
"""Of one output, in the draft: its beginning and its end. The timeline has more."""

CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What drives a terminal, and what turns the direction of text around."""

MARKUP = re.compile(r"([\\`*_\[\]|~$])")
LEADING = re.compile(r"^([#+=-]|\d+(?=[.)]))")
REFERENCE = re.compile(r"([@#])(?=\w)")
"""What GitHub would make a mention or a link to an issue of."""

ADDRESS = re.compile(r"(?<=[a-z])(?=://)|(?<=\bwww)(?=\.)", re.IGNORECASE)
APART = "&#8203;"
OUTPUTS = ("output", "stdout", "stderr", "data", "capture")
NOT_TOLD = frozenset({*OUTPUTS, "step", "text", "undo", "happened_at", "run_id", "digest", "effect"})


@dataclass(frozen=True)
class Change:
    """What a check said first and last."""

    name: str
    before: str
    after: str
    message: str

    @property
    def is_worth_a_row(self) -> bool:
        return self.before != self.after or self.after not in {"ok", "skip"}


def check_changes(events: Sequence[Event]) -> list[Change]:
    """Every check that was made in the course of an incident, with its first and its last status."""
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        for each in event.fields.get("checks") or () if event.kind == "checks" else ():
            if isinstance(each, dict) and "id" in each and "status" in each:
                seen.setdefault(_name(each), []).append(each)
    return [
        Change(name, str(found[0]["status"]), str(found[-1]["status"]), str(found[-1].get("message") or ""))
        for name, found in seen.items()
    ]


def _name(check: Mapping[str, Any]) -> str:
    return f"{check.get('id')} ({check['target']})" if check.get("target") else str(check.get("id"))


def durations(summary: Summary) -> dict[str, float | None]:
    """Seconds from the detection to each moment."""
    start = summary.detected_at
    moments = {
        "time_to_acknowledge_seconds": summary.acknowledged_at,
        "time_to_mitigate_seconds": summary.mitigated_at,
        "time_to_resolve_seconds": summary.resolved_at,
    }
    return {
        name: round(max(0.0, (moment - start).total_seconds()), 3) if moment and start else None
        for name, moment in moments.items()
    }


def told(event: Event) -> str:
    """An event in one line of plain text."""
    fields = event.fields
    step = f"{fields['step']}: " if fields.get("step") else ""
    tell = TOLD.get(event.kind)
    said = tell(fields) if tell else _anything(fields)
    late = f" (at {_moment(moment_of(event))})" if "happened_at" in fields else ""
    return clean(f"{step}{'undo, ' if fields.get('undo') else ''}{said}{late}")


def _opened(fields: Mapping[str, Any]) -> str:
    return str(fields.get("summary") or fields.get("scenario") or "")


def _commanded(fields: Mapping[str, Any]) -> str:
    commands = fields.get("command") or ()
    return "; ".join(map(str, commands)) if isinstance(commands, list) else str(commands)


def _ended(fields: Mapping[str, Any]) -> str:
    code, seconds, reason = (fields.get(key) for key in ("exit_code", "duration_seconds", "reason"))
    parts = [str(fields.get("outcome") or "ended"), f"exit code {code}" if code else "", str(reason or "")]
    after = f" after {seconds:.1f} s" if isinstance(seconds, int | float) else ""
    return ", ".join(each for each in parts if each) + after


def _agreed(fields: Mapping[str, Any]) -> str:
    parts = [fields.get("how"), fields.get("target"), _commanded(fields), fields.get("text")]
    return ", ".join(str(each) for each in parts if each)


def _looked(fields: Mapping[str, Any]) -> str:
    """The verdict of all checks, or what each of a few said."""
    verdict = fields.get("verdict")
    said = verdict.get("summary") if isinstance(verdict, dict) else None
    if said is None:
        found = [each for each in fields.get("checks") or () if isinstance(each, dict)]
        said = ", ".join(f"{_name(each)} {each.get('status')}" for each in found)
    when = f"{fields['when']}:" if fields.get("when") else None
    return " ".join(str(each) for each in (when, fields.get("status"), said) if each)


def _saved(fields: Mapping[str, Any]) -> str:
    return f"{fields.get('piece')}: {fields.get('reason') or 'saved'}"


def _reason(fields: Mapping[str, Any]) -> str:
    return str(fields.get("reason") or "")


def _anything(fields: Mapping[str, Any]) -> str:
    """A note, a moment, or what a later opsctl tells of."""
    more = [f"{key}={_compact(each)}" for key, each in fields.items() if key not in NOT_TOLD and each not in (None, "")]
    return " ".join([str(fields.get("text") or ""), *more])


TOLD: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "opened": _opened,
    "step_started": _commanded,
    "step_finished": _ended,
    "step_skipped": _reason,
    "refused": _reason,
    "confirmed": _agreed,
    "checks": _looked,
    "capture": _saved,
}


def unfinished(events: Sequence[Event]) -> list[str]:
    """The steps that began and have no end: opsctl was killed in the middle, and what they did is not known."""
    under_way: dict[str, None] = {}
    for event in events:
        step = str(event.fields.get("step") or "")
        if event.kind == "step_started":
            under_way[step] = None
        elif event.kind == "step_finished":
            under_way.pop(step, None)
    return list(under_way)


def _compact(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return shortened(" ".join(value), 300)
    if isinstance(value, list | dict):
        return shortened(json.dumps(value, ensure_ascii=False), 300)
    return shortened(f"{value:g}" if isinstance(value, float) else str(value), 300)


def clean(text: str) -> str:
    """A text on one line, without what a terminal would obey."""
    return " ".join(CONTROL.sub("", text).split())


def as_inline(text: str) -> str:
    """A text as Markdown that shows just this text, in a table's cell as well."""
    escaped = MARKUP.sub(r"\\\1", escape(clean(text), quote=False))
    apart = ADDRESS.sub(APART, REFERENCE.sub(rf"\1{APART}", escaped))
    return LEADING.sub(lambda found: f"&#{ord(found[1][0])};{found[1][1:]}", apart)


def as_block(text: str) -> str:
    """A text in a fence that it cannot end."""
    shown = CONTROL.sub("", shortened(text.replace("\r\n", "\n"), OUTPUT_BYTES)).strip("\n")
    longest = max((len(each) for each in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown}\n{fence}"


def as_markdown(summary: Summary, found: Examined) -> str:
    """The draft: what is known is filled in, what people have to think about is asked for."""
    parts = [
        f"# Postmortem: {as_inline(summary.summary or summary.scenario or summary.id)}",
        *_warnings(found),
        _facts(summary, found.events),
        "## Summary\n\n_What happened, in two or three sentences that a customer could read._",
        "## Impact\n\n_Who noticed what, and for how long? Which data was lost or is wrong?_",
        _timeline(found.events),
        *_checks(found.events),
        *_outputs(found.events),
        "## Cause\n\n_Why could it happen, and why was it not noticed earlier?_",
        "## What went well, what did not\n\n- \n- ",
        "## Actions\n\n| Action | Owner | Due |\n|---|---|---|\n| | | |\n| | | |\n| | | |",
        _footer(summary, found),
    ]
    return "\n\n".join(parts) + "\n"


def _warnings(found: Examined) -> Iterator[str]:
    if found.problems:
        lines = [f"> - {'' if each.line is None else f'line {each.line}: '}{each.message}" for each in found.problems]
        yield "\n".join(["> [!WARNING]", "> **This timeline is not what was written.**", ">", *lines])
    for step in unfinished(found.events):
        yield f"> [!WARNING]\n> The step {as_inline(step)} began and has no end: what it did is not known."


def _facts(summary: Summary, events: Sequence[Event]) -> str:
    seconds = durations(summary)
    rows = [
        ("Incident", f"`{summary.id}`"),
        ("Status", summary.status),
        *([("Scenario", f"`{clean(summary.scenario).replace('`', '')}`")] if summary.scenario else []),
        ("People", ", ".join(dict.fromkeys(as_inline(who(each)) for each in events)) or "-"),
        ("Detected", _told_moment(summary.detected_at)),
        ("Acknowledged", _told_moment(summary.acknowledged_at, seconds["time_to_acknowledge_seconds"], "MTTA")),
        ("Mitigated", _told_moment(summary.mitigated_at, seconds["time_to_mitigate_seconds"], "MTTM")),
        ("Resolved", _told_moment(summary.resolved_at, seconds["time_to_resolve_seconds"], "MTTR")),
        ("Closed", _told_moment(summary.closed_at)),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _told_moment(moment: datetime | None, seconds: float | None = None, name: str = "") -> str:
    if moment is None:
        return "-"
    return _moment(moment) + (f", after **{spoken(seconds)}** ({name})" if seconds is not None else "")


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def spoken(seconds: float) -> str:
    """A duration for people, in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((number for number, (count, _) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2] if count) or "0 s"


def who(event: Event) -> str:
    """Who was at work, as a person would say it."""
    actor = event.actor
    user, host = str(actor.get("user") or "?"), actor.get("host")
    person = f"{actor['sudo_user']} (as {user})" if actor.get("sudo_user") else user
    return clean(f"{person} on {host}" if host else person)


def _timeline(events: Sequence[Event]) -> str:
    rows, day = [], None
    for event in events:
        at = event.at.astimezone(UTC)
        shown = f"{at:%H:%M:%S}" if at.date() == day else f"{at:%Y-%m-%d %H:%M:%S}"
        day = at.date()
        rows.append(f"| {event.seq} | {shown} | {event.kind.replace('_', ' ')} | {as_inline(told(event))} |")
    return "\n".join(["## Timeline", "", "| # | Time (UTC) | Event | |", "|---|---|---|---|", *rows])


def _checks(events: Sequence[Event]) -> Iterator[str]:
    changes = check_changes(events)
    if not changes:
        return
    rows = [
        f"| {as_inline(each.name)} | {each.before} | {each.after} | {as_inline(each.message)} |"
        for each in changes
        if each.is_worth_a_row
    ]
    others = len(changes) - len(rows)
    table = ["| Check | Before | After | Last said |", "|---|---|---|---|", *rows] if rows else []
    remark = [f"{others} other checks were ok or skipped before and after."] if others else []
    yield "\n\n".join(["## Checks before and after", *(["\n".join(table)] if table else []), *remark])


def _outputs(events: Sequence[Event]) -> Iterator[str]:
    folded = [part for event in events for part in _folded(event)]
    if folded:
        yield "\n\n".join(["## Outputs", *folded])


def _folded(event: Event) -> Iterator[str]:
    """What an event holds besides its line, to be unfolded."""
    for key in OUTPUTS:
        value = event.fields.get(key)
        if value in (None, "", [], {}):
            continue
        text = value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)
        title = str(event.fields.get("piece") or event.fields.get("step") or event.kind)
        label = f"{event.seq} · {title}" + ("" if key in {"output", "data"} else f" · {key}")
        summary = REFERENCE.sub(rf"\1{APART}", escape(shortened(clean(label), 200)))
        yield f"<details>\n<summary>{summary}</summary>\n\n{as_block(text)}\n\n</details>"


def _footer(summary: Summary, found: Examined) -> str:
    link = found.link
    state = "unchanged" if found.is_intact else "**changed**"
    return (
        "---\n\n"
        f"{len(found.events)} events, {state}; the last one has the hash `{link.hash}`. "
        f"`opsctl incident verify {summary.id} --head {link.hash[:16]}` tells whether they still are."
    )
