"""The socket of a client, as the door's epoll and its clock see it: what becomes possible, and what has taken too long.

A channel has no task: the door calls `on_ready` when the kernel has something to say, and `Timers` call `on_deadline`.
What is done then is for the `Connection` that is built on it.

The rules that hold here; the codes group faults as in docs/testing.md:

- E2: a client that hangs up, also with half of the connection, is gone. The kernel reports that beside unread bytes,
  and is always asked for it: so it is seen at once, whatever is pipelined.
- F13: a defect in what is called here is logged, and costs one connection; so does a kernel that has no memory to watch
  its socket with (B6).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import select
import socket
import sys
import termios
from abc import ABC, abstractmethod
from collections.abc import Callable

from api.door.shared import Shared
from api.http.sockets import end_stalled, peer_of

_logger = logging.getLogger("holdfast.http")

READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

LOOKS = 6
"""How often a client that reads slowly is looked at in the time that it has: what it acknowledged nobody tells us."""

_INT_BYTES = 4
"""Of a C int, as ioctl fills it in."""

TO_READ, TO_WRITE, TO_WAIT = select.EPOLLRDHUP | READABLE, select.EPOLLRDHUP | WRITABLE, select.EPOLLRDHUP
"""What the kernel is asked to tell of."""


class Channel(ABC):
    """A socket that is watched.

    Args:
        shared: with all connections of the door.
        client: the accepted socket, not blocking.
        forget: called with the descriptor when it closes.

    Raises:
        OSError: the kernel cannot watch it.

    Attributes:
        shared: this.
        fd: descriptor of the socket.
        deadline: when to look at it again, in trio's time.
        timer: when `Timers` do; no later than at the deadline.
    """

    __slots__ = (
        "_acknowledged_bytes",
        "_forget",
        "_looks_itself",
        "_open",
        "_progressed_s",
        "_socket",
        "_watched",
        "deadline",
        "fd",
        "shared",
        "timer",
    )

    def __init__(self, shared: Shared, client: socket.socket, forget: Callable[[int], None]) -> None:
        self.shared = shared
        self.fd = client.fileno()
        self.deadline = math.inf
        self.timer = math.inf
        self._socket = client
        self._forget = forget
        self._open = True
        self._watched = TO_READ
        self._acknowledged_bytes = 0
        self._progressed_s = -math.inf
        self._looks_itself = False  # and not the kernel, whether the client makes progress
        shared.epoll.register(self.fd, TO_READ)

    def on_ready(self, events: int) -> None:
        """Does what the kernel says can be done.

        Args:
            events: of epoll.
        """
        try:
            if events == READABLE:  # as nearly always
                self._on_readable()
                return
            if events & GONE:
                self.close()
                return
            if events & WRITABLE:
                self._on_writable()
            if events & READABLE and self._open:
                self._on_readable()
        except Exception:
            self.fail()

    def peer(self) -> str:
        """The address of the client, for the log."""
        return peer_of(self._socket)

    @abstractmethod
    def on_deadline(self) -> None:
        """Does what is due when `deadline` has passed."""

    def fail(self) -> None:
        """Gives the client up over a defect; to be called where the exception is."""
        _logger.exception("a connection failed")
        self.close()

    def close(self) -> None:
        """Closes at once: the client is gone, or has used up its time."""
        if not self._open:
            return
        self._open = False
        self.deadline = math.inf
        self.shared.timers.disarm(self)
        with contextlib.suppress(OSError):
            self.shared.epoll.unregister(self.fd)
        self.shared.unsent.forget(self)
        self.shared.ahead.forget(self)
        self._forget(self.fd)
        self._socket.close()
        self._on_closed()

    # For the connection

    @abstractmethod
    def _on_readable(self) -> None:
        """The kernel has bytes, or the end."""

    @abstractmethod
    def _on_writable(self) -> None:
        """The kernel has room again."""

    @abstractmethod
    def _on_closed(self) -> None:
        """The client is gone."""

    def _receive(self, bytes_max: int) -> bytes:
        """Receives what is there: nothing, too, when it was a false alarm. Behind the last byte it closes."""
        try:
            data = self._socket.recv(bytes_max)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:
            data = b""
        if not data:
            self.close()
        elif self._looks_itself:
            self._look_itself(looks=False)
        return data

    def _look_itself(self, *, looks: bool) -> None:
        """Looks itself whether the client makes progress, from when bytes are unsent to its next request."""
        self._looks_itself = looks
        with contextlib.suppress(OSError):  # it is gone already
            end_stalled(self._socket, by_kernel=not looks)

    def _unacknowledged_bytes(self) -> int:
        """Counts the bytes that are the kernel's, and that the client's side has not got yet."""
        try:
            return int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(_INT_BYTES)), sys.byteorder)
        except OSError:
            return 0

    def _watch(self, events: int) -> None:
        """Asks the kernel for other events; closes when it cannot."""
        if events != self._watched and self._open:
            self._watched = events
            try:
                self.shared.epoll.modify(self.fd, events)
            except OSError as error:
                _logger.warning("a connection was closed, because the kernel cannot watch it: %s", error)
                self.close()

    def _wait(self, seconds: float) -> None:
        """Sets the deadline."""
        if not self._open:
            return
        timers = self.shared.timers
        self.deadline = deadline = timers.now + seconds
        if deadline < self.timer:
            timers.arm(self, deadline)

    def _wait_for_progress(self, handed_bytes: int) -> None:
        """Sets the deadline of a client that has bytes unsent; closes when it got nothing for too long.

        The kernel's buffer may keep a slow client busy for minutes, and takes nothing more meanwhile.

        Args:
            handed_bytes: that the kernel has taken; only what changes in it matters.
        """
        if not self._open:
            return
        if not self._looks_itself:
            self._look_itself(looks=True)
        now, time_s = self.shared.timers.now, self.shared.settings.send_timeout_s
        acknowledged_bytes = handed_bytes - self._unacknowledged_bytes()
        if acknowledged_bytes != self._acknowledged_bytes:
            self._acknowledged_bytes = acknowledged_bytes
            self._progressed_s = now
        left_s = self._progressed_s + time_s - now
        if left_s > 0:
            self._wait(min(left_s, time_s / LOOKS))
        else:
            self.close()

    def _end(self) -> bool:
        """Ends our side; the client is to end its own. Returns False when it is gone.

        Closing over bytes that were not read resets the connection, and the client loses the answer.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return False
        self._watch(TO_READ)
        return self._open
