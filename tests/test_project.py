"""What surrounds the program: the same is checked on commit, by make and by CI."""

import re
from importlib import metadata
from pathlib import Path

import yaml  # noqa: TID253  # a test may load what it likes
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    body = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert body is not None
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in body[1].splitlines()]


def test_a_commit_runs_what_make_lint_runs() -> None:
    """.pre-commit-config.yaml and the Makefile name the same commands, in the same order."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = repository["hooks"]

    assert [hook["entry"] for hook in hooks] == [*recipe("types"), *recipe("lint")]
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)


def test_the_workflow_runs_the_whole_of_ci() -> None:
    """GitHub runs .ci/run for every pull request, and nothing that is not in there."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()

    assert {"push", "pull_request"} == workflow[True].keys()  # YAML takes the key "on" for a boolean
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == ".ci/run"
    assert all(f"make {target}" in (ROOT / ".ci/run").read_text() for target in ("lint", "test", "acceptance"))


def test_every_pinned_version_takes_the_oldest_python() -> None:
    """Debian 12 has Python 3.11.2: a package that wants a later 3.11 would end `make setup` there."""
    pinned = set((ROOT / "constraints.txt").read_text().split())
    there = {f"{each.name}=={each.version}": each.metadata["Requires-Python"] for each in metadata.distributions()}
    wanted = {name: python for name, python in there.items() if name in pinned}

    assert len(wanted) > 50
    assert [name for name, python in wanted.items() if "3.11.0" not in SpecifierSet(python or "")] == []
