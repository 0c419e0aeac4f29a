"""Certificates: read, checked, and exchanged while the server runs.

gRPC asks for the certificates in force at every handshake; connections that are open keep the
ones they began with. TLS 1.2 and 1.3, HTTP/2 by ALPN: as gRPC has it, there is nothing to set.
"""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from resultd_server.config import ConfigError, bytes_of

CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}
"""With gRPC 1.85 Ed25519 and P-521 are served, but its own clients, those of Python, C++ and Ruby,
do not offer them (NO_COMMON_SIGNATURE_ALGORITHMS). P-224, secp256k1, Brainpool's curves, Ed448 and
DSA are not even served."""

_NOWHERE = "127.0.0.1:0"
RSA_BITS_MIN = 2048  # OpenSSL's clients refuse less


class Pem(NamedTuple):
    """The bytes of the files."""

    chain: bytes
    key: bytes
    client_ca: bytes | None


class Certificates:
    """A server's certificate chain and key, and who signs its clients'."""

    what = "certificates"

    def __init__(self, chain: Path, key: Path, client_ca: Path | None = None) -> None:
        self._chain = chain
        self._key = key
        self._client_ca = client_ca
        self._not_loaded: Pem | None = None
        self._current: grpc.ServerCertificateConfiguration | None = None
        self._handed: grpc.ServerCertificateConfiguration | None = None
        #: When the certificate in force expires, in seconds since 1970.
        self.expires_s = 0.0

    def read(self) -> Pem:
        """The files as they are now. Raises ConfigError."""
        return Pem(
            bytes_of(self._chain),
            bytes_of(self._key),
            None if self._client_ca is None else bytes_of(self._client_ca),
        )

    def take(self, pem: Pem) -> None:
        """Has the next handshakes use these. Raises ConfigError for those that cannot work."""
        ends = self._check(pem, datetime.datetime.now(datetime.timezone.utc))
        made = grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.client_ca)
        # Asked once: gRPC writes lines of its own about what it cannot load.
        if pem == self._not_loaded or not _loads(made):
            self._not_loaded = pem
            raise ConfigError(
                f"gRPC cannot load {' and '.join(map(str, self._files))}: a byte may be damaged, "
                "put them there anew."
            )
        self._current = made
        self.expires_s = ends.timestamp()

    def credentials(self) -> grpc.ServerCredentials:
        """For a port, once something was taken."""
        assert self._current is not None
        self._handed = self._current
        fetch: Any = self._fetch  # None means "as before": its types do not say so
        return grpc.dynamic_ssl_server_credentials(
            self._current, fetch, require_client_authentication=self._client_ca is not None
        )

    @property
    def _files(self) -> list[Path]:
        return [self._chain, self._key, *([self._client_ca] if self._client_ca else [])]

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        # In a thread of gRPC's, at every handshake; None: as before. Two at once may both be
        # told, which harms nobody.
        current = self._current
        if current is self._handed:
            return None
        self._handed = current
        return current

    def _check(self, pem: Pem, now: datetime.datetime) -> datetime.datetime:
        leaf = _leaf(self._chain, pem.chain)
        for moment, early, word in (
            (leaf.begins, True, "is not valid before"),
            (leaf.ends, False, "has expired on"),
        ):
            if (now < moment) is early:
                raise ConfigError(
                    f"The certificate {self._chain} {word} {moment:%Y-%m-%d %H:%M:%S} UTC: get a "
                    "new one, or mend the clock."
                )
        if not _common(leaf.public):
            raise ConfigError(
                f"The certificate {self._chain} has a key that clients do not take: make one with "
                f"ECDSA and {' or '.join(CURVES.values())}, or with RSA of {RSA_BITS_MIN} bits or "
                "more."
            )
        if _bytes(_key(self._key, pem.key).public_key()) != _bytes(leaf.public):
            raise ConfigError(
                f"The key {self._key} is not that of the certificate {self._chain}: name two that "
                "were made together."
            )
        if self._client_ca is not None and pem.client_ca is not None:
            _chain(self._client_ca, pem.client_ca)
        return leaf.ends


class _Leaf(NamedTuple):
    """What is looked at of a server's certificate."""

    begins: datetime.datetime
    ends: datetime.datetime
    public: Any


def _chain(file: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion):
        raise ConfigError(
            f"{file} holds no certificate in PEM: it begins with '-----BEGIN CERTIFICATE-----'."
        ) from None


def _leaf(file: Path, pem: bytes) -> _Leaf:
    leaf = _chain(file, pem)[0]
    try:
        # Parsed only now: a byte that is damaged may have gone unseen so far.
        return _Leaf(leaf.not_valid_before_utc, leaf.not_valid_after_utc, leaf.public_key())
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            f"The certificate {file} has a public key that makes no sense: put it there anew."
        ) from None


def _key(file: Path, pem: bytes) -> Any:
    try:
        return load_pem_private_key(pem, None)
    except TypeError:
        raise ConfigError(
            f"The key {file} needs a password, and nobody is there to give it: decrypt it with "
            "`openssl pkey`, and keep others from reading it."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{file} holds no private key in PEM: it begins with '-----BEGIN PRIVATE KEY-----'."
        ) from None


def _loads(made: grpc.ServerCertificateConfiguration) -> bool:
    """Whether gRPC can use this. Takes 3 ms.

    Of 3,000 certificates with another byte in them 214 passed all that is looked at here, and not
    BoringSSL: in a handshake gRPC would stay with the old one without a word.
    """
    server = grpc.server(ThreadPoolExecutor(1))  # nobody is to find it, and nothing is served
    try:
        server.add_secure_port(_NOWHERE, grpc.dynamic_ssl_server_credentials(made, lambda: made))
    except RuntimeError:
        return not _there_are_ports(server)
    else:
        return True
    finally:
        server.start()  # one that never was is not taken down, and keeps its descriptors
        server.stop(None).wait()


def _there_are_ports(server: grpc.Server) -> bool:
    """Whether it was not for want of descriptors, say: that is no certificate's fault."""
    try:
        server.add_insecure_port(_NOWHERE)
    except RuntimeError:
        return False
    return True


def _common(public: Any) -> bool:
    """Whether gRPC can serve a certificate with this key, and gRPC's own clients take it."""
    if isinstance(public, rsa.RSAPublicKey):
        return public.key_size >= RSA_BITS_MIN
    return isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in CURVES


def _bytes(public: Any) -> bytes:
    found: bytes = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return found
