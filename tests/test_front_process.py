"""The real process as a front of Redis: starting, what it says, and its end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.process import Server


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Takes connections, as the system does, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def nobody() -> str:
    """The URL of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"redis://:secret@127.0.0.1:{listener.getsockname()[1]}"


def last_line(server: Server) -> str:
    return server.log.splitlines()[-1]


def test_where_no_redis_is_a_front_exits_1_and_says_so_in_a_line_without_the_password(tmp_path: Path) -> None:
    front = Server(tmp_path / "front", engine=nobody())
    front.launch()
    assert front.wait(30) == 1
    assert len(front.log.splitlines()) == 1, front.log
    assert "CRITICAL" in front.log
    assert "127.0.0.1" in front.log
    assert "secret" not in front.log
    assert not front.data.exists()


def test_where_somebody_is_silent_a_front_exits_1_too(tmp_path: Path, silent: socket.socket) -> None:
    front = Server(tmp_path / "front", engine=f"redis://127.0.0.1:{silent.getsockname()[1]}")
    front.launch()
    assert front.wait(30) == 1
    assert "Traceback" not in front.log


def test_a_front_that_is_connecting_stops_at_once(tmp_path: Path, silent: socket.socket) -> None:
    """H1"""
    front = Server(tmp_path / "front", engine=f"redis://127.0.0.1:{silent.getsockname()[1]}")
    front.launch()
    with silent.accept()[0]:
        front.signal(signal.SIGTERM)
        assert front.wait() == 0
    assert last_line(front).endswith("stopped while connecting; nothing was changed")


def test_a_taken_port_exits_1_before_redis_is_asked(tmp_path: Path, silent: socket.socket) -> None:
    """H4"""
    host, port = silent.getsockname()
    front = Server(tmp_path / "front", "--bind", f"{host}:{port}", engine=f"redis://{host}:{port}")
    front.launch()
    assert front.wait() == 1
    assert "Address already in use" in last_line(front)
    silent.setblocking(False)
    with pytest.raises(BlockingIOError):
        silent.accept()


def test_without_its_library_a_front_exits_1_and_says_how_to_install_it(tmp_path: Path) -> None:
    """A package of that name that cannot be imported stands for one that is not there."""
    hidden = tmp_path / "hidden" / "coredis.py"
    hidden.parent.mkdir()
    hidden.write_text("raise ModuleNotFoundError(\"No module named 'coredis'\", name='coredis')")
    front = Server(tmp_path / "front", engine=nobody(), under=("env", f"PYTHONPATH={hidden.parent}"))
    front.launch()
    assert front.wait() == 1
    assert "pip install 'holdfast[cluster]'" in last_line(front)
    assert "pip install '.[cluster]'" in last_line(front)
    assert "Traceback" not in front.log
