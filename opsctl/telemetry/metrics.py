"""What Prometheus is told: every metric, how it is written, and where to. From what is known, never by looking.

Times are exported, not ages: they stay true while nothing runs. Series of what is configured exist from the beginning,
at 0, so that an alert about a missing backup has something to see.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

from opsctl import __version__
from opsctl.background import in_background
from opsctl.manifest import EVIDENCE_LEVELS
from opsctl.sightings import Seen, Sighting

CHECK_STATES = {"ok": 0, "skip": 0, "warn": 1, "crit": 2, "unknown": 3}
RUN_STATES = {"done": 0, "attention": 1, "failed": 2, "lost": 3, "refused": 4, "interrupted": 5}
PAIR = ("database", "repository")
RUN = ("command", "database")


@dataclass(frozen=True)
class Metric:
    """One name with its help and its labels. A counter's name ends in ``_total``."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    type: Literal["gauge", "counter"] = "gauge"


METRICS = (
    Metric("opsctl_build_info", "Always 1; the version of opsctl that wrote these metrics.", ("version",)),
    Metric(
        "opsctl_metrics_written_timestamp_seconds",
        "When these metrics were written by a run; those of the status page, when they were asked for.",
    ),
    Metric(
        "opsctl_backup_last_success_timestamp_seconds",
        "When the newest good backup was begun: the moment its data is of. 0 when none is known.",
        PAIR,
    ),
    Metric(
        "opsctl_backup_last_attempt_timestamp_seconds",
        "When a backup was last begun on this host, whatever came of it. 0 when there was none.",
        PAIR,
    ),
    Metric("opsctl_backup_last_duration_seconds", "How long the newest good backup took.", PAIR),
    Metric("opsctl_backup_last_size_bytes", "What pg_dump wrote for the newest good backup.", PAIR),
    Metric(
        "opsctl_backup_last_stored_bytes", "What the newest good backup takes, compressed and with its roles.", PAIR
    ),
    Metric(
        "opsctl_backup_interval_seconds",
        "How far apart two backups should be: by [schedule], else as they lately were, else a day.",
        PAIR,
    ),
    Metric("opsctl_backups", "Backups there are.", PAIR),
    Metric("opsctl_backups_stored_bytes", "What all backups together take.", PAIR),
    Metric("opsctl_backups_damaged", "Backups that failed a verification.", PAIR),
    Metric("opsctl_backups_future", "Backups dated after this host's clock.", PAIR),
    Metric("opsctl_backup_oldest_timestamp_seconds", "When the oldest good backup was begun.", PAIR),
    Metric(
        "opsctl_backup_evidence_level",
        "What is proven of the newest good backup: 0 nothing, 1 stored, 2 decoded, 3 restored, 4 counted, 5 content.",
        PAIR,
    ),
    Metric(
        "opsctl_backup_evidence_timestamp_seconds",
        "When a backup was last proven at this level or better. 0 when none was.",
        (*PAIR, "level"),
    ),
    Metric(
        "opsctl_backup_proven_timestamp_seconds",
        "When the newest backup proven at this level or better was begun. 0 when there is none.",
        (*PAIR, "level"),
    ),
    Metric(
        "opsctl_restore_drill_last_success_timestamp_seconds",
        "When a backup was last restored into a throwaway server and was found to be right. 0 when none was.",
        ("database",),
    ),
    Metric("opsctl_restore_drill_last_duration_seconds", "How long that restore took.", ("database",)),
    Metric("opsctl_repository_up", "1 if the repository answered when a run last asked it, else 0.", ("repository",)),
    Metric(
        "opsctl_repository_last_seen_timestamp_seconds",
        "When the repository last answered; what is told of its backups is of then. 0 when it never did.",
        ("repository",),
    ),
    Metric(
        "opsctl_repository_incomplete",
        "Folders that are no backup: interrupted, being written or with a damaged manifest.",
        ("repository",),
    ),
    Metric("opsctl_pruned_backups_total", "Backups removed by this host.", ("repository",), "counter"),
    Metric("opsctl_copied_backups_total", "Backups copied there by this host.", ("repository",), "counter"),
    Metric("opsctl_runs_total", "Runs of this host that ended, by outcome.", (*RUN, "outcome"), "counter"),
    Metric(
        "opsctl_run_last_timestamp_seconds",
        "When the last run of a command ended, whatever came of it; of one that was killed, when it began.",
        RUN,
    ),
    Metric("opsctl_run_last_success_timestamp_seconds", "When a run of a command last ended well.", RUN),
    Metric("opsctl_run_last_duration_seconds", "How long the last run took.", RUN),
    Metric(
        "opsctl_run_last_state",
        "What came of the last run: 0 done, 1 needs attention, 2 failed, 3 lost (killed), 4 refused, 5 interrupted.",
        RUN,
    ),
    Metric(
        "opsctl_schedule_interval_seconds",
        "How far apart two runs should be by [schedule]: backup, drill, doctor, sync, prune.",
        ("schedule",),
    ),
    Metric("opsctl_check_state", "0 ok or skipped, 1 warn, 2 crit, 3 unknown.", ("check", "target")),
    Metric("opsctl_check_value", "What the check measured, in its own unit.", ("check", "target", "unit")),
    Metric("opsctl_doctor_state", "The worst state of all checks: 0 ok, 1 warn, 2 crit, 3 unknown."),
    Metric("opsctl_doctor_last_run_timestamp_seconds", "When the checks were made."),
)
"""All there is. docs/metrics.md, the alert rules and the dashboard are held to it by tests."""


@dataclass(frozen=True)
class CheckFacts:
    """What one check came to at one target."""

    check: str
    target: str
    status: str
    value: float | None = None
    unit: str | None = None


@dataclass(frozen=True)
class DoctorFacts:
    """The last run of the checks: when, what it came to, and each of them."""

    at: datetime
    status: str
    checks: Sequence[CheckFacts]


@dataclass(frozen=True)
class RunFacts:
    """The last run of a command that ended; of one that was killed nobody knows when."""

    started_at: datetime
    finished_at: datetime | None
    outcome: str


@dataclass(frozen=True)
class Known:
    """What metrics are made of. A database of ``""`` is that of a command that has none."""

    now: datetime
    homes: Mapping[str, Sequence[str]]
    """The repositories that each database's backups belong in."""
    seen: Seen
    intervals: Mapping[str, float] = field(default_factory=dict)
    """Seconds by schedule: ``backup``, ``drill`` and so on."""
    runs: Mapping[tuple[str, str], RunFacts] = field(default_factory=dict)
    successes: Mapping[tuple[str, str], datetime] = field(default_factory=dict)
    totals: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    doctor: DoctorFacts | None = None


Redact = Callable[[str], str]
DAY_SECONDS = 86400.0


def render(known: Known, *, redact: Redact) -> bytes:
    """Prometheus's text format, version 0.0.4. ``redact`` is applied to every label's value."""
    return _exposition(_samples(known, redact))


def render_doctor(doctor: DoctorFacts) -> bytes:
    """The same of the checks alone, which are redacted already."""
    samples = Samples(str)
    _add_doctor(samples, doctor)
    return _exposition(samples)


def as_document(known: Known, *, redact: Redact) -> list[dict[str, Any]]:
    """The same for programs: a name, type and help each, and the samples with their labels."""
    samples = _samples(known, redact)
    return [
        {
            "name": metric.name,
            "type": metric.type,
            "help": metric.help,
            "samples": [
                {"labels": dict(zip(metric.labels, labels, strict=True)), "value": value} for labels, value in found
            ],
        }
        for metric, found in samples.by_metric()
    ]


class Samples:
    """Values by metric and labels. No two have the same labels, whatever the redactor made of them."""

    def __init__(self, redact: Redact) -> None:
        self._redact = redact
        self._values: dict[str, dict[tuple[str, ...], float]] = {}

    def add(self, name: str, value: float | datetime | None, *labels: str) -> None:
        """``None`` is no sample; a time is its seconds since 1970."""
        if value is None:
            return
        number = round(value.timestamp(), 3) if isinstance(value, datetime) else float(value)
        # A name of an SQL_ASCII server may be no text; redacted one by one, for a secret of digits would cut numbers.
        texts = tuple(self._redact(label).encode("utf-8", "replace").decode() for label in labels)
        self._values.setdefault(name, {}).setdefault(texts, number)

    def by_metric(self) -> Iterator[tuple[Metric, list[tuple[tuple[str, ...], float]]]]:
        """Those that have any, in the order of METRICS."""
        for metric in METRICS:
            if metric.name in self._values:
                yield metric, list(self._values[metric.name].items())


def write_textfile(path: Path, data: bytes) -> None:
    """For node_exporter's textfile collector: whole or not at all, and readable for it. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # it reads *.prom only
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def push(known: Known, url: str, *, host: str, redact: Redact, timeout_seconds: float) -> None:
    """Replace what the Pushgateway has of this host (job ``opsctl``, instance ``host``).

    ``url`` may hold a user and a password. Raises OSError, TimeoutError among them, in the time given whatever hangs.
    """
    pushing = in_background(_push, _registry(_samples(known, redact)), url, host, timeout_seconds)
    pushing.result(timeout=timeout_seconds)


def _push(registry: Any, url: str, host: str, timeout_seconds: float) -> None:
    from prometheus_client.exposition import basic_auth_handler, default_handler, push_to_gateway

    parts = urlsplit(url)
    handler: Callable[..., Any] = default_handler
    if parts.username is not None:
        handler = partial(basic_auth_handler, username=unquote(parts.username), password=unquote(parts.password or ""))
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        push_to_gateway(
            address,
            "opsctl",
            registry,
            grouping_key={"instance": host},
            timeout=timeout_seconds,
            handler=handler,
        )
    except HTTPError as error:
        with error:  # it holds the connection
            raise OSError(f"it answered {error.code} {error.reason}") from None
    except HTTPException as error:
        raise OSError(f"this is no HTTP server: {type(error).__name__}") from error


def _exposition(samples: Samples) -> bytes:
    from prometheus_client import generate_latest

    return generate_latest(_registry(samples))


def _registry(samples: Samples) -> Any:
    """The samples as the library's own, and nothing of this process."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    families = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}

    class Collector:
        def collect(self) -> Iterator[Any]:
            for metric, found in samples.by_metric():
                family = families[metric.type](metric.name, metric.help, labels=metric.labels)
                for labels, value in found:
                    family.add_metric(labels, value)
                yield family

    registry = CollectorRegistry()
    registry.register(Collector())
    return registry


def _samples(known: Known, redact: Redact) -> Samples:
    samples = Samples(redact)
    samples.add("opsctl_build_info", 1, __version__)
    samples.add("opsctl_metrics_written_timestamp_seconds", known.now)
    for database, repositories in known.homes.items():
        for repository in repositories:
            _add_pair(samples, known, database, repository)
        drill = known.seen.drills.get(database)
        samples.add("opsctl_restore_drill_last_success_timestamp_seconds", drill.at if drill else 0, database)
        samples.add("opsctl_restore_drill_last_duration_seconds", drill.restore_seconds if drill else None, database)
    for repository in dict.fromkeys(each for repositories in known.homes.values() for each in repositories):
        _add_repository(samples, known.seen, repository)
    _add_runs(samples, known)
    for schedule, seconds in known.intervals.items():
        samples.add("opsctl_schedule_interval_seconds", seconds, schedule)
    if known.doctor is not None:
        _add_doctor(samples, known.doctor)
    return samples


def _add_pair(samples: Samples, known: Known, database: str, repository: str) -> None:
    pair = database, repository
    seen = known.seen.sightings.get((repository, database)) or Sighting(repository, database, 0, 0)
    attempt = known.runs.get(("backup", database))
    newest = seen.newest
    interval = known.intervals.get("backup") or seen.interval_seconds or DAY_SECONDS
    samples.add("opsctl_backup_last_success_timestamp_seconds", newest.at if newest else 0, *pair)
    samples.add("opsctl_backup_last_attempt_timestamp_seconds", attempt.started_at if attempt else 0, *pair)
    samples.add("opsctl_backup_interval_seconds", interval, *pair)
    samples.add("opsctl_backups", seen.backups, *pair)
    samples.add("opsctl_backups_stored_bytes", seen.stored_bytes, *pair)
    samples.add("opsctl_backups_damaged", seen.damaged, *pair)
    samples.add("opsctl_backups_future", seen.future, *pair)
    samples.add("opsctl_backup_oldest_timestamp_seconds", seen.oldest_at, *pair)
    if newest is not None:
        level = EVIDENCE_LEVELS.index(newest.level) + 1 if newest.level in EVIDENCE_LEVELS else 0
        samples.add("opsctl_backup_last_duration_seconds", newest.duration_seconds, *pair)
        samples.add("opsctl_backup_last_size_bytes", newest.bytes, *pair)
        samples.add("opsctl_backup_last_stored_bytes", newest.stored_bytes, *pair)
        samples.add("opsctl_backup_evidence_level", level, *pair)
    for each in EVIDENCE_LEVELS:
        proof = seen.proofs.get(each)
        samples.add("opsctl_backup_evidence_timestamp_seconds", proof.proven_at if proof else 0, *pair, each)
        samples.add("opsctl_backup_proven_timestamp_seconds", proof.backup_at if proof else 0, *pair, each)


def _add_repository(samples: Samples, seen: Seen, repository: str) -> None:
    place = seen.places.get(repository)
    samples.add("opsctl_repository_up", int(place.answered) if place else None, repository)
    at = place.answered_at if place else None
    samples.add("opsctl_repository_last_seen_timestamp_seconds", at or 0, repository)
    samples.add("opsctl_repository_incomplete", place.incomplete if place else 0, repository)
    samples.add("opsctl_pruned_backups_total", place.pruned if place else 0, repository)
    samples.add("opsctl_copied_backups_total", place.copied if place else 0, repository)


def _add_runs(samples: Samples, known: Known) -> None:
    """Of the databases that are configured, and of commands that have none: others would never go away."""
    told = {*known.homes, ""}
    for database in known.homes:  # from 0 on, or the first failure is no increase
        for outcome in ("done", "attention", "failed", "lost"):
            samples.add(
                "opsctl_runs_total", known.totals.get(("backup", database, outcome), 0), "backup", database, outcome
            )
    for (command, database, outcome), count in known.totals.items():
        if database in told:
            samples.add("opsctl_runs_total", count, command, database, outcome)
    for (command, database), run in known.runs.items():
        if database in told:
            key = command, database
            samples.add("opsctl_run_last_timestamp_seconds", run.finished_at or run.started_at, *key)
            if run.finished_at is not None:
                seconds = (run.finished_at - run.started_at).total_seconds()
                samples.add("opsctl_run_last_duration_seconds", seconds, *key)
            samples.add("opsctl_run_last_state", RUN_STATES.get(run.outcome), *key)
    for (command, database), at in known.successes.items():
        if database in told:
            samples.add("opsctl_run_last_success_timestamp_seconds", at, command, database)


def _add_doctor(samples: Samples, doctor: DoctorFacts) -> None:
    for each in doctor.checks:
        samples.add("opsctl_check_state", CHECK_STATES.get(each.status), each.check, each.target)
        samples.add("opsctl_check_value", each.value, each.check, each.target, each.unit or "")
    samples.add("opsctl_doctor_state", CHECK_STATES.get(doctor.status))
    samples.add("opsctl_doctor_last_run_timestamp_seconds", doctor.at)
