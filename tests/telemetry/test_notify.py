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


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        (["tgram://1:a/2", "json://x", "jsons://x", "json://y"], ["tgram", "json", "jsons", "json 2"]),
        (["what is this"], ["target"]),
    ],
)
def test_names_hold_nothing_of_the_address(urls, names):
    assert target_names(urls) == names
