"""Documents, docstrings, comments, messages and names use the words of the glossary in docs/architecture.md.

The banned words have another word that engineers use: logged, reported, restored, recreated, continues, module, layer,
failure, peer, permanently, another program, no host.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
#: Files and directories whose text is checked.
CHECKED = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs"),
    *("flannelpy", "scripts", "tests", "setup.py", "Makefile", "pyproject.toml"),
)
SUFFIXES = {".md", ".py", ".pxd", ".sh", ".service", ".conf"}
BANNED = (
    *("said", "told", "put right", "anew", "goes on", "go on", "going on", "carry on", "carries on"),
    *("rooms", "a room", "backend room", "house", "houses", "trouble", "troubles", "twin", "twins"),
    *("whatever", "whoever", "somebody", "nobody", "as it was", "for good"),
)
PATTERN = re.compile(r"\b(?:" + "|".join(phrase.replace(" ", r"[\s#]+") for phrase in BANNED) + r")\b")


def files(checked: str) -> list[Path]:
    """Return the text files at or below ``checked``, but for this one, which has to name the words."""
    path = PROJECT / checked
    if path.is_file():
        return [path]
    return [file for file in sorted(path.rglob("*")) if file.suffix in SUFFIXES and file != Path(__file__)]


def unreleased(text: str) -> str:
    """Return the part of CHANGELOG.md that a release has not fixed yet."""
    return text.split("\n## [")[1]


def banned_in(text: str) -> list[str]:
    """Return the banned words in ``text`` with their line numbers; names count as the words that they consist of.

    Names of tests after ``::`` are left out: they are checked where they are defined.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", re.sub(r"::\w+", "", text)).replace("_", " ").lower()
    return [f"line {words.count(chr(10), 0, match.start()) + 1}: {match[0]}" for match in PATTERN.finditer(words)]


@pytest.mark.parametrize("checked", CHECKED)
def test_no_banned_word(checked: str) -> None:
    paths = files(checked)
    assert paths, checked
    texts = {path: path.read_text() for path in paths}
    found = {
        str(path.relative_to(PROJECT)): banned_in(unreleased(text) if path.name == "CHANGELOG.md" else text)
        for path, text in texts.items()
    }
    assert {path: words for path, words in found.items() if words} == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the log said so", ["line 1: said"]),
        ("was\nput\n    # right", ["line 2: put\n    # right"]),
        ("def test_a_watch_goes_on() -> None:", ["line 1: goes on"]),
        ("class LinkTrouble:", ["line 1: trouble"]),
        ("the aforesaid warehouse, twine, broom", []),
    ],
)
def test_a_banned_word_is_found_in_text_and_names_but_not_inside_others(text: str, words: list[str]) -> None:
    assert banned_in(text) == words
