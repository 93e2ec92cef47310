"""`opsctl drill`: what it proves, what it refuses to judge, and that nothing of it stays behind."""

import pytest

pytestmark = pytest.mark.end_to_end


def test_pass(run_opsctl, saas, back_up):
    id = back_up(saas, "content")
    run = run_opsctl("drill", "--json")
    print(run)
    assert run.returncode == 0
    assert 0


def test_rich(run_opsctl, rich, back_up):
    id = back_up(rich, "content")
    run = run_opsctl("drill", "--json")
    print(run)
    assert 0
