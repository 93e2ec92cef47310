"""What a run found wrong and what it found well, and how people are told of it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from opsctl.cli.output import Outcome, duration
from opsctl.errors import DatabaseUnreachable, OpsctlError
from opsctl.telemetry.notify import Kind, Message
from opsctl.telemetry.told import Known, News, Trouble
from opsctl.unusual import MOST_NAMED

PROOFS = frozenset({"verify", "drill"})

CHECKS = "check/"
"""What keys of checks begin with: they are troubles of what is looked at, not of the run that looks."""


@dataclass(frozen=True)
class Found:
    """``well``: the keys of what this run has found to be all right."""

    troubles: tuple[Trouble, ...] = ()
    well: frozenset[str] = frozenset()


def found_by(command: str, outcome: Outcome, complaints: Sequence[str] = ()) -> Found:
    """What a run of a command shows about each of its databases and repositories, or about itself.

    ``complaints`` is what its log warned of.
    """
    own = f"{command}/{outcome.fields.get('database', '')}"
    items = list((outcome.result or {}).get("backups") or ()) if command in {"backup", *PROOFS} else []
    if not items:
        if outcome.error is not None:
            return Found((_failed(command, own, outcome.error),))
        if outcome.done or command == "doctor":
            return Found(well=frozenset({own, f"{command}/"}))
        return Found((_attention(command, own, complaints),))
    troubles = _unproven(command, items) if command in PROOFS else _unstored(command, items, outcome.error)
    keys = {f"{command}/{item['database']}" for item in items}
    keys |= {f"{command}/{item['database']}/{place['name']}" for item in items for place in item["repositories"]}
    well = {f"{command}/", *keys} - {trouble.key for trouble in troubles}
    if not troubles and not outcome.done:
        troubles.append(_attention(command, own, complaints))
        well.discard(own)
    return Found(tuple(troubles), frozenset(well))


def _unstored(command: str, items: Iterable[Mapping[str, Any]], error: OpsctlError | None) -> list[Trouble]:
    """The databases of which there is no backup, or one that holds less, and repositories that did not get theirs."""
    troubles = []
    for item in items:
        key = f"{command}/{item['database']}"
        if item["status"] == "failed":
            troubles.append(_item_failed(command, key, item["error"], error))
        if unusual := item.get("unusual"):
            what = "; ".join(each["message"] for each in unusual[:MOST_NAMED])
            hint = f"`opsctl diff {item['compared_with']} {item['id']}` shows what changed; nothing was pruned."
            troubles.append(Trouble(key, "unusual", f"{_subject(command, key)} holds less than usual", what, hint))
        for place in item["repositories"]:
            if place["status"] == "failed":
                subject = f"{command} of {item['database']} is not stored in {place['name']}"
                troubles.append(Trouble(f"{key}/{place['name']}", "not_stored", subject, str(place["error"])))
    return troubles


def _unproven(command: str, items: Iterable[Mapping[str, Any]]) -> list[Trouble]:
    """The databases with a backup that is damaged, or could not be judged."""
    bad: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        if item["outcome"] != "pass":
            bad.setdefault(f"{command}/{item['database']}", []).append(item)
    return [
        Trouble(
            key,
            cause := "damaged" if any(each["outcome"] == "fail" for each in found) else "unknown",
            f"{_subject(command, key)} {'failed' if cause == 'damaged' else 'could not judge a backup'}",
            "; ".join(f"{each['id']}: {'; '.join(each['problems']) or each['outcome']}" for each in found),
        )
        for key, found in bad.items()
    ]


def found_by_checks(checks: Iterable[Mapping[str, Any]]) -> Found:
    """What doctor's checks show: those that fail, and those that do not. A warning is no reason to wake anybody."""
    troubles, well = [], set()
    for check in checks:
        name = f"{check['id']} ({check['target']})" if check["target"] else str(check["id"])
        if check["status"] in {"crit", "unknown"}:
            remedy = check["remedy"] or {}
            hint = remedy.get("text")
            troubles.append(
                Trouble(f"{CHECKS}{name}", check["status"], f"{name} is {check['status']}", check["message"], hint)
            )
        elif check["status"] in {"ok", "warn"}:
            well.add(f"{CHECKS}{name}")
    return Found(tuple(troubles), frozenset(well))


def cause_of(error: OpsctlError) -> str:
    """A stable word for what is wrong: the error's code, and why a server cannot be reached."""
    return f"{error.code}/{error.reason}" if isinstance(error, DatabaseUnreachable) else error.code


def _failed(command: str, key: str, error: OpsctlError) -> Trouble:
    return Trouble(key, cause_of(error), f"{_subject(command, key)} failed", error.message, error.hint)


def _item_failed(command: str, key: str, item: Mapping[str, Any], error: OpsctlError | None) -> Trouble:
    same = error is not None and error.message == item["message"]
    cause = cause_of(error) if error is not None and same else str(item["code"])
    return Trouble(key, cause, f"{_subject(command, key)} failed", item["message"], item["hint"])


def _attention(command: str, key: str, complaints: Sequence[str]) -> Trouble:
    message = "; ".join(complaints) or "it finished, but not all is well."
    return Trouble(key, "attention", f"{_subject(command, key)} needs attention", message)


def _subject(command: str, key: str) -> str:
    database = key.partition("/")[2]
    return f"{command} of {database}" if database else command


# Messages


def messages(news: News, *, on: Collection[str], host: str, run: str) -> list[Message]:
    """At most two: one of what is wrong, one of what is over. ``run`` says which run found it."""
    told = []
    wrong = [each for each in news.new if _is_wanted(each.key, on)]
    again = [(each, since) for each, since in news.again if _is_wanted(each.key, on)]
    if wrong or again:
        subjects = [each.subject for each in (*wrong, *(each for each, _ in again))]
        body = [_described(each) for each in wrong]
        body += [f"{_described(each)}\nSo since {_day(since)}." for each, since in again]
        kind: Kind = "warning" if all(each.cause == "attention" for each in wrong) and not again else "failure"
        told.append(Message(kind, f"{host}: {_listed(subjects)}", "\n\n".join([*body, run])))
    if news.over and "recovery" in on:
        body = [f"{each.subject}, since {_day(datetime.fromisoformat(each.since))}: over." for each in news.over]
        title = f"{host}: over: {_listed([each.subject for each in news.over])}"
        told.append(Message("success", title, "\n".join([*body, "", run])))
    return told


def drill_message(command: str, outcome: Outcome, *, host: str, run: str) -> Message | None:
    """What a drill came to, if there was one; one that could not even begin is a failure like any other."""
    items = list((outcome.result or {}).get("backups") or ()) if command in PROOFS else []
    if command == "verify" and not any(item.get("restored_on") for item in items):
        return None
    if not items:
        return None
    lines = []
    for item in items:
        seconds = item.get("restore_seconds")
        line = f"{item['id']}: {item['outcome']}"
        line += f", {item['evidence']}" if item.get("evidence") else ""
        line += f", restored in {duration(seconds)}" if seconds is not None else ""
        lines += [line, *(f"  {problem}" for problem in item.get("problems", ()))]
    outcomes = {item["outcome"] for item in items}
    kind: Kind = "success" if outcomes == {"pass"} else "failure"
    word = "passed" if kind == "success" else "failed" if "fail" in outcomes else "could not be judged"
    return Message(kind, f"{host}: drill {word}", "\n".join([*lines, "", run]))


def still_known(known: Mapping[str, Known], found: Found) -> bool:
    """Whether there may be something to tell."""
    return bool(found.troubles) or any(key in found.well for key in known)


def _is_wanted(key: str, on: Collection[str]) -> bool:
    return ("doctor" if key.startswith(CHECKS) else "failure") in on


def _described(trouble: Trouble) -> str:
    hint = f"\n{trouble.hint}" if trouble.hint else ""
    return f"{trouble.subject}: {trouble.message}{hint}"


def _listed(subjects: list[str]) -> str:
    first, *others = subjects
    return f"{first}, and {len(others)} more" if others else first


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
