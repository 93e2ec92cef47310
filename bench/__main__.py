"""Measure opsctl and its peers beside it: `make bench`, `make bench-quick`.

Every round runs each command once, so that a busy moment of the machine falls on all of them. Nothing is asserted:
times depend on the machine. Everything that was made is removed at the end, also of a run that is interrupted; only
--keep has the databases stay for the next run.
"""

import argparse
import compileall
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bench import contenders, report
from bench.contenders import Workplace
from bench.data import ROOT, DataSet, events, tenants
from bench.measure import CommandFailed, Contender, Sample, environment_for, measure
from bench.report import Part, Results
from bench.servers import choose_binaries, filled_server, s3_service
from opsctl.postgres.binaries import Binaries

PARTS = ("backup", "restore", "list", "start")
MOST_GIB = 50
QUICK = {"sizes": "0.02", "tables": 0, "rounds": 1, "backups": 300, "page": False}
"""What `make bench-quick` measures, in less than a minute: whether all of it runs, and roughly how fast."""


def main() -> None:
    options = _options()
    if options.write:
        _write(report.parsed(report.RESULTS.read_text()))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the contexts below: nothing is left
    binaries = choose_binaries()
    compileall.compile_dir(ROOT / "opsctl", quiet=2)  # as pip does when it installs
    data_sets = [events(float(size)) for size in options.sizes.split(",") if size]
    data_sets += [tenants(options.tables)] if options.tables else []
    before = report.parsed(report.RESULTS.read_text()) if options.page and report.RESULTS.exists() else []
    for number, data in enumerate(data_sets):
        found = None
        for found in _measured(data, options, binaries, is_first=number == 0):
            if options.page:  # after each part: an interruption then costs no more than one
                before = report.merged(before, found)
                _write(before)
        if found is not None and not options.page:
            print(report.page([found], ""))


def _write(results: Sequence[Results]) -> None:
    report.RESULTS.write_text(report.dumped(results))
    report.PAGE.write_text(report.page(results, report.NOTES.read_text()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="1,0.1,5", help="sizes of databases in GiB (default: 1,0.1,5)")
    parser.add_argument("--tables", type=int, default=5_000, help="one of so many small tables, too (default: 5000)")
    parser.add_argument("--backups", type=int, default=10_000, help="backups in the repository that is listed")
    parser.add_argument("--rounds", type=int, default=3, help="how often each command runs (default: 3)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="sessions of what can have several")
    parser.add_argument("--parts", default=",".join(PARTS), help="what is measured (default: all: %(default)s)")
    parser.add_argument("--only", default="", help="only the commands in whose name this regular expression is found")
    parser.add_argument("--folder", type=Path, help="where servers and dumps live (default: where temporary files go)")
    parser.add_argument("--keep", type=Path, help="keep the databases in this folder, and use those that are there")
    parser.add_argument("--fill", action="store_true", help="only make the databases that --keep keeps")
    parser.add_argument("--print", dest="page", action="store_false", help="print, and leave docs/benchmarks.md alone")
    parser.add_argument("--write", action="store_true", help="measure nothing; write the page anew")
    parser.add_argument("--quick", action="store_true", help="everything once, small, in under a minute")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args()
    sizes = [float(size) for size in options.sizes.split(",") if size]
    if not all(0 < size <= MOST_GIB for size in sizes) or not 0 < options.rounds <= 100:
        parser.error(f"sizes are between 0 and {MOST_GIB} GiB, rounds between 1 and 100")
    return options


def _measured(data: DataSet, options: argparse.Namespace, binaries: Binaries, *, is_first: bool) -> Iterator[Results]:
    """Everything with one data set, told after each part; what needs no data is measured with the first one."""
    folder = options.keep or options.folder
    with tempfile.TemporaryDirectory(prefix="opsctl-bench-", dir=folder) as name, s3_service(Path(name)) as s3:
        home = Path(name)
        home.chmod(0o711)  # the server's account passes through
        _require_room(home, data.needed_bytes)
        environment = environment_for(home, binaries.folder)
        _say(f"{data.name}: PostgreSQL {binaries.version}, {os.cpu_count()} processors")
        with filled_server(binaries, data, home, options.keep) as cluster:
            results = Results(
                data=data.name,
                machine=_machine(),
                server=binaries.version,
                day=f"{datetime.now(UTC):%Y-%m-%d}",
                jobs=options.jobs,
                backups=options.backups,
                database_bytes=data.size(cluster),
            )
            if options.fill:
                return
            place = Workplace(home, cluster, binaries, options.jobs, s3)
            runs = _Rounds(options, environment, home)
            if "tables" in data.name:
                runs.part("backup", contenders.many_tables(place))
                yield runs.added_to(results)
                return
            results = replace(results, plain_bytes=_plain_bytes(place))
            runs.part("backup", contenders.backups(place))
            yield runs.added_to(results)
            if "restore" in options.parts:
                for command in contenders.kept_backup(place):
                    measure(Contender("kept", command), environment, home)
                runs.part("restore", contenders.restores(place))
                yield runs.added_to(results)
            if is_first:
                runs.part("list", contenders.lists(home, s3, options.backups) if "list" in options.parts else ())
                runs.part("start", contenders.starts(home), rounds=3 * options.rounds)
                yield runs.added_to(results)


class _Rounds:
    """Parts, measured one after the other; the contenders of a part take turns."""

    def __init__(self, options: argparse.Namespace, environment: dict[str, str], folder: Path) -> None:
        self._options = options
        self._environment = environment
        self._folder = folder
        self._parts: list[Part] = []
        self._missing: list[str] = []

    def part(self, title: str, several: Iterable[Contender], *, rounds: int | None = None) -> None:
        if title not in self._options.parts:
            return
        wanted = [each for each in several if re.search(self._options.only, each.name) and self._is_there(each)]
        samples: dict[str, list[Sample]] = {each.name: [] for each in wanted}
        for number in range(rounds or self._options.rounds):
            began = time.monotonic()
            # What one leaves behind for the next, in caches and on the disk, is another one's in each round.
            for contender in random.Random(number).sample(wanted, len(wanted)):  # noqa: S311
                self._run(contender, samples)
            _say(f"{title}, round {number + 1}: {time.monotonic() - began:.0f} s")
        self._parts.append(Part(title, samples))

    def _run(self, contender: Contender, samples: dict[str, list[Sample]]) -> None:
        if contender.name not in samples:
            return
        try:
            samples[contender.name].append(measure(contender, self._environment, self._folder))
        except CommandFailed as error:
            del samples[contender.name]
            self._missing.append(contender.name)
            _say(f"left out: {contender.name}: {error}")

    def _is_there(self, contender: Contender) -> bool:
        if contender.needs is None or shutil.which(contender.needs, path=self._environment["PATH"]):
            return True
        _say(f"left out: {contender.name}: {contender.needs} is not installed")
        self._missing.append(contender.name)
        return False

    def added_to(self, results: Results) -> Results:
        return replace(results, parts=tuple(self._parts), missing=tuple(self._missing))


def _plain_bytes(place: Workplace) -> int:
    command = [place.program("pg_dump"), "--dbname", place.url, "-Fc", "-Z0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        output = process.stdout
        return sum(len(chunk) for chunk in iter(lambda: output.read(1 << 20), b"")) if output else 0


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(f"{folder} has {free >> 20} MiB free, and {needed >> 20} are needed. Name another --folder.")


def _machine() -> str:
    model = "processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return f"{os.cpu_count()} processors ({model}), {memory:.0f} GiB of memory, Python {sys.version.split()[0]}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
