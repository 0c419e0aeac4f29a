"""A TCP proxy that can do to a connection what networks do: swallow everything, or cut it."""

from __future__ import annotations

import contextlib
import socket
import threading


class TcpProxy:
    """Passes bytes between clients and a port of 127.0.0.1, while it is let.

    with TcpProxy(server.port) as proxy:
        client = resultd.Client(f"resultd://127.0.0.1:{proxy.port}")
        proxy.blackhole()      # connections stay open, nothing arrives any more
        proxy.cut()            # connections are reset
        proxy.heal()           # new connections work again
    """

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self._black = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> TcpProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.close()
        self.cut()

    def blackhole(self) -> None:
        """Swallow what the connections that are open now send, in both directions."""
        with self._lock:
            self._black = True
            for pair in self._pairs:
                _swallowed.update(map(id, pair))

    def heal(self) -> None:
        """Pass on the bytes of connections to come; those swallowed stay so."""
        self._black = False

    def cut(self) -> None:
        """Close every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                with self._lock:
                    self.accepted += 1
                    self._pairs.append((near, far))
                    if self._black:
                        _swallowed.update((id(near), id(far)))
                _start(near, far)
                _start(far, near)


# Sockets whose bytes go nowhere, by identity.
_swallowed: set[int] = set()


def _start(source: socket.socket, sink: socket.socket) -> None:
    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if id(source) not in _swallowed:
                sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
