"""A command that is the first word, such as ``flannelpy status``: its flags and its help text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flannelpy import cli
from flannelpy.cli.flags import PROGRAM, Flag, InfoFlag
from flannelpy.cli.go_flags import go_spelling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flannelpy.options import Options


class SubCommand:
    """The command ``name``, which has ``flags`` and -help.  ``about``: the help text above the list of the flags."""

    def __init__(self, name: str, about: str, *flags: Flag) -> None:
        self.flags = (*flags, InfoFlag("help", "Print this text.", self.usage))
        self._about = about
        self._command = click.Command(f"{PROGRAM} {name}", params=list(self.flags), add_help_option=False)
        self._by_name = {flag.flag: flag for flag in self.flags} | {"h": self.flags[-1]}

    def usage(self) -> str:
        """Return the help text."""
        return self._about + "".join(flag.manual for flag in self.flags).rstrip()

    def parse(self, argv: Sequence[str]) -> click.Context:
        """Return the values of the flags, as ``params``.  Raises UsageError; -help exits."""
        return self._command.make_context(self._command.name, list(go_spelling(argv, self._by_name)))

    def parse_with_options(self, argv: Sequence[str], own: Flag) -> tuple[Options, bool]:
        """Return the options that the daemon's flags set, and the value of ``own``, a boolean flag of the command.

        Raises UsageError; -help exits.
        """
        words = list(go_spelling(argv, self._by_name))
        value = bool(self.parse(words).params[own.flag])
        return cli.parse([word for word in words if not word.startswith(f"--{own.flag}=")]), value
