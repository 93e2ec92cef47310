"""From Markdown to steps: what the grammar takes, what it names as wrong, and that nothing else ever becomes a step."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsctl.checks.check import CheckResult, Remedy
from opsctl.checks.report import report
from opsctl.errors import UsageError
from opsctl.runbook import Command
from opsctl.runbook.command_line import split
from opsctl.runbook.effects import as_run, opsctl_effect, why_not_observed
from opsctl.runbook.lint import Known, lint
from opsctl.runbook.parse import KEYS, VERBS, parse, slug
from opsctl.runbook.triggers import with_scenarios

GOOD = """\
---
title: not a heading
---
# Our runbook

## Bot is down
<!--
triggers: service.bot, http.bot
aliases: bot
parameters: SINCE
-->

Look first:

```sh observe
# what it wrote last
opsctl logs bot -n 50 \\
    --since "$SINCE"
docker ps
```

1. Then restart it:

   ```sh change id=restart-bot verify=service.bot if=service.state.bot!=ok undo="opsctl restart bot" timeout=2m
   opsctl restart bot
   ```

```text manual
Tell the team.
```

```sh
rm -rf /
```

## Бот не отвечает ёй

~~~~bash danger id=вернуть verify=db,service.bot target=saasdb wait=5s
opsctl restore latest
~~~~

## What all this is

No step here.
"""


def known(**changes):
    words = {"service.bot", "http.bot", "db", "service.state.bot", "service"}
    commands = {"logs", "restart", "restore", "backup", "doctor", "list", "runbook run"}

    def usage(line):
        name = next((n for n in (" ".join(line[1:3]), line[1] if line[1:] else "") if n in commands), "")
        return (name, None) if name else ("", f"There is no command {line[1]!r}.")

    default = {
        "wrong_check": lambda word, _trigger: None if word in words else f"There is no check {word!r}.",
        "services": ["bot"],
        "databases": ["saasdb"],
        "usage": usage,
    }
    return Known(**{**default, **changes})


def problems(text, **changes):
    return [each.message for each in lint(parse(text), known(**changes))]


def step(info, body="opsctl restart bot"):
    return f"## S\n\n```{info}\n{body}\n```\n"


def test_a_runbook_is_read_as_it_is_written():
    """Sections with steps are scenarios; fences with a verb are steps, in lists too; a backslash joins lines."""
    runbook = parse(GOOD)
    assert problems(GOOD) == []
    assert [(each.id, each.title) for each in runbook.scenarios] == [
        ("bot-is-down", "Bot is down"),
        ("бот-не-отвечает-ёй", "Бот не отвечает ёй"),
    ]
    first, second = runbook.scenarios
    assert (first.triggers, first.aliases, first.parameters) == (("service.bot", "http.bot"), ("bot",), ("SINCE",))
    assert [(each.id, each.effect) for each in first.steps] == [
        ("step-1", "observe"),
        ("restart-bot", "change"),
        ("step-3", "manual"),
    ]
    look, restart, tell = first.steps
    assert [each.words for each in look.commands] == [
        ("opsctl", "logs", "bot", "-n", "50", "--since", "$SINCE"),
        ("docker", "ps"),
    ]
    assert look.commands[0].parameters == ("SINCE",)
    assert str(restart.conditions[0]) == "service.state.bot!=ok"
    assert restart.conditions[0].holds("crit")
    assert not restart.conditions[0].holds("ok")
    assert (restart.timeout_seconds, restart.wait_seconds) == (120.0, 60.0)
    assert restart.undo == Command(("opsctl", "restart", "bot"), "opsctl restart bot", restart.line)
    assert tell.text == "Tell the team."
    assert (second.steps[0].id, second.steps[0].target, second.steps[0].wait_seconds) == ("вернуть", "saasdb", 5.0)
    assert runbook.text.split("\n")[restart.line - 1].strip().startswith("```sh change")
    assert runbook.scenario("bot") is first
    assert runbook.scenario("Bot is down") is first
    with pytest.raises(UsageError) as wrong:
        runbook.scenario("bot-is-dwon")
    assert wrong.value.hint == "Did you mean 'bot-is-down'?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (step("sh changes id=a verify=db"), "'changes' is no verb. Did you mean change?"),
        (step("python obsreve"), "'obsreve' is no verb. Did you mean observe?"),
        (step("change"), "The verb stands after the language: ```sh change."),
        (step("sh verify=db"), "There is a key but no verb"),
        (step("sh change id=a veriify=db verify=db"), "'veriify' is not a key of a step. Did you mean verify?"),
        (step("sh change id=a id=b verify=db"), "The key id is given twice."),
        (step("sh change id= verify=db"), "The key id has no value."),
        (step("sh change id=a verify=db loose"), "'loose' is not of the form key=value."),
        (step("sh change id='a verify=db"), "a quotation mark is missing"),
        (step("sh change id=a/b verify=db"), "The id 'a/b' may have letters"),
        (step("sh change id=a verify=db timeout=0"), "timeout=0 is no time"),
        (step("sh change id=a verify=db if=db"), "if=db is no condition"),
        (step("sh change id=a verify=db if=db=bad"), "if=db=bad is no condition"),
        (step("python change id=a verify=db"), "A step of change is ```sh change, not ```python."),
        (step("sh observe undo=x", "date"), "A step of observe has nothing for undo."),
        (step("sh observe", ""), "The step has no command."),
        (step("sh observe", "date \\"), "ends with a backslash"),
        (step("sh change id=a"), "The step a changes something and has no verify"),
        (step("sh change verify=db"), "A step of change needs an id"),
        (step("sh change id=a verify=nothing.bot"), "There is no check 'nothing.bot'"),
        (step("sh change id=a verify=db if=no!=ok"), "There is no check 'no'"),
        (step("sh change id=a verify=db", "opsctl restart bott"), "There is no service 'bott'"),
        (step("sh observe", "opsctl logs -n 5 bott"), "There is no service 'bott'"),
        (step("sh change id=a verify=db", "opsctl backup other"), "There is no database 'other'"),
        (step("sh change id=a verify=db", "opsctl restrat bot"), "There is no command 'restrat'."),
        (step("sh change id=a verify=db undo='opsctl undo'"), "undo: `opsctl undo`: There is no command 'undo'."),
        (step("sh change id=a verify=db", "opsctl runbook run s"), "has no place in a runbook"),
        (step("sh observe", "opsctl logs -f bot"), "has no place in a runbook"),
        (step("sh observe"), "`opsctl restart bot` makes this a step of change, not observe."),
        (step("sh change id=a verify=db", "opsctl restore latest"), "makes this a step of danger, not change."),
        (step("sh observe", "rm -rf /"), "rm is not on the list of commands that only look"),
        (step("sh danger id=a verify=db target=x", "opsctl restore latest"), "The target 'x' is neither"),
        (step("sh observe", "cat x | head"), "has | in it, and no shell runs it"),
        (step("sh observe", "cat $(ls)"), "has $( in it, and no shell runs it"),
        (step("sh observe", 'echo "`ls`"'), "has ` in it"),
        (step("sh observe", "ls *.log"), "has * in it, which no shell expands"),
        (step("sh observe", "A=1 date"), "sets a variable"),
        (step("sh observe", "cat a$X"), "has $X inside of a word"),
        (step("sh observe", "cat $X"), "The parameter X is not declared"),
        (step("sh observe", "cat 'x"), "cannot be read: no closing quotation"),
        ("## S\n<!-- parameters: X -->\n```sh observe\ndate\n```\n", "The parameter X is declared and not used."),
        ("## S\n<!-- trigger: db -->\n```sh observe\ndate\n```\n", "Did you mean triggers?"),
        ("## S\n<!-- triggers: no.such -->\n```sh observe\ndate\n```\n", "triggers: There is no check 'no.such'."),
        ("## S\n\ntext\n\n<!-- triggers: db -->\n", "must stand right under"),
        ("```sh observe\ndate\n```\n", "The step is in no scenario"),
        ("## S\n```sh observe\ndate\n", "The fence never closes"),
        ("## S\n> ```sh observe\n> date\n\nafter\n", "The fence never closes"),
        ("## S\n\n## S!\n", "has the same anchor, s, as 'S'."),
        ("# S\n\n## S\n", "has the same anchor"),
        ("## !!!\n```sh observe\ndate\n```\n", "no letter or digit"),
        (
            "## A\n" + 2 * "```sh change id=x verify=db\nopsctl restart bot\n```\n",
            "The id x is another step's already.",
        ),
        (
            "## A\n<!-- aliases: b -->\n```sh observe\ndate\n```\n## B\n```sh observe\ndate\n```\n",
            "'b' names the scenario",
        ),
        (step("sh change id=a verify=db", "curl postgresql://u:hunter2@db/x"), "a password in a URL"),
        (step("sh change id=a verify=db", "env PGPASSWORD=hunter2 psql"), "what looks like a password"),
        (step("sh change id=a verify=db", "login --password hunter2"), "what looks like a password"),
        ("## S\n\nAKIAABCDEFGHIJKLMNOP\n", "an AWS key"),
        ("## S\n\nthe configured one: sesame\n", "a secret of the configuration"),
    ],
)
def test_what_is_wrong_is_named(text, said):
    found = problems(text, is_secret=lambda line: "sesame" in line)
    assert [each for each in found if said in each], found
    assert not any("hunter2" in each.replace("login --password hunter2", "") for each in found if "password" in each)


def test_several_databases_need_a_target():
    text = step("sh danger id=a verify=db", "opsctl restore latest")
    assert problems(text) == []
    assert "needs target=" in problems(text, databases=["a", "b"])[0]


def test_placeholders_are_no_secrets():
    text = step("sh change id=a verify=db", "curl 'postgresql://u:***@db/x' --password-file pw")
    assert problems(text) == []


@pytest.mark.parametrize(
    ("title", "anchor"),
    [
        ("Bot is down", "bot-is-down"),
        ("`opsctl` & co.: 5xx!", "opsctl--co-5xx"),
        ("База не отвечает", "база-не-отвечает"),
        ("Й in two pieces: и\u0306", "й-in-two-pieces-и\u0306"),
        ("snake_case — dash", "snake_case--dash"),
    ],
)
def test_anchors_are_those_of_github(title, anchor):
    assert slug(title) == anchor


LOOKING = """\
cat /etc/hosts|tail -n 5 x|date -u +%F|docker logs bot --tail 5|systemctl status nginx|journalctl -u nginx -n 5
ss -tln|free -m|psql -c 'select 1'|psql -X -d app -c 'show work_mem;'|ps aux|df -h|echo hi|uptime|ls -l
grep -c x f"""
ACTING = """\
tail -f x|tail -n5f x|date -s 12:00|date 11241200|docker rm x|docker -H y ps|systemctl restart x
systemctl status -H root@h x|journalctl --vacuum-size=1|journalctl --vacuum-s=1|ss -K|ss --kill|rm x|/bin/cat x
psql -c 'drop table t'|psql -c 'select 1; drop table t'|psql -f x|psql -c '\\! id'|bash -c true|sudo ls|free -s 1
psql -c 'select pg_terminate_backend(1)'|psql -c 'select 1' -c 'select 2'|psql -o f -c 'select 1'
psql postgresql://h/d -c 'select 1'|psql"""


def test_the_list_of_commands_that_only_look():
    for line in re.split(r"[|\n]", LOOKING):
        assert why_not_observed(split(line)) is None, line
    for line in re.split(r"[|\n]", ACTING):
        assert why_not_observed(split(line)) is not None, line
    words = as_run(split("psql -d app -c 'select 1'"), "observe")
    assert words[words.index("-c") + 1] == "begin transaction read only"
    assert words[-2:] == ["-c", "select 1"]


def test_what_restore_and_prune_do_depends_on_their_options():
    effects = [opsctl_effect("restore", options.split()) for options in ("latest --plan", "x --into y", "x", "--undo")]
    assert effects == ["observe", "change", "danger", "danger"]
    assert opsctl_effect("prune", ["--dry-run"]) == "observe"
    assert opsctl_effect("doctor", ["-f", "json"]) == "observe"
    assert opsctl_effect("demo", []) is None


def result(name, status="crit", target=None, remedy=None):
    return CheckResult(name, name, status, "m", target=target, remedy=remedy)


def test_a_failed_check_leads_to_the_scenario_that_names_it_most_closely():
    text = "".join(
        f"## {title}\n<!-- triggers: {words} -->\n```sh observe\ndate\n```\n"
        for title, words in (
            ("Any service", "service"),
            ("Bot", "service.state.bot, service.bot"),
            ("State", "service.state"),
        )
    )
    results = [
        result("service.state", target="bot"),
        result("service.health", target="api"),
        result("service.state", target="api", remedy=Remedy("Do.", "cmd")),
        result("service.health", target="bot", status="ok"),
        result("db.connect"),
    ]
    found = with_scenarios(results, parse(text))
    assert [each.remedy and each.remedy.scenario for each in found] == ["bot", "any-service", "state", None, None]
    assert found[2].remedy == Remedy("Do.", "cmd", "state")
    assert report(found).verdict.scenario == "bot"


# Nothing that is fed to it makes it fail, or run what is not marked

WORD = st.one_of(
    st.sampled_from([*VERBS, *KEYS, "sh", "text", "=", "id=a", "verify=db", "'", '"', "\\", "$X", "if=db!=ok"]),
    st.text(max_size=6),
)
INFO = st.lists(WORD, max_size=6).map(" ".join)
PIECE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "## A\n",
            "# B\n",
            "## Й\n",
            "<!-- triggers: db -->\n",
            "---\n",
            "> ",
            "1. ",
            "   ",
            "\t",
            "\0",
            "\r",
            "\r\n",
            "<div>\n",
            "\n\n",
        ]
    ),
    st.builds(
        "{0}{1}{2}\n{3}\n{4}\n".format,
        st.sampled_from(["", "  ", "> ", "- ", "    "]),
        st.sampled_from(["```", "~~~", "````"]),
        INFO,
        st.text(max_size=30),
        st.sampled_from(["```", "~~~", "````", ""]),
    ),
)


@settings(max_examples=150)
@given(st.lists(PIECE, max_size=14).map("".join))
def test_any_text_is_read_and_only_marked_fences_become_steps(text):
    """The line a step begins on carries a fence with a language and its verb; whatever else a text holds never runs."""
    runbook = parse(text)
    lint(runbook, known())
    lines = runbook.text.split("\n")
    for scenario in runbook.scenarios:
        for found in scenario.steps:
            opening = re.search(r"(?:`{3,}|~{3,})(.*)", lines[found.line - 1])
            assert opening is not None
            assert opening[1].replace("\0", "\ufffd").split()[1] == found.effect
            assert found.effect == "manual" or found.commands


@settings(max_examples=150)
@given(st.text(alphabet=st.sampled_from("ab $X{}'\"\\|;&<>()*?[`\n="), max_size=25))
def test_a_command_line_is_split_or_refused(text):
    """What is taken has no shell operator outside of quotes, so a shell would run the same single command."""
    try:
        words = split(text)
    except ValueError:
        return
    assert words
    unquoted = re.sub(r"\\.|'[^']*'|\"(?:\\.|[^\"])*\"", "", text, flags=re.DOTALL)
    assert not set("|;&<>()`*?[") & set(unquoted), (text, words)
