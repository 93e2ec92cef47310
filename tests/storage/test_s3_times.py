"""The times of a listing are read by Python's parser instead of botocore's: they are the same."""

from datetime import UTC, datetime

import pytest
from botocore.utils import parse_timestamp  # noqa: TID253
from hypothesis import given
from hypothesis import strategies as st

from opsctl.storage.s3_connection import _time

SECONDS = st.floats(631_152_000, 3_786_912_000)
PRECISIONS = st.sampled_from(["seconds", "milliseconds", "microseconds"])
ZONES = st.sampled_from(["Z", "+00:00", "+02:00"])


@given(SECONDS, PRECISIONS, ZONES)
def test_times_of_listings(seconds, precision, zone):
    """Whatever precision and offset a service writes."""
    written = datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision).removesuffix("+00:00") + zone

    assert _time(written) == parse_timestamp(written)
    assert _time(written).utcoffset() is not None


@pytest.mark.parametrize(
    "written", ["Mon, 30 Nov 2026 10:00:00 GMT", "2026-11-30 10:00:00 UTC", 1796032800, "1796032800"]
)
def test_times_in_headers_and_numbers(written):
    """What is no RFC 3339 is left to botocore."""
    assert _time(written) == parse_timestamp(written)


def test_a_time_without_a_zone_is_utc():
    """As S3 means it."""
    assert _time("2026-11-30T10:00:00.000") == datetime(2026, 11, 30, 10, tzinfo=UTC)


def test_what_is_no_time_is_an_error():
    """Of botocore's kind, which is mapped like its others."""
    with pytest.raises(ValueError, match="Invalid timestamp"):
        _time("2026-11-30Tnever")
