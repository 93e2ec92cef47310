"""The program, as a process: ``run_opsctl``."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from forked import Forks
from isolation import assert_empty

import opsctl

SOURCE = Path(opsctl.__file__).parents[1]

INTERPRETERS = ("PYTHON", "LANG", "LC_", "LD_")
"""Prefixes of variables that an interpreter reads when it starts: such a run is a process of its own."""


@dataclass(frozen=True)
class Run:
    """One finished run of the program."""

    arguments: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @cached_property
    def json(self) -> Any:
        """The one document on stdout."""
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            pytest.fail(f"stdout is not one JSON document ({error}): {self}")


@dataclass
class Opsctl:
    """The program as a subprocess: it runs in ``work``, keeps its state in ``state`` and leaves ``home`` alone."""

    folder: Path
    source_variables: Mapping[str, str]
    forks: Forks | None = None
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def __call__(
        self,
        *arguments: str | Path,
        url: str | None = None,
        env: Mapping[str, str | None] | None = None,
        input: str | None = None,  # noqa: A002  # as in subprocess.run
        timeout: float = 120,
        **options: Any,
    ) -> Run:
        """Run to the end. ``url`` is DATABASE_URL, ``env`` adds variables (None removes one)."""
        environment = self.environment(url=url, env=env)
        if self.forks is not None and not options and not any(name.startswith(INTERPRETERS) for name in env or ()):
            words = [str(argument) for argument in arguments]
            ended = self.forks.run(words, cwd=self.work, env=environment, given=input, timeout=timeout)
            return Run(tuple(words), *ended)
        process = self.start(
            *arguments, url=url, env=env, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE, **options
        )
        stdout, stderr = process.communicate(input, timeout=timeout)
        return Run(tuple(str(argument) for argument in arguments), process.returncode, stdout, stderr)

    def start(
        self,
        *arguments: str | Path,
        url: str | None = None,
        env: Mapping[str, str | None] | None = None,
        **options: Any,
    ) -> "subprocess.Popen[str]":
        """Begin a run, to be sent signals; it is killed at the end of the test if it still runs then."""
        process = subprocess.Popen(
            [sys.executable, "-m", "opsctl", *arguments],
            **{
                "cwd": self.work,
                "env": self.environment(url=url, env=env),
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "encoding": "utf-8",
                "errors": "surrogateescape",
                **options,
            },
        )
        self.processes.append(process)
        return process

    def environment(self, *, url: str | None = None, env: Mapping[str, str | None] | None = None) -> dict[str, str]:
        variables: dict[str, str | None] = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "OPSCTL_STATE_DIR": str(self.state),
            "LANG": "C.UTF-8",
            "COLUMNS": "100",
            "DATABASE_URL": url,
            **self.source_variables,
            **(env or {}),
        }
        return {name: value for name, value in variables.items() if value is not None}


@pytest.fixture(scope="session")
def _source_variables(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """PYTHONPATH, where the program would otherwise not be the one that the tests import."""
    installed = subprocess.run(
        [sys.executable, "-c", "import opsctl; print(opsctl.__file__)"],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    is_same = installed.stdout.strip() == opsctl.__file__
    return {} if is_same else {"PYTHONPATH": str(SOURCE)}


@pytest.fixture(scope="session")
def _forks(_source_variables: Mapping[str, str]) -> Iterator[Forks]:
    """Where runs of the program come from that only have to run to their end, see forked.py."""
    forks = Forks({"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(SOURCE)})
    yield forks
    forks.end()


@pytest.fixture
def run_opsctl(tmp_path: Path, _source_variables: Mapping[str, str], _forks: Forks) -> Iterator[Callable[..., Run]]:
    """``run_opsctl("backup", "--json", url=saas.url).json``; ``run_opsctl.start(…)`` for a run to be interrupted."""
    program = Opsctl(tmp_path, _source_variables, _forks)
    program.work.mkdir()
    program.home.mkdir()
    yield program
    for process in program.processes:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()
    assert_empty(program.home)
