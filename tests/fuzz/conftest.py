"""How hypothesis runs here: with a new seed each time on a developer's machine, with the same one in CI.

A failure prints a ``@reproduce_failure`` line to put above the test.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("local", max_examples=200, deadline=None, print_blob=True)
settings.register_profile("ci", max_examples=200, deadline=None, print_blob=True, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")
