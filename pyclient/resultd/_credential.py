"""The token that calls carry. One from a file is read again when the server refuses it."""

from __future__ import annotations

import threading

from resultd import _files
from resultd._url import Url
from resultd.errors import AuthenticationError

FILE_BYTES_MAX = 64 * 1024  # of a token's file; a server takes 8 KiB of metadata
Metadata = tuple[tuple[str, str], ...]


class Credential:
    """What every call of a client carries: `metadata`, once `load` was called."""

    def __init__(self, url: Url) -> None:
        self._url = url
        self._lock = threading.Lock()
        self.metadata: Metadata = ()

    def load(self) -> None:
        """Read the token anew.

        Raises:
            AuthenticationError: its file cannot be read, or holds none.
        """
        self.metadata = call_metadata(self._url)

    def renew(self, refused: Metadata) -> bool:
        """Say whether there is another token than the one refused: then the call may go again.

        So a token is tried once: a file that does not change ends the tries.
        """
        if not self._url.token_file:
            return False
        with self._lock:
            if refused == self.metadata:
                try:
                    self.load()
                except AuthenticationError:
                    return False
            return refused != self.metadata


def call_metadata(url: Url) -> Metadata:
    """Return what every call carries: the namespace, and the token if there is one.

    Raises:
        AuthenticationError: the token's file cannot be read, or holds none.
    """
    metadata = [("resultd-namespace", url.namespace)]
    token = _read(url.token_file) if url.token_file else url.token
    if token:
        metadata.append(("authorization", f"Bearer {token}"))
    return tuple(metadata)


def _read(file: str) -> str:
    try:
        token = _files.read(file, FILE_BYTES_MAX).decode("ascii").strip()
    except OSError as error:
        raise _unusable(f"the token file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        token = ""
    if not token.isprintable() or not token or " " in token:
        raise _unusable(f"the token file {file} holds no token: one word, and nothing else")
    return token


def _unusable(sentence: str) -> AuthenticationError:
    error = AuthenticationError(sentence)
    error.code = "UNAUTHENTICATED"  # so that no stream is opened again for it
    return error
