"""The block in a crontab: whatever else stands there stays as it is, byte for byte."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsctl.cron.block import find, with_block, without_block, written
from opsctl.errors import Refused

SOURCE = "/etc/opsctl/100% ours.toml"
NOW = datetime(2026, 11, 24, 3, tzinfo=UTC)
LINES = ["# a line", "0 3 * * * cd / && opsctl backup --quiet"]

# Any bytes, as they are read: other encodings, carriage returns, form feeds, no line break at the end.
OTHERS = st.binary(max_size=200).map(lambda data: data.decode("utf-8", "surrogateescape"))


@given(OTHERS, OTHERS)
def test_everything_else_stays(before, after):
    """A block is added, found, replaced in its place and taken out; nothing else has changed then."""
    before = before if not before or before.endswith("\n") else f"{before}\n"
    text = with_block(before, SOURCE, written(SOURCE, LINES, installed_at=NOW)) + after
    replaced = with_block(text, SOURCE, written(SOURCE, [*LINES, "more"]))

    assert find(text, SOURCE).lines == tuple(LINES)
    assert (find(text, SOURCE).is_edited, find(text, SOURCE).installed_at) == (False, NOW)
    assert replaced == before + written(SOURCE, [*LINES, "more"]) + after
    assert without_block(text, SOURCE) == without_block(replaced, SOURCE) == before + after


def test_a_last_line_without_an_end_gets_one():
    """Nothing is taken without a line break at its end, and no line of ours is glued to another's."""
    assert with_block("0 1 * * * true", SOURCE, "ours\n") == "0 1 * * * true\nours\n"


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("--quiet", ""),
        lambda text: text.replace("0 3", "0 4"),
        lambda text: text.replace("# a line\n", ""),
        lambda text: text.replace("# opsctl end", "5 5 * * * mine\n# opsctl end"),
        lambda text: text.replace("\n", "\r\n"),
    ],
)
def test_an_edit_is_noticed(edit):
    """Any other line between the marks is somebody's work, and nobody's to lose."""
    assert not find(written(SOURCE, LINES), SOURCE).is_edited
    assert find(edit(written(SOURCE, LINES)), SOURCE).is_edited


def test_a_block_whose_end_is_gone_takes_nothing_with_it():
    """Without its last line nobody knows what is opsctl's, and a second block is one too many: both are refused."""
    block = written(SOURCE, LINES)
    cut = block.replace(f"# opsctl end: {SOURCE}\n", "") + "5 5 * * * mine\n"

    for text in (cut, cut + block, block + block):
        with pytest.raises(Refused):
            without_block(text, SOURCE)
        with pytest.raises(Refused):
            with_block(text, SOURCE, block)


def test_each_configuration_has_a_block_of_its_own():
    """Two configurations of one user do not touch each other's lines."""
    both = written("/a.toml", ["1"]) + written("/b.toml", ["2"])

    assert without_block(both, "/a.toml") == written("/b.toml", ["2"])
    assert with_block(both, "/b.toml", written("/b.toml", ["3"])) == written("/a.toml", ["1"]) + written(
        "/b.toml", ["3"]
    )
