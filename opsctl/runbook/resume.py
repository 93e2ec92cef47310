"""Where a run of a scenario goes on, from its incident's timeline."""

from collections.abc import Sequence

from opsctl.runbook import Scenario
from opsctl.timeline import Event


def progress_of(events: Sequence[Event], scenario: Scenario) -> tuple[frozenset[str], frozenset[str]]:
    """From a timeline: the steps an earlier run came through, and those that were under way when one ended.

    A step counts only as long as it is the same: whoever corrects a step in between wants the corrected one run.
    """
    digests = {step.id: step.digest for step in scenario.steps}
    finished: set[str] = set()
    under_way: set[str] = set()
    for event in events:
        name = event.fields.get("step")
        if name not in digests or event.fields.get("undo"):
            continue
        is_same = event.fields.get("digest") == digests[name]
        if event.kind == "step_started":
            under_way.add(name)
            finished.discard(name)
        elif event.kind == "step_finished":
            under_way.discard(name)
            if event.fields.get("outcome") == "done" and is_same:
                finished.add(name)
    changing = {step.id for step in scenario.steps if step.changes}
    mitigated = {event.fields.get("step") for event in events if event.kind == "mitigated"}
    return frozenset(finished - (changing - mitigated)), frozenset(under_way)
