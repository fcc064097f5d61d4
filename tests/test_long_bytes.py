"""tests/helpers/long_bytes.py: what a failed comparison of long bytes says."""

import re

import pytest

from tests.helpers.long_bytes import difference

ONE = bytes(range(250)) * 400


def test_lengths_hashes_and_the_first_difference() -> None:
    cut, altered = ONE[:-10], ONE[:70_000] + b"\xff" + ONE[70_001:]
    (line,) = difference(ONE, altered) or [""]
    pattern = r"first difference at offset 70000: 100000 bytes, SHA-256 \w{12}, 00 01 .* != .*, ff 01 .*"
    assert re.fullmatch(pattern, line)
    assert "offset 99990: 100000 bytes" in " ".join(difference(ONE, cut) or [])
    assert "!= 99990 bytes" in " ".join(difference(ONE, cut) or [])


def test_inside_dicts_and_lists() -> None:
    lines = difference({"a": ONE, "b": [b"", ONE]}, {"a": ONE, "b": [b"", ONE[:-1]]}) or []
    assert [line[:40] for line in lines] == ["'b': 1: first difference at offset 99999"]


@pytest.mark.parametrize(
    ("one", "other"), [(b"short", b"brief"), ({"a": ONE}, {"b": ONE}), ([ONE, 1], [ONE[:-1], 2]), (1, ONE)]
)
def test_the_rest_is_left_to_pytest(one: object, other: object) -> None:
    assert difference(one, other) is None


def test_failed_assertions_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")  # where pytest prints comparisons in full
    with pytest.raises(AssertionError) as raised:
        assert ONE[:-1] == ONE
    assert "first difference at offset 99999" in str(raised.value)
    assert len(str(raised.value)) < 1000
