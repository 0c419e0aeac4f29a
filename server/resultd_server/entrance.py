"""Who can get in, put together from the settings: TLS, the auth file, and both kept fresh.

entrance = Entrance(settings)
entrance.open()                      # reads the files, or says what is wrong with them
handlers(…, entrance.door.identify)  # checks every call
port = entrance.add_port(server)
for name, work in entrance.work().items(): …  # run until the end
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import grpc
import structlog

from resultd_server.access import reload
from resultd_server.background import Work
from resultd_server.config import Settings
from resultd_server.interceptors.auth import Gate, OpenDoor

if TYPE_CHECKING:
    from resultd_server.access.authority import Authority, Contents
    from resultd_server.tls import Certificates, Pem

T = TypeVar("T")
log = structlog.get_logger("resultd.access")


class Entrance:
    """The door and the port. `door` is complete once `open` has returned."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.door: OpenDoor | Gate = OpenDoor()
        self._authority: tuple[Authority, Contents] | None = None
        self._certificates: tuple[Certificates, Pem] | None = None
        self._changed = asyncio.Event()
        #: Looks that found what could not be used, by what is followed.
        self.refused: Counter[str] = Counter()

    def open(self) -> None:
        """Reads what the settings name. Raises ConfigError."""
        said = self._settings
        # Imported only by who needs them: cryptography and PyJWT take a tenth of a start.
        if said.tls_cert is not None and said.tls_key is not None:
            from resultd_server.tls import Certificates

            certificates = Certificates(said.tls_cert, said.tls_key, said.tls_client_ca)
            pem = certificates.read()
            certificates.take(pem)
            self._certificates = certificates, pem
        if said.auth_file is not None:
            from resultd_server.access.authority import Authority

            authority = Authority(said.auth_file, certificates=said.tls_client_ca is not None)
            contents = authority.read()
            authority.take(contents)
            self._authority = authority, contents
            self.door = Gate(authority)

    def add_port(self, server: grpc.aio.Server) -> int:
        """Has the server listen; the port. Raises RuntimeError."""
        said = self._settings
        if self._certificates is None:
            port = server.add_insecure_port(said.listen)
        else:
            port = server.add_secure_port(said.listen, self._certificates[0].credentials())
        if not said.loopback and not (self._certificates and said.authenticates):
            log.warning("insecure: others can read, or use, what is here", listen=said.listen)
        return port

    @property
    def expires_s(self) -> float | None:
        """When the server's certificate expires, in seconds since 1970; None without one."""
        return None if self._certificates is None else self._certificates[0].expires_s

    def _follow(
        self, files: reload.Followed[T], seen: T, taken: Callable[[], None] = lambda: None
    ) -> Work:
        self.refused[files.what] = 0

        def refused() -> None:
            self.refused[files.what] += 1

        return partial(reload.follow, files, seen, taken, refused)

    def work(self) -> dict[str, Work]:
        """What has to run while the server does, by name."""
        found: dict[str, Work] = {}
        if self._certificates is not None:
            found["follow-certificates"] = self._follow(*self._certificates)
        if self._authority is not None:
            found["follow-auth-file"] = self._follow(*self._authority, self._changed.set)
        if isinstance(self.door, Gate):
            found["watch-credentials"] = partial(self.door.watch, self._changed)
        return found
