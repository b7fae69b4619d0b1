"""The listening sockets: new clients come in by them, as long as there are descriptors.

- B6: clients do not get the last descriptors. When there are no more, or no memory for them in the kernel, nobody is
  accepted for a while; the others are served.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
from collections.abc import Callable, Sequence, Sized

from api.door.shared import Shared
from api.http.sockets import spread_probes

ACCEPT_MAX = 64
"""Clients accepted in one turn."""

DESCRIPTORS_KEPT = 256
"""That clients do not get: the log needs some, and each relayed request two, `GET /livez` among them."""

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


class Acceptor:
    """Accepts clients.

    Args:
        listeners: bound, tuned, not blocking.
        shared: its epoll and its clock are used.
        connections: that are open.
        admit: called with the socket of each client, not blocking; OSError says that it is gone already.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        shared: Shared,
        connections: Sized,
        admit: Callable[[socket.socket], None],
    ) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._shared = shared
        self._connections = connections
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
        """Admits clients who wait, unless it rests.

        Args:
            fd: of the listening socket that they wait at.
        """
        for _ in range(ACCEPT_MAX if self._accepting else 0):
            try:
                self._check_descriptors()
                client, _address = self._listeners[fd].accept()
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
                self._admit(client)
            except OSError as error:
                client.close()
                if error.errno in _WANT:  # else it is gone already
                    self._rest(error)
                    return

    def _check_descriptors(self) -> None:
        """Raises OSError when clients have all that they may have: half of them, where there are few."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if len(self._connections) >= max(most - DESCRIPTORS_KEPT, most // 2):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _rest(self, error: OSError) -> None:
        """Accepts nobody until the next `open`: nothing else would take the error away."""
        self._accepting = False
        for fd in self._listeners:
            with contextlib.suppress(OSError):
                self._shared.epoll.unregister(fd)
        self._shared.seldom.error("cannot accept connections: %s", error)
