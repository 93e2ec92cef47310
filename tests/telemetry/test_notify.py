"""Messages to people: each target for itself, and none of them in the way."""

import pytest

from opsctl.telemetry.notify import Message, Notifier, target_names
from opsctl.telemetry.redact import Redactor

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # Apprise's own

MESSAGE = Message("failure", "backup of app failed", "No connection as hunter2-canary.")


def test_it_arrives_without_secrets(recorder):
    notifier = Notifier([f"json://{recorder.address}/hook"], Redactor(["hunter2-canary"]))
    notifier.begin(MESSAGE)
    (sent,) = notifier.finish(60)
    assert (sent.target, sent.error) == ("json", None)
    (received,) = recorder.received
    assert received.json["title"] == "backup of app failed"
    assert received.json["message"] == "No connection as ***."
    assert received.json["type"] == "failure"


def test_no_target_keeps_another_from_hearing(recorder, hole, capfd):
    """One that never answers, one that is down, one that leads elsewhere, one that is none, and one that works."""
    elsewhere = f"json://{recorder.address}/moved"
    recorder.location = f"http://{recorder.address}/elsewhere"
    urls = [f"json://{hole}", "json://127.0.0.1:1", "tgram://nonsense", f"json://{recorder.address}/hook"]
    from apprise import Apprise

    Apprise().add(urls[-1])  # loading it takes seconds on a busy machine, and they count
    notifier = Notifier(urls, Redactor())
    notifier.begin(MESSAGE)
    found = {each.target: each.error for each in notifier.finish(3)}
    assert found["json 3"] is None
    assert found["json"] == "no answer within 3 s"
    assert found["tgram"] == "Apprise does not understand this address"
    assert found["json 2"]
    recorder.status = 307
    notifier = Notifier([elsewhere], Redactor())
    notifier.begin(MESSAGE)
    assert notifier.finish(60)[0].error
    assert recorder.paths == ["/hook", "/moved"]
    assert capfd.readouterr() == ("", "")


def test_of_two_messages_the_one_that_is_lost_counts(recorder):
    """A trouble is told once its message has arrived, not another one."""
    recorder.statuses = [200, 500]
    notifier = Notifier([f"json://{recorder.address}/hook"], Redactor())
    for _ in range(2):
        notifier.begin(MESSAGE)
    (sent,) = notifier.finish(60)
    assert sent.error
    assert len(recorder.received) == 2


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        (["tgram://1:a/2", "json://x", "jsons://x", "json://y"], ["tgram", "json", "jsons", "json 2"]),
        (["what is this"], ["target"]),
    ],
)
def test_names_hold_nothing_of_the_address(urls, names):
    assert target_names(urls) == names
