"""bounded_json.py: JSON as the standard library reads it, up to a depth."""

import json

import pytest

from codec.io.bounded_json import MAX_DEPTH, read_json


def nested(depth: int) -> str:
    return '{"a": [' * (depth // 2) + "1" + "]}" * (depth // 2)


def test_ordinary_json_is_read() -> None:
    for text in ('{"a": [1, {"b": null}], "c": "x"}', "[]", "1", '"text"', nested(MAX_DEPTH - 2)):
        assert read_json(text) == read_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 2, 900, 200_000])
def test_deep_json_is_refused_whatever_the_stack(depth: int) -> None:
    with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} deep"):
        read_json(nested(depth))


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        read_json("{")
