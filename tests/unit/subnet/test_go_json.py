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
        ('{"Network": "y", "network": "x"}', "x"),
        ('{"Network": "x", "network": "z", "Network": "y"}', "y"),
        ('{"network": "z", "Network": "x", "network": "y"}', "y"),
        ('{"Network": "y", "Network": null}', None),
        ('{"Network": "y", "network": null}', "y"),
        ('{"Network": "x", "other": {"Network": "z"}, "NETWORK": "y"}', "y"),
        ('{"Network": "x", "Network": "y"}', "y"),
        ('{"Network": null}', None),
        ('{"Networks": "x"}', None),
        ("{}", None),
    ],
)
def test_keys_match_in_any_case_and_the_last_one_counts(text: str, expected: object) -> None:
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
        pytest.param('{"a":' + "[" * 64 + "]" * 64 + "}", id="one level too many"),
        pytest.param('{"b":[{}],"a":' + '{"a":' * 900 + "1" + "}" * 900 + "}", id="beside another"),
    ],
)
def test_what_would_exhaust_the_parser_is_refused_like_the_rest(text: str) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        go_json.parse_object(text)


@pytest.mark.parametrize(
    "inner", ["[" * 63 + "]" * 63, '{"a":' * 62 + "[]" + "}" * 62, ",".join(["[]"] * 500).join("[]")]
)
def test_some_nesting_and_any_number_of_lists_are_fine(inner: str) -> None:
    assert go_json.parse_object(f'{{"a":{inner}}}')


@pytest.mark.parametrize("value", ["x" * 1000, ["\n"] * 1000, {"\u202e": 1}, "\ud800", float("inf"), 10**200])
def test_what_is_shown_is_one_short_line(value: object) -> None:
    shown = go_json.show(value)
    assert shown.isprintable()
    assert len(shown) < 150


def test_letters_are_written_as_they_are() -> None:
    assert go_json.dump({"Häuser": "ü"}) == '{"Häuser":"ü"}'


def test_nothing_is_written_between_the_tokens() -> None:
    assert go_json.dump({"PublicIP": "1.2.3.4", "BackendData": [1, None, {"a": True}]}) == (
        '{"PublicIP":"1.2.3.4","BackendData":[1,null,{"a":true}]}'
    )
