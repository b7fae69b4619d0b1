"""The listening sockets: new clients come in by them, as long as there are descriptors.

- B6: clients do not get the last descriptors: those beyond are guests (guests.py), one in a turn, so that each has its
  own. When there are no descriptors at all, or no memory for clients in the kernel, nobody is accepted for a while; the
  others are served.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import select
import socket
from collections.abc import Callable, Sequence

from api.door.guests import GUESTS_MAX
from api.door.shared import Shared
from api.http.sockets import spread_probes

_logger = logging.getLogger("holdfast.http")

ACCEPT_MAX = 64
"""Clients accepted in one turn."""

DESCRIPTORS_KEPT = 256
"""That clients do not get: the log needs some, and so do checkpoints, and guests."""

_CLIENTS = {
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENONET,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EPROTO,
}
"""Errors of accept(2) that are those of one client's connection: the next may be in order."""

_WANT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC}
"""What the kernel says when it has no more for any client."""


def descriptors_for_clients() -> tuple[int, int]:
    """How many clients may be served, and how many guests beside them: half of all, where there are few."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(most - DESCRIPTORS_KEPT, most // 2), min(GUESTS_MAX, max(1, most // 16))


class Acceptor:
    """Accepts clients.

    Args:
        listeners: bound, tuned, not blocking.
        shared: its epoll and its clock are used.
        admit: called with the socket of each client, not blocking; says whether others may follow in this turn. OSError
            says that it is gone already.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        shared: Shared,
        admit: Callable[[socket.socket], bool],
    ) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._shared = shared
        self._admit = admit
        self._accepting = False

    def open(self) -> None:
        """Accepts clients, again after a rest; harmless when it does already."""
        if self._accepting:
            return
        self._accepting = True
        try:
            for fd in self._listeners:
                with contextlib.suppress(FileExistsError):
                    self._shared.epoll.register(fd, select.EPOLLIN)
        except OSError as error:
            self._rest(error)

    def close(self) -> None:
        """Accepts nobody any more."""
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    def listens_on(self, fd: int) -> bool:
        """Whether a descriptor is that of a listening socket."""
        return fd in self._listeners

    def accept(self, fd: int) -> None:
        """Admits clients who wait, unless it rests, or was closed since they knocked.

        Args:
            fd: of the listening socket that they wait at.
        """
        listener = self._listeners.get(fd)
        if listener is None:
            return
        for _ in range(ACCEPT_MAX if self._accepting else 0):
            try:
                client, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _CLIENTS:
                    continue
                self._rest(error)
                return
            try:
                client.setblocking(False)
                spread_probes(client)
                if not self._admit(client):
                    return
            except OSError as error:
                client.close()
                if error.errno in _WANT:  # else it is gone already
                    self._rest(error)
                    return

    def _rest(self, error: OSError) -> None:
        """Accepts nobody until the next `open`: nothing else would take the error away."""
        self._accepting = False
        for fd in self._listeners:
            with contextlib.suppress(OSError):
                self._shared.epoll.unregister(fd)
        _logger.error("cannot accept connections: %s", error)
