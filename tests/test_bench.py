"""The benchmark's own arithmetic. What it measures is asserted nowhere: times depend on the machine."""

from bench import report
from bench.measure import Sample
from bench.report import Part, Results, differences, judge, merged, page, parsed, ratios
from bench.targets import BACKUP, LIMIT, MIB, Target


def sample(seconds, *, python_mib=50, stored_bytes=None):
    return Sample(seconds, seconds / 2, python_mib * MIB, 60 * MIB, stored_bytes)


def results(*parts, data="1 GiB", missing=()):
    return Results(data, "a machine", "15.18", "2026-11-30", 2, 10_000, 1 << 30, parts, missing)


def test_a_ratio_is_of_two_runs_of_one_round():
    """A busy moment that falls on both changes nothing; of several others the best one of the round counts."""
    found = ratios([2.0, 20.0, 3.0], [[4.0, 40.0, 4.0], [8.0, 30.0, 2.0]])

    assert (found.median, found.least, found.most) == (2 / 3, 0.5, 1.5)
    assert found.text() == "0.67 (0.50 to 1.50)"
    assert ratios([1.0], [[2.0]]).text() == "0.50"


def test_a_difference_is_of_two_runs_of_one_round_too():
    """What comes on top of another command."""
    found = differences([3.0, 5.0, 4.0], [[2.0, 4.5, 3.5]])

    assert (found.median, found.least, found.most) == (0.5, 0.5, 1.0)


def test_a_target_is_judged_by_the_median_as_it_is_shown():
    """1.104 is shown as 1.10, and meets 1.1; the worst memory of all rounds counts; what was not run is not judged."""
    samples = {BACKUP: [sample(1.104, python_mib=90), sample(9, python_mib=130)], LIMIT: [sample(1), sample(9)]}
    wanted = [
        Target("met", BACKUP, 1.1, (LIMIT, "not run")),
        Target("missed", BACKUP, 1.0, (LIMIT,)),
        Target("memory", BACKUP, 120, (), "python_bytes"),
        Target("not run", "opsctl backup, S3", 1, (BACKUP,)),
        Target("nothing to compare with", BACKUP, 1, ("pg_dump | borg",)),
    ]
    assert [(each.target.what, each.is_met) for each in judge(wanted, samples)] == [
        ("met", True),
        ("missed", False),
        ("memory", False),
    ]


def test_results_are_kept_whole_and_measured_again_in_parts():
    """What is written is what was measured; measuring a part again leaves the others, and the other data sets."""
    backup = Part("backup", {BACKUP: [sample(1, stored_bytes=5)]})
    start = Part("start", {"opsctl --help": [sample(0.2)]})
    before = [results(backup, start), results(backup, data="5,000 tables")]
    again = Part("backup", {BACKUP: [sample(2)]})

    assert report.dumped(parsed(report.dumped(before))) == report.dumped(before)
    after = merged(before, results(again, missing=["Barman"]))
    assert [(each.data, [part.title for part in each.parts]) for each in after] == [
        ("1 GiB", ["backup", "start"]),
        ("5,000 tables", ["backup"]),
    ]
    assert after[0].samples[BACKUP] == again.samples[BACKUP]


def test_a_page_shows_each_command_and_what_was_left_out():
    """A row per command with its ratio to the first known base, how often; a pipe in a name does not end a cell."""
    part = Part("backup", {BACKUP: [sample(3)], LIMIT: [sample(2)], "pg_dump | gzip": [sample(8)]})
    text = page([results(part, missing=["pg_dump | borg"])], "Notes.")

    assert "### backup: 1 GiB, 1 round\n" in text
    assert "| `opsctl backup` | 3.00 | 1.50 |" in text
    assert r"| `pg_dump \| gzip` | 8.00 | 4.00 |" in text
    assert r"| backup against `pg_dump \| gzip` | 0.28 | 0.38 | **missed** |" in text
    assert "Not there, or not to be run: pg_dump | borg." in text


def test_the_page_is_made_of_the_results():
    """docs/benchmarks.md says what bench/results.json holds, with bench/notes.md, and nothing else."""
    made = page(parsed(report.RESULTS.read_text()), report.NOTES.read_text())
    assert report.PAGE.read_text() == made, "write it anew: python -m bench --write"
