"""Blocking connections that send bytes and match replies, and the small pool that threads share."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hiredis
import redis

from featurestore.online.frames import command
from featurestore.online.topology import Access, Endpoint

__all__ = ["Link", "Links", "RefusedError"]

_CHUNK = 1 << 18
_IDLE = 8


class RefusedError(redis.ResponseError):
    """A server answered with an error; its first word says which."""

    @property
    def kind(self) -> str:
        """The first word of the answer."""
        return str(self).partition(" ")[0]


class Link:
    """One connection to one server. Any failure ends it, so that no reply can be taken for another's."""

    def __init__(self, endpoint: Endpoint, access: Access, name: str = "") -> None:
        self.endpoint = endpoint
        self._reader = hiredis.Reader()
        try:
            self._socket = _opened(endpoint, access)
        except TimeoutError as reason:
            raise redis.TimeoutError(f"no connection to {endpoint} in {access.timeout:g} s") from reason
        except OSError as reason:
            raise redis.ConnectionError(f"{endpoint}: {reason}") from reason
        greeting = access.greeting(name)
        try:
            replies = self.exchange(b"".join([command(*parts) for parts in greeting]), len(greeting))
            raise_refusal(replies)
        except BaseException:
            self.close()
            raise

    def exchange(self, payload: bytes, replies: int) -> list[Any]:
        """Send commands and return their replies; refusals are among them as `hiredis.ReplyError`."""
        self.send(payload)
        return self.receive(replies)

    def send(self, payload: bytes) -> None:
        """Send commands."""
        with self._ending():
            self._socket.sendall(payload)

    def receive(self, count: int) -> list[Any]:
        """Return the next replies."""
        replies: list[Any] = []
        reader, pending = self._reader, False  # False: hiredis has no whole reply yet
        with self._ending():
            while len(replies) < count:
                if (reply := reader.gets()) is not pending:
                    replies.append(reply)
                elif chunk := self._socket.recv(_CHUNK):
                    reader.feed(chunk)
                else:
                    raise ConnectionError("the server hung up")
        return replies

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as reason:
            self.close()
            raise redis.TimeoutError(f"no answer of {self.endpoint} in {self._socket.gettimeout()} s") from reason
        except (OSError, hiredis.ProtocolError) as reason:
            self.close()
            raise redis.ConnectionError(f"{self.endpoint}: {reason}") from reason
        except BaseException:  # a reply is under way that nobody will take
            self.close()
            raise

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """End it."""
        self._socket.close()


def raise_refusal(replies: list[Any]) -> None:
    """Raise the first refusal among replies."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise RefusedError(str(reply))


def _opened(endpoint: Endpoint, access: Access) -> socket.socket:
    if endpoint.path:
        opened = socket.socket(socket.AF_UNIX)
        opened.settimeout(access.timeout)
        try:
            opened.connect(endpoint.path)
        except BaseException:
            opened.close()
            raise
        return opened
    opened = socket.create_connection((endpoint.host, endpoint.port), access.timeout)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if access.tls is None:
        return opened
    try:
        return access.tls.wrap_socket(opened, server_hostname=endpoint.host)
    except BaseException:
        opened.close()
        raise


class Links:
    """Idle connections by endpoint. A thread takes one out and puts it back; a child process starts with none."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._lock = threading.Lock()
        self._idle: dict[Endpoint, list[Link]] = {}
        self._owner = os.getpid()

    def take(self, endpoint: Endpoint) -> Link:
        """Return a connection, an idle one if there is one."""
        with self._lock:
            if self._owner != os.getpid():
                self._idle, self._owner = {}, os.getpid()
            idle = self._idle.get(endpoint)
            if idle:
                return idle.pop()
        return Link(endpoint, self.access)

    def give_back(self, link: Link) -> None:
        """Keep a connection that has no reply under way for the next who needs one."""
        with self._lock:
            idle = self._idle.setdefault(link.endpoint, [])
            if not link.is_closed and len(idle) < _IDLE:
                idle.append(link)
                return
        link.close()

    def forget(self, endpoint: Endpoint) -> None:
        """End the idle ones of an endpoint, since one of them has failed."""
        with self._lock:
            idle = self._idle.pop(endpoint, [])
        for link in idle:
            link.close()

    def close(self) -> None:
        """End the idle ones."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for links in idle.values():
            for link in links:
                link.close()
