"""Documents agree with the tests: deviations name tests, tests run documented commands, and links have targets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lab import dockers

TESTS = Path(__file__).parents[1]
PROJECT = TESTS.parent
DOCUMENTS = sorted([PROJECT / "README.md", *PROJECT.glob("docs/*.md")])
DEVIATIONS = (PROJECT / "docs/deviations.md").read_text()
ROWS = [line for line in DEVIATIONS.splitlines() if re.match(r"\| (?!---|what|flanneld v|fault)", line)]


@pytest.mark.parametrize("row", ROWS)
def test_every_deviation_names_tests_that_exist(row: str) -> None:
    test = row.strip("| ").split(" | ")[-1]
    names = re.findall(r"`([a-z_0-9/]+)(\.py)?/?(?:::(\w+))?`", test)
    assert names or test.startswith("the same"), row
    for path, suffix, function in names:
        file = TESTS / f"{path}{suffix}"
        assert file.exists(), file
        if function:
            assert f"def {function}(" in file.read_text(), f"{file}::{function}"


@pytest.mark.parametrize(
    ("document", "commands"),
    [
        ("README.md", dockers.START),
        ("docs/manual.md", dockers.START),
        ("docs/manual.md", dockers.CREATE_NETWORK),
    ],
)
def test_docker_tests_run_the_documented_commands(document: str, commands: str) -> None:
    assert f"```sh\n{commands}```" in (PROJECT / document).read_text()


def test_the_readme_has_at_most_120_lines() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 120


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub derives from the headings of ``document``."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_link_to_a_document_has_a_target(document: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", document.read_text()):
        target = document.parent / path if path else document
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), f"{target}#{anchor}"
