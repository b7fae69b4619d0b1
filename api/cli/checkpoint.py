"""The command `holdfast checkpoint`, which speaks to a running server."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import Any

import click

from api.cli.options import Command, bind_option, token_option
from api.cli.reporting import ToolError, json_option, print_json, print_lines, reporting

CONNECT_WITHIN_S = 10.0
"""For a connection to the server; a checkpoint itself takes as long as it takes."""

MEMBERS = {"segments", "folded_bytes", "snapshot_bytes", "duration_s"}
"""Of the server's answer."""

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where a server listens, not we


@click.command("checkpoint", cls=Command)
@bind_option("Address of the server.")
@token_option("The server's token.")
@json_option
def checkpoint_command(bind: tuple[str, int], token: str | None, as_json: bool) -> None:
    """Have a running server fold its log into a snapshot, and wait until it has.

    Servers do this by themselves; before a planned restart it makes the start quick.

    Exit codes: 0 done, 1 no server answers, or it refused.
    """
    host, port = bind
    if port == 0:
        raise click.BadParameter("the server's port is needed", param_hint="--bind")
    with reporting(as_json):
        done = _ask_for_checkpoint(_ANY_ADDRESS.get(host, host), port, token)
    if as_json:
        print_json(done)
    else:
        print_lines(iter([_text(done)]))


def _text(done: dict[str, Any]) -> str:
    if done["segments"] == 0:
        return "nothing to compact: everything is in the snapshot already"
    segments = "1 segment" if done["segments"] == 1 else f"{done['segments']:,} segments"
    return (
        f"folded {segments}, {done['folded_bytes']:,} bytes, into a snapshot of"
        f" {done['snapshot_bytes']:,} bytes in {done['duration_s']:.1f} s"
    )


def _ask_for_checkpoint(host: str, port: int, token: str | None) -> dict[str, Any]:
    """Returns the server's answer; raises ToolError when that is no success."""
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    headers = {"Content-Length": "0"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    connection = http.client.HTTPConnection(host, port, timeout=CONNECT_WITHIN_S)
    with contextlib.closing(connection):
        try:
            connection.connect()
            connection.sock.settimeout(None)
            connection.request("POST", "/checkpoint", headers=headers)
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ToolError(f"no answer from {where}: {reason} (--bind says where the server is)") from None
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or (status == http.HTTPStatus.OK and not answer.keys() >= MEMBERS):
        raise ToolError(f"what answers on {where} is no Holdfast (status {status})")
    if status == http.HTTPStatus.OK:
        return answer
    if status == http.HTTPStatus.NOT_FOUND:
        raise ToolError(f"the server at {where} has no log to compact: its keys are on Redis")
    detail = f": {answer['detail']}" if "detail" in answer else ""
    raise ToolError(f"the server at {where} refused: {answer.get('error', status)}{detail}")
