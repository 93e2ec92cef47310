"""What surrounds the program: the same is checked on commit, by make and by CI."""

import re
from pathlib import Path

import yaml  # noqa: TID253  # a test may load what it likes

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
