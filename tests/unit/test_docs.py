"""The table of deviations names a test for every row, and the tests are there; README's commands are tested ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lab import dockers

TESTS = Path(__file__).parents[1]
DEVIATIONS = TESTS.parent / "docs/deviations.md"
ROWS = [line for line in DEVIATIONS.read_text().splitlines() if re.match(r"\| (?!---|what|flanneld v|fault)", line)]


@pytest.mark.parametrize("row", ROWS)
def test_every_deviation_has_its_test(row: str) -> None:
    test = row.strip("| ").split(" | ")[-1]
    names = re.findall(r"`([a-z_0-9/]+)(\.py)?/?(?:::(\w+))?`", test)
    assert names or test.startswith("the same"), row
    for path, suffix, function in names:
        file = TESTS / f"{path}{suffix}"
        assert file.exists(), file
        if function:
            assert f"def {function}(" in file.read_text(), f"{file}::{function}"


README = (TESTS.parent / "README.md").read_text()


@pytest.mark.parametrize("lines", [dockers.START, dockers.CREATE_NETWORK])
def test_the_docker_tests_run_what_the_readme_says(lines: str) -> None:
    assert f"```sh\n{lines}```" in README
