"""A TCP proxy that does to connections what networks do to them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing sends a reset, not an end."""


class TcpProxy:
    """Passes bytes between clients and a port of 127.0.0.1, while it is let.

    with TcpProxy(server.port) as proxy:
        client = resultd.Client(f"resultd://127.0.0.1:{proxy.port}")
        proxy.blackhole()      # connections stay open, nothing arrives any more
        proxy.heal()           # new connections work again
        proxy.cut()            # connections are closed
        proxy.reset()          # the same with RST instead of FIN
        proxy.half_close()     # towards the clients only: they hear an end, and may go on sending
        proxy.delay_s = 0.05   # every piece waits so long, in both directions
        proxy.piece_bytes = 1  # pieces are so small at most
    """

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self.delay_s = 0.0
        self.piece_bytes = 65_536
        self._black = False
        self._connections: list[_Connection] = []
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
            for connection in self._connections:
                connection.swallows = True

    def heal(self) -> None:
        """Pass on the bytes of connections to come; those swallowed stay so."""
        self._black = False
        self.delay_s, self.piece_bytes = 0.0, 65_536

    def cut(self) -> None:
        """Close every connection."""
        for connection in self._taken():
            connection.close()

    def reset(self) -> None:
        """Reset every connection, on both sides."""
        for connection in self._taken():
            connection.reset()

    def half_close(self) -> None:
        """Tell every client that nothing more comes; what it sends still arrives."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.near.shutdown(socket.SHUT_WR)

    def _taken(self) -> list[_Connection]:
        with self._lock:
            taken, self._connections = self._connections, []
        return taken

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = _Connection(near, far)
                with self._lock:
                    self.accepted += 1
                    connection.swallows = self._black
                    self._connections.append(connection)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(
                        target=self._pump, args=(connection, source, sink), daemon=True
                    ).start()

    def _pump(self, connection: _Connection, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if not connection.swallows:
                    self._pass_on(data, sink)
            if not connection.was_reset:  # a FIN would be an end like any other
                sink.shutdown(socket.SHUT_WR)
        with self._lock:
            connection.directions -= 1
            if connection.directions == 0 and connection in self._connections:
                self._connections.remove(connection)
                connection.close()

    def _pass_on(self, data: bytes, sink: socket.socket) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        while data:
            size_bytes = self.piece_bytes  # read anew: a connection may heal in the middle
            sink.sendall(data[:size_bytes])
            data = data[size_bytes:]


class _Connection:
    """Both sockets of one connection."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.swallows = False
        self.directions = 2
        self.was_reset = False

    def close(self) -> None:
        """Close both sides, whoever is reading them."""
        self._end(socket.SHUT_RDWR)

    def reset(self) -> None:
        """The same, so that both peers hear of a reset."""
        self.was_reset = True
        for end in (self.near, self.far):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._end(socket.SHUT_RD)

    def _end(self, how: int) -> None:
        for end in (self.near, self.far):
            with contextlib.suppress(OSError):
                end.shutdown(how)  # ends a read under way: it would keep the socket
            end.close()
