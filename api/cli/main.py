"""The command line: `holdfast` and its commands."""

from __future__ import annotations

import click

from api.cli.moving import export_command, import_command
from api.cli.serve import serve_command
from api.cli.tools import backup_command, checkpoint_command, wal_commands


@click.group(context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="holdfast")
def main() -> None:
    """Holdfast: a durable key-value store with queues, spoken to over HTTP with JSON."""


for command in (serve_command, wal_commands, backup_command, checkpoint_command, export_command, import_command):
    main.add_command(command)
