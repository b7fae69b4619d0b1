"""Where a server listens, and what it says when it cannot start there or on its directory."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

from api.server.listeners import listen
from api.server.settings import ServerSettings, StartError
from tests.harness.process import Server


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("0.0.0.0", {"127.0.0.1"}),
        ("::", {"127.0.0.1", "::1"}),  # whatever net.ipv6.bindv6only says
        ("localhost", {"127.0.0.1", "::1"}),
    ],
)
def test_a_server_is_reached_where_it_was_told_to_listen(host: str, reached: set[str]) -> None:
    with contextlib.ExitStack() as stack:
        found = set()
        for listener in listen(ServerSettings(Path("data"), host, 0, insecure=True)):
            stack.enter_context(listener)
            for address in ("127.0.0.1", "::1"):
                with contextlib.suppress(OSError), socket.create_connection((address, listener.getsockname()[1])):
                    found.add(address)
    known = {str(address[0]) for *_, address in socket.getaddrinfo("localhost", 0)}
    assert found == (reached & known if host == "localhost" else reached)


@pytest.mark.parametrize("host", ["x" * 64, "a..b", "nowhere.invalid"])
def test_a_host_that_is_none_is_named(host: str) -> None:
    with pytest.raises(StartError, match=f"cannot listen on {host}: .* \\(--bind\\)"):
        listen(ServerSettings(Path("data"), host, 0))


def test_what_is_wrong_on_the_disk_is_said_with_the_file_it_is_about(tmp_path: Path) -> None:
    (tmp_path / "data" / "LOCK").mkdir(parents=True)
    server = Server(tmp_path / "data")
    server.launch()
    assert server.wait() == 1
    assert server.log.splitlines()[-1].endswith(f"CRITICAL {tmp_path}/data/LOCK: Is a directory")


def test_segments_that_no_disk_holds_are_refused(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", "--segment-size", "8000000000GiB")
    server.launch()
    assert server.wait() == 1
    assert f"--segment-size 8000000000GiB is more than the whole disk of {tmp_path}/data has, " in server.log
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["LOCK"]


@pytest.mark.parametrize("options", [(), ("--no-door",)])
def test_an_idle_connection_is_kept_as_long_as_was_said(tmp_path: Path, options: tuple[str, ...]) -> None:
    with (
        Server(tmp_path / "data", "--idle-timeout", "1", *options) as server,
        socket.create_connection((server.host, server.port)) as client,
    ):
        client.settimeout(60)
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        began_s = time.monotonic()
        while client.recv(4096):
            began_s = time.monotonic()
        assert time.monotonic() - began_s > 0.7
