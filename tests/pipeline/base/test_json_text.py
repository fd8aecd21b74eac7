"""JSON that is none is a ValueError, whatever Python makes of it."""

from __future__ import annotations

import pytest

from pipeline.base.json_text import parse_json


def test_values() -> None:
    assert parse_json('{"a": [1, null]}') == parse_json(b'{"a": [1, null]}') == {"a": [1, None]}


@pytest.mark.parametrize("text", ["", "{", b"\xff\xfe{", "[" * 100_000, '{"a":' * 100_000, "1" * 10_000])
def test_what_is_none(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
