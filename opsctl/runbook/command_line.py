"""A line of a step as words, the way a shell would split it: opsctl starts no shell, and says so where one is meant."""

import re
import shlex

from opsctl.runbook import parameter_in

OPERATORS = frozenset("|&;<>()")
GLOBS = frozenset("*?[")
PARAMETER = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})", re.ASCII)
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=", re.ASCII)


def split(text: str) -> tuple[str, ...]:
    """The words of a command line. Raises ValueError that says what is wrong with it."""
    _refuse_shell(text)
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"cannot be read: {str(error).lower()}") from None
    if not words or not words[0]:
        raise ValueError("has no command")
    if ASSIGNMENT.match(words[0]):
        raise ValueError("sets a variable: set it in opsctl's environment, and declare it in `parameters:`")
    if parameter_in(words[0]):
        raise ValueError("takes the command itself from a parameter")
    return words


def _refuse_shell(text: str) -> None:
    """What only a shell gives a meaning to would reach the command as it stands here."""
    quote, position = "", 0
    while position < len(text):
        character = text[position]
        if character == "\\" and quote != "'":
            position += 2
            continue
        if character in "'\"" and quote in {"", character}:
            quote = "" if quote else character
        elif character == "'" or quote == "'":
            pass
        elif character == "`" or text.startswith("$(", position):
            raise ValueError(f"has {'`' if character == '`' else '$('} in it, and no shell runs it")
        elif character == "$":
            position = _after_parameter(text, position, quote)
            continue
        elif not quote and character in OPERATORS:
            raise ValueError(f"has {character} in it, and no shell runs it; write sh -c '…' in a change step")
        elif not quote and character in GLOBS:
            raise ValueError(f"has {character} in it, which no shell expands; quote it if it is meant as it stands")
        position += 1


def _after_parameter(text: str, position: int, quote: str) -> int:
    """Where the text goes on after ``$NAME``, which must be a whole word: one value, one argument."""
    match = PARAMETER.match(text, position)
    if match is None:
        return position + 1  # a price, a regular expression
    begin, end = position - len(quote), match.end() + len(quote)
    before, after = text[max(0, begin - 1) : begin], text[end : end + 1]
    if text[begin:position] != quote or text[match.end() : end] != quote or before.strip() or after.strip():
        raise ValueError(f"has {match[0]} inside of a word; a parameter is a word of its own")
    return match.end()
