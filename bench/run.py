"""Measure `opsctl backup` against pg_dump alone: `make bench`, or `python bench/run.py --gib 1 --rounds 5`.

A throwaway server is filled with text, jsonb, uuids and numbers; then every round runs each command once, so that a
busy moment of the machine falls on all of them. Nothing is asserted: times depend on the machine. Everything that was
made is removed at the end.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from opsctl.postgres.binaries import Binaries, choose_server, find_binaries
from opsctl.postgres.cluster import Cluster, throwaway_cluster
from opsctl.postgres.server import Server, one

GIB = 1 << 30
LARGEST_GIB = 50
ROWS_A_BATCH = 50_000
TIMEOUT_SECONDS = 3600

WORDS = """account add after again amount answer before bot build call cancel card chat check client close company
confirm create customer date delivery discount email error event export file first group help hour import invoice item
language last later link list login message minute month new next number offer open order page password pay payment
phone plan please price product question ready receipt refund remind reply report request restart save search send
server service settings shop show sign start status stop subject support team thank time today tomorrow total update
user version wait week welcome window write year"""

SCHEMA = """
create table {table} (
    id bigint generated always as identity primary key,
    external_id uuid not null,
    company_id int not null,
    kind text not null,
    body text not null,
    amount numeric(12, 2) not null,
    payload jsonb not null,
    occurred_at timestamptz not null
);
create index on {table} (company_id, occurred_at);
"""

BATCH = """
insert into {table} (external_id, company_id, kind, body, amount, payload, occurred_at)
select
    gen_random_uuid(), 1 + (random() * 4000)::int, w[1 + (random() * 4)::int],
    array_to_string(array(
        select w[1 + floor(random() * cardinality(w))::int] from generate_series(1, 12 + n %% 40)), ' '),
    round((random() * 100000)::numeric, 2),
    jsonb_build_object('session', md5(random()::text), 'page', w[1 + floor(random() * cardinality(w))::int],
                       'milliseconds', (random() * 900)::int, 'ok', random() < 0.97),
    timestamptz '2026-01-01' + random() * interval '300 days'
from generate_series(1, %s) n, (select string_to_array(%s, ' ') as w) words
"""


@dataclass
class Contender:
    """One way to take a dump; ``output`` is what it leaves, if anything."""

    name: str
    command: list[str]
    output: Path | None
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    stored_bytes: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gib", type=float, default=0.25, help="size of the database (default: 0.25)")
    parser.add_argument("--tables", type=int, default=4, help="tables the rows are spread over (default: 4)")
    parser.add_argument("--jobs", type=int, default=2, help="sessions of the backup with several (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each command runs (default: 3)")
    parser.add_argument("--only", default="", help="only the commands whose name has this text in it")
    parser.add_argument("--folder", type=Path, help="where server and dumps live (default: where temporary files go)")
    options = parser.parse_args()
    if not 0 < options.gib <= LARGEST_GIB or not 0 < options.rounds <= 100 or not 0 < options.tables <= 1000:
        parser.error(f"--gib must be between 0 and {LARGEST_GIB}, --rounds between 1 and 100, --tables up to 1000")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the contexts below: nothing is left
    binaries = choose_server(find_binaries("initdb", search_path=os.get_exec_path()), 15)
    if binaries is None or not binaries.has("pg_dump"):
        sys.exit("The benchmark needs PostgreSQL's programs: `make setup` brings them.")
    with tempfile.TemporaryDirectory(prefix="opsctl-bench-", dir=options.folder) as name:
        _require_room(Path(name), options.gib)
        with throwaway_cluster(binaries, folder=options.folder) as cluster:
            size = _fill(cluster, int(options.gib * GIB), options.tables)
            contenders = _contenders(cluster, binaries, Path(name), options.jobs)
            contenders = [each for each in contenders if options.only in each.name]
            plain_bytes = _plain_bytes(cluster, binaries)
            _say(f"PostgreSQL {binaries.version}, {size / GIB:.2f} GiB, {os.cpu_count()} processors")
            environment = {**os.environ, "OPSCTL_STATE_DIR": f"{name}/state", "DATABASE_URL": cluster.url("bench")}
            for number in range(1, options.rounds + 1):
                _say(f"round {number} of {options.rounds}")
                for contender in contenders:
                    _measure(contender, environment, Path(name))
    _print_table(contenders, plain_bytes)


def _require_room(folder: Path, gib: float) -> None:
    """Table, index, WAL and the largest dump together stay below four times the size."""
    free = shutil.disk_usage(folder).free
    if free < 4 * gib * GIB:
        sys.exit(f"{folder} has {free / GIB:.1f} GiB free; {gib} GiB need about {4 * gib:.1f}. Name another --folder.")


def _fill(cluster: Cluster, wanted: int, tables: int) -> int:
    _say(f"filling {wanted / GIB:.2f} GiB")
    with Server(cluster.url()).connect() as connection:
        connection.execute("create database bench")
    with Server(cluster.url("bench")).connect() as connection:
        connection.execute("set search_path = public, pg_catalog")
        names = [f"events_{number}" for number in range(tables)]
        for name in names:
            connection.execute(SCHEMA.format(table=name))
        size = 0
        for name in cycle(names):
            if size >= wanted:
                break
            connection.execute(BATCH.format(table=name), (ROWS_A_BATCH, " ".join(WORDS.split())))
            size = int(one(connection, "select pg_database_size(current_database())")[0])
        connection.execute("vacuum analyze")
        return size


def _contenders(cluster: Cluster, binaries: Binaries, folder: Path, jobs: int) -> list[Contender]:
    dump = [str(binaries.path("pg_dump")), "--dbname", cluster.url("bench")]
    repository, custom, gzipped = folder / "backups", folder / "custom.dump", folder / "plain.sql.gz"
    backup = [sys.executable, "-m", "opsctl", "backup", "--quiet"]
    config = folder / "several.toml"
    config.write_text(
        f'[databases.bench]\nurl_env = "DATABASE_URL"\njobs = {jobs}\n[repositories.several]\nurl = "several"\n'
    )
    return [
        Contender("opsctl backup", backup, repository),
        Contender(f"opsctl backup, jobs = {jobs}", [*backup, "--config", str(config)], folder / "several"),
        Contender("pg_dump -Fc", [*dump, "-Fc", "--file", str(custom)], custom),
        Contender("pg_dump -Fc -Z0 > /dev/null", ["bash", "-c", '"$@" > /dev/null', "-", *dump, "-Fc", "-Z0"], None),
        Contender("pg_dump | gzip", ["bash", "-c", '"$@" | gzip > "$0"', str(gzipped), *dump], gzipped),
    ]


def _plain_bytes(cluster: Cluster, binaries: Binaries) -> int:
    """What every ratio is measured against: the same dump, uncompressed."""
    command = [str(binaries.path("pg_dump")), "--dbname", cluster.url("bench"), "-Fc", "-Z0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        output = process.stdout
        return sum(len(chunk) for chunk in iter(lambda: output.read(1 << 20), b"")) if output else 0


def _measure(contender: Contender, environment: Mapping[str, str], folder: Path) -> None:
    with _removed_afterwards(contender.output):
        started = time.perf_counter()
        process = subprocess.Popen(contender.command, env=environment, cwd=folder)
        watchdog = signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(TIMEOUT_SECONDS)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, watchdog)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"{contender.name} ended with exit code {process.returncode}")
        contender.seconds.append(time.perf_counter() - started)
        contender.cpu_seconds.append(usage.ru_utime + usage.ru_stime)
        # Of the command and the children it waited for, the largest one.
        contender.peak_bytes = max(contender.peak_bytes, usage.ru_maxrss * 1024)
        contender.stored_bytes = _size(contender.output) if contender.output else None


@contextmanager
def _removed_afterwards(output: Path | None) -> Iterator[None]:
    try:
        yield
    finally:
        if output is not None and output.is_dir():
            shutil.rmtree(output)
        elif output is not None:
            output.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _print_table(contenders: list[Contender], plain_bytes: int) -> None:
    print(f"\n{plain_bytes / GIB:.3f} GiB dumped, median of {len(contenders[0].seconds)}:\n")
    print("| command | seconds | its own processor seconds | ratio | largest process |")
    print("|---|---:|---:|---:|---:|")
    for each in contenders:
        ratio = f"{plain_bytes / each.stored_bytes:.1f}" if each.stored_bytes else "-"
        peak = f"{each.peak_bytes / (1 << 20):.0f} MiB"
        name = each.name.replace("|", r"\|")
        seconds, cpu = statistics.median(each.seconds), statistics.median(each.cpu_seconds)
        print(f"| `{name}` | {seconds:.1f} | {cpu:.1f} | {ratio} | {peak} |")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
