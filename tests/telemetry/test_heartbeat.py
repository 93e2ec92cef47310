"""Pings as healthchecks.io and its like want them."""

import pytest

from opsctl.telemetry.delivery import Undelivered, run_uuid
from opsctl.telemetry.heartbeat import MOST_BYTES, Heartbeat, address, ping
from opsctl.telemetry.recent import Recent

RUN = run_uuid("00ff00ff00ff00ff")


def test_begin_and_end_name_the_run(recorder):
    """The service measures how long a run took by its id; the log's end is the body."""
    url = f"http://{recorder.address}/key/nightly?create=1"
    for exit_code in (0, 12):
        heartbeat = Heartbeat(url, run_uuid=RUN)
        heartbeat.started()
        heartbeat.ended(exit_code, f"the log of {exit_code}")
        assert heartbeat.sender.wait(30)
    query = f"?create=1&rid={RUN}"
    assert recorder.paths == [f"/key/nightly{word}{query}" for word in ("/start", "", "/start", "/12")]
    assert [each.body for each in recorder.received] == [b"", b"the log of 0", b"", b"the log of 12"]


def test_a_trailing_slash_is_no_part_of_the_key():
    assert address("https://hc.example/uuid/", "start", run_uuid=RUN) == f"https://hc.example/uuid/start?rid={RUN}"


@pytest.mark.parametrize(
    ("answers", "asked", "arrives"),
    [([200], 1, True), ([500, 503, 200], 3, True), ([500, 500, 500], 3, False), ([404], 1, False), ([302], 1, False)],
)
def test_trouble_of_the_service_is_tried_again(recorder, answers, asked, arrives):
    """Three attempts; a wrong address is not tried again, and a redirect not followed."""
    recorder.statuses, recorder.location = answers, f"http://{recorder.address}/elsewhere"
    url = f"http://{recorder.address}/key"
    if arrives:
        ping(url)
    else:
        with pytest.raises(Undelivered, match=f"it answered {answers[-1]}"):
            ping(url)
    assert recorder.paths == ["/key"] * asked


def test_a_silent_service_holds_nobody_up(hole):
    """Whoever waits says for how long."""
    heartbeat = Heartbeat(f"http://{hole}/key", run_uuid=RUN)
    heartbeat.started()
    heartbeat.ended(0, "")
    assert not heartbeat.sender.wait(0.2)


def test_the_end_of_a_long_log_is_sent(recorder):
    """Whole lines, the last ones, no more than such services keep."""
    log = Recent(most_lines=1000)
    for number in range(1000):
        log(None, "info", {"event": "step", "level": "info", "timestamp": "T", "number": number, "run_id": "x"})
    tail = log.tail(MOST_BYTES)
    assert len(tail) <= MOST_BYTES
    assert tail.splitlines()[-1] == "T info step number=999"
    assert tail.startswith("T info step number=")
    ping(f"http://{recorder.address}/key", tail)
    assert recorder.received[0].body.decode() == tail
