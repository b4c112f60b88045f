"""JSON as Go reads and writes it."""

from __future__ import annotations

import pytest

from flannelpy.subnet import go_json


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"Network": "x"}', "x"),
        ('{"network": "x"}', "x"),
        ('{"NETWORK": "x"}', "x"),
        ('{"network": "x", "Network": "y"}', "y"),
        ('{"Network": "y", "network": "x"}', "y"),
        ('{"Network": "x", "Network": "y"}', "y"),
        ('{"Network": null}', None),
        ('{"Networks": "x"}', None),
        ("{}", None),
    ],
)
def test_keys_match_whatever_their_case_and_exactly_first(text: str, expected: object) -> None:
    assert go_json.get(go_json.parse_object(text), "Network") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value at line 1 column 1"),
        ('{"Network": }', "not JSON: Expecting value at line 1 column 13"),
        ('{"a": 1\n"b": 2}', "not JSON: Expecting ',' delimiter at line 2 column 1"),
        ('{"Network": NaN}', "not JSON: NaN"),
        ('{"Network": -Infinity}', "not JSON: -Infinity"),
        ("[1, 2]", "not a JSON object: [1, 2]"),
        ('[\n  {"a": 1},\n  {"b": 2}\n]', 'not a JSON object: [ {"a": 1}, {"b": 2} ]'),
        ("[" * 100_000, "not JSON: it is nested too deep"),
        ("null", "not a JSON object: null"),
        (' "11.0.0.0/16"\n', 'not a JSON object: "11.0.0.0/16"'),
    ],
)
def test_what_is_no_object_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^not ") as caught:
        go_json.parse_object(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="nesting"),
        pytest.param('{"a":' * 100_000, id="objects"),
        pytest.param('{"a":' + "1" * 10_000 + "}", id="digits"),
    ],
)
def test_what_would_exhaust_the_parser_is_refused_like_the_rest(text: str) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        go_json.parse_object(text)


def test_nothing_is_written_between_the_tokens() -> None:
    assert go_json.dump({"PublicIP": "1.2.3.4", "BackendData": [1, None, {"a": True}]}) == (
        '{"PublicIP":"1.2.3.4","BackendData":[1,null,{"a":true}]}'
    )
