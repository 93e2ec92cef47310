"""How PostgreSQL's programs are started: with any program that prints."""

import shutil
from pathlib import Path

import pytest

from opsctl.postgres.programs import OUTPUT_BYTES, OUTPUT_LIBRARIES, ThisHost

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def run(arguments, environment=ENVIRONMENT):
    """What a program prints, and in how many pieces."""
    program = ThisHost([], environment).start(arguments)
    try:
        output = b"".join(program.chunks())
        list(program.stderr_lines())
        counts = dict(line.split(": ") for line in Path(f"/proc/{program._process.pid}/io").read_text().splitlines())
        assert program.wait() == 0
    finally:
        program.end()
    return output.decode(), int(counts["syscw"])


@pytest.mark.skipif(not any(map(Path.exists, map(Path, OUTPUT_LIBRARIES))), reason="needs coreutils' libstdbuf.so")
def test_a_program_of_the_system_writes_large_pieces():
    """A dump is not written page by page: a call of the system each, here and there."""
    output, pieces = run([shutil.which("seq", path="/usr/bin"), "1000000"])
    assert len(output) > 20 * OUTPUT_BYTES
    assert pieces <= len(output) / OUTPUT_BYTES + 1


def test_what_the_user_has_loaded_into_programs_stays(tmp_path):
    """Ours comes behind it; and a program from elsewhere, with a C library of its own perhaps, gets nothing of ours."""
    output, _ = run([shutil.which("env", path="/usr/bin")], {"LD_PRELOAD": "none.so"})
    assert "LD_PRELOAD=none.so" in output
    elsewhere = tmp_path / "env"
    shutil.copy(shutil.which("env", path="/usr/bin"), elsewhere)
    output, _ = run([elsewhere], {"FOUND": "yes"})
    assert output == "FOUND=yes\n"
