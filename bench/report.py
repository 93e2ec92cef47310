"""What was measured, as medians and ratios with their spread: docs/benchmarks.md, made of bench/results.json. Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import Sample
from bench.targets import BACKUP, HELLO, LIMIT, MIB, Target, targets, targets_of_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results.json"
NOTES = ROOT / "bench" / "notes.md"
PAGE = ROOT / "docs" / "benchmarks.md"
TARGETS_ARE_OF = "1 GiB"
BASES = (LIMIT, "pg_restore -j1", HELLO)
"""What the ratios of a table are of: the first of these that is in it."""


INTRODUCTION = """\
Made by `make bench`, which anybody can run: it brings its own data, starts its own servers, and lets opsctl and its
peers take turns, round after round. A ratio is of two runs of the same round; given are the median and, in parentheses,
the least and the most. The server's own work is in the seconds, not in the processor's seconds. Memory is the most that
all processes of a command had at one time, and the Python ones among them."""


@dataclass(frozen=True)
class Part:
    """Contenders that took turns, round by round: their samples by their names, in the order of the rounds."""

    title: str
    samples: Mapping[str, Sequence[Sample]]

    @property
    def rounds(self) -> int:
        return max(map(len, self.samples.values()), default=0)


@dataclass(frozen=True)
class Results:
    """All that was measured with one data set, and on what."""

    data: str
    machine: str
    server: str
    day: str
    jobs: int
    backups: int
    database_bytes: int
    parts: Sequence[Part] = ()
    missing: Sequence[str] = ()
    """Contenders that were not there, or could not be run."""
    plain_bytes: int | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> dict[str, Sequence[Sample]]:
        return {name: each for part in self.parts for name, each in part.samples.items()}


@dataclass(frozen=True)
class Spread:
    """A median and the range that it is out of."""

    median: float
    least: float
    most: float

    def text(self, digits: int = 2) -> str:
        if self.least == self.most:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.least:.{digits}f} to {self.most:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def ratios(of: Sequence[float], by: Sequence[Sequence[float]]) -> Spread:
    """Round by round, ``of`` divided by the best of the others in that round: a busy moment falls on all of them."""
    return spread([mine / best for mine, best in _beside_the_best(of, by)])


def differences(of: Sequence[float], by: Sequence[Sequence[float]]) -> Spread:
    """The same, but what ``of`` takes more than the best of the others."""
    return spread([mine - best for mine, best in _beside_the_best(of, by)])


def _beside_the_best(of: Sequence[float], by: Sequence[Sequence[float]]) -> Iterator[tuple[float, float]]:
    return zip(of, map(min, zip(*by, strict=True)), strict=True)


@dataclass(frozen=True)
class Verdict:
    target: Target
    found: Spread

    @property
    def is_met(self) -> bool:
        """By its median, to the two digits that are shown."""
        return round(self.found.median, 2) <= round(self.target.most, 2)


def judge(wanted: Sequence[Target], samples: Mapping[str, Sequence[Sample]]) -> list[Verdict]:
    """The targets whose contenders were run."""
    found = []
    for target in wanted:
        names = [name for name in target.by if name in samples]
        if target.of not in samples or (target.by and not names):
            continue
        mine = _amounts(target, samples[target.of])
        if target.by:
            compared = differences if target.is_difference else ratios
            found.append(Verdict(target, compared(mine, [_amounts(target, samples[name]) for name in names])))
        else:
            worst = max(mine) if target.amount == "python_bytes" else None
            found.append(Verdict(target, spread([worst] if worst is not None else mine)))
    return found


def _amounts(target: Target, samples: Sequence[Sample]) -> list[float]:
    values = [float(getattr(each, target.amount) or 0) for each in samples]
    return [value / MIB for value in values] if target.amount == "python_bytes" else values


def page(all_results: Sequence[Results], notes: str) -> str:
    """docs/benchmarks.md."""
    lines = [
        "# Benchmarks",
        "",
        INTRODUCTION,
        "",
        notes.strip(),
        "",
    ]
    for results in all_results:
        lines += _section(results)
    return "\n".join(lines).rstrip() + "\n"


def _section(results: Results) -> list[str]:
    size = f"{results.database_bytes / (1 << 30):.2f} GiB"
    plain = f", {results.plain_bytes / (1 << 30):.2f} GiB as a plain dump" if results.plain_bytes else ""
    lines = [
        f"## {results.data}",
        "",
        f"{results.day}: PostgreSQL {results.server}, {size}{plain}; {results.machine}.",
        "",
    ]
    verdicts = judge(_wanted(results), results.samples)
    if verdicts:
        lines += ["| target | at most | measured | |", "|---|---:|---:|---|"]
        lines += [_verdict_row(each) for each in verdicts]
        lines.append("")
    for part in results.parts:
        rounds = "1 round" if part.rounds == 1 else f"{part.rounds} rounds"
        lines += [f"### {part.title}: {results.data}, {rounds}", "", *_table(part, results.plain_bytes), ""]
    if results.missing:
        lines += [f"Not there, or not to be run: {', '.join(results.missing)}.", ""]
    return lines


def _wanted(results: Results) -> list[Target]:
    """The targets of a data set: ratios of 1 GiB, and memory whatever the size."""
    if "tables" in results.data:
        return targets_of_tables()
    every = targets(results.jobs, results.backups)
    return every if results.data == TARGETS_ARE_OF else [each for each in every if each.amount == "python_bytes"]


def _verdict_row(verdict: Verdict) -> str:
    target = verdict.target
    digits = 0 if target.amount == "python_bytes" else 2
    outcome = "met" if verdict.is_met else "**missed**"
    what = target.what.replace("|", r"\|")
    return f"| {what} | {target.most:.{digits}f} | {verdict.found.text(digits)} | {outcome} |"


def _table(part: Part, plain_bytes: int | None) -> list[str]:
    samples = part.samples
    base = next((name for name in BASES if name in samples), None)
    is_stored = any(each.stored_bytes for of_one in samples.values() for each in of_one)
    headings = ["command", "seconds"]
    headings += [f"ratio to `{base}`".replace("|", r"\|")] if base else []
    headings += ["processor s", "Python MiB", "all MiB"]
    headings += ["stored MiB"] if is_stored else []
    said = sorted({key for of_one in samples.values() for each in of_one for key in each.said})
    headings += [key.replace("_", " ") for key in said]
    rows = [f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
    for name, of_one in samples.items():
        seconds = [each.seconds for each in of_one]
        cells = [f"`{name}`".replace("|", r"\|"), spread(seconds).text()]
        if base:
            cells.append(ratios(seconds, [[each.seconds for each in samples[base]]]).text() if name != base else "1")
        cells.append(f"{median(each.cpu_seconds for each in of_one):.2f}")
        cells += [f"{max(getattr(e, kind) for e in of_one) / MIB:.0f}" for kind in ("python_bytes", "tree_bytes")]
        if is_stored:
            stored = [each.stored_bytes for each in of_one if each.stored_bytes]
            cells.append(f"{median(stored) / MIB:.1f}" if stored else "-")
        for key in said:
            values = [each.said[key] for each in of_one if key in each.said]
            cells.append(spread(values).text(3) if values else "-")
        rows.append(f"| {' | '.join(cells)} |")
    if BACKUP in samples and plain_bytes:
        stored = [each.stored_bytes for each in samples[BACKUP] if each.stored_bytes]
        rows += ["", f"`{BACKUP}` stores the plain dump in {100 * median(stored) / plain_bytes:.1f} % of its size."]
    return rows


def dumped(all_results: Sequence[Results]) -> str:
    """bench/results.json: every sample, so that nothing has to be believed."""
    document = [asdict(each) for each in all_results]
    return json.dumps(document, indent=1, ensure_ascii=False, default=list) + "\n"


def parsed(text: str) -> list[Results]:
    return [_results(each) for each in json.loads(text)]


def _results(values: dict[str, Any]) -> Results:
    parts = [
        Part(part["title"], {name: [Sample(**each) for each in of_one] for name, of_one in part["samples"].items()})
        for part in values.pop("parts")
    ]
    return Results(**values, parts=parts)


def merged(before: Sequence[Results], new: Results) -> list[Results]:
    """A data set that was measured again takes the place of its earlier results, part by part."""
    known = {each.data: each for each in before}
    if new.data in known:
        measured = {part.title for part in new.parts}
        kept = [part for part in known[new.data].parts if part.title not in measured]
        order = [part.title for part in known[new.data].parts]
        parts = sorted((*kept, *new.parts), key=lambda part: order.index(part.title) if part.title in order else 99)
        new = Results(**{**vars(new), "parts": parts})
    known[new.data] = new
    return list(known.values())
