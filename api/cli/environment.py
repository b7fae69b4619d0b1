"""The environment variables that begin with HOLDFAST_: those that mean nothing are named, not passed over in silence.

They are not refused: Kubernetes gives every container of a namespace variables named after its services, and a service
that is called `holdfast` makes HOLDFAST_PORT=tcp://10.0.0.1:8080 and others, which are meant for clients.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

import click
from click.core import ParameterSource

PREFIX = "HOLDFAST_"

_OF_A_SERVICE = re.compile(
    r"HOLDFAST_(.+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)

_NEVER_EMPTY = ("HOLDFAST_DATA", "HOLDFAST_ENGINE", "HOLDFAST_TOKEN")
"""Where the data is, and who may come in, must not depend on an expansion that came out empty."""


def refuse_empty(environment: Mapping[str, str], context: click.Context) -> None:
    """Refuses variables that are set to nothing and would decide much.

    Raises:
        click.UsageError: one is, and the command line does not say it either.
    """
    for option in context.command.params:
        is_needed = context.get_parameter_source(option.name or "") is not ParameterSource.COMMANDLINE
        if is_needed and option.envvar in _NEVER_EMPTY and environment.get(str(option.envvar)) == "":
            raise click.UsageError(f"{option.envvar} is set, but empty: give it a value, or unset it", context)


def complaints(environment: Mapping[str, str], command: click.Command) -> Iterator[str]:
    """Yields a sentence for each variable that was meant for Holdfast, as its name says, and has no effect.

    Args:
        environment: all of it; values are not repeated, for they may be secrets.
        command: which options there are.
    """
    known = [option.envvar for option in command.params if isinstance(option.envvar, str)]
    for name, value in sorted(environment.items()):
        if name in known and not value:
            yield f"{name} is set, but empty: it has no effect"
        elif name.startswith(PREFIX) and name not in known and not _OF_A_SERVICE.fullmatch(name):
            words = [one.removeprefix(PREFIX) for one in known]
            close = difflib.get_close_matches(name.removeprefix(PREFIX), words, n=1)
            hint = f"; {PREFIX}{close[0]} is one" if close else ""
            yield f"{ascii(name)[1:-1]} is no option of this command and has no effect{hint}"
