"""How hypothesis runs here: with a new seed each time on a developer's machine, with the same one in CI.

A failure prints a ``@reproduce_failure`` line to put above the test.
"""

from __future__ import annotations

import os

from hypothesis import settings

from flannelpy.packet import build

# The compiled code has the same examples, and more.  Interpreted, or under sanitizers, they take ten times as long.
_IS_FAST = build() == "compiled" and "libasan" not in os.environ.get("LD_PRELOAD", "")
_EXAMPLES = 100 if _IS_FAST else 40
settings.register_profile("local", max_examples=_EXAMPLES, deadline=None, print_blob=True)
settings.register_profile("ci", max_examples=_EXAMPLES, deadline=None, print_blob=True, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")
