"""Certificates: what is taken, and what is refused with the remedy."""

from __future__ import annotations

import base64
import contextlib
import functools
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from resultd_server import tls
from resultd_server.config import ConfigError
from resultd_server.tls import Certificates, Pem
from tests.support.access import Pair, put, self_signed, utc

CA = trustme.CA()


def certificates(pair: Pair, client_ca: Path | None = None) -> Certificates:
    """Those of a pair of files."""
    return Certificates(pair.chain, pair.key, client_ca)


def test_a_pair_that_goes_together_is_taken(tmp_path: Path) -> None:
    """And so is the one that replaces it: what is read differs."""
    made = certificates(put(CA.issue_cert("localhost"), tmp_path))
    first = made.read()
    made.take(first)
    assert made.credentials() is not None
    put(CA.issue_cert("localhost", key_type=trustme.KeyType.RSA), tmp_path)
    assert made.read() != first
    made.take(made.read())


def test_a_handshake_is_told_of_what_is_new_once(tmp_path: Path) -> None:
    """gRPC asks at each handshake: it is given what changed since it was last asked."""
    made = certificates(put(CA.issue_cert("localhost"), tmp_path))
    made.take(made.read())
    made.credentials()
    assert made._fetch() is None
    made.take(made.read())
    assert made._fetch() is not None
    assert made._fetch() is None


def mismatched(pair: Pair) -> None:
    """Another's key."""
    pair.key.write_bytes(CA.issue_cert("x").private_key_pem.bytes())


def locked(pair: Pair) -> None:
    """A key with a password."""
    key = load_pem_private_key(pair.key.read_bytes(), None)
    secret = BestAvailableEncryption(b"geheim")
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))


def swapped(pair: Pair) -> None:
    """Each in the other's place."""
    chain, key = pair.chain.read_bytes(), pair.key.read_bytes()
    pair.chain.write_bytes(key)
    pair.key.write_bytes(chain)


def damaged(pair: Pair, before: bytes, after: int) -> None:
    """Another byte behind those."""
    found = x509.load_pem_x509_certificate(pair.chain.read_bytes())
    der = bytearray(found.public_bytes(Encoding.DER))
    der[der.index(before) + len(before)] = after
    lines = b"-----BEGIN CERTIFICATE-----\n%s-----END CERTIFICATE-----\n"
    pair.chain.write_bytes(lines % base64.encodebytes(der))


P_256 = bytes.fromhex("06082a8648ce3d030107")


def off_the_curve(pair: Pair) -> None:
    """A public key that is no point: of one kind that there is not."""
    damaged(pair, P_256 + bytes.fromhex("034200"), 9)


def of_no_curve(pair: Pair) -> None:
    """A curve that there is not."""
    damaged(pair, P_256[:-1], 99)


def of_version_113(pair: Pair) -> None:
    """Nobody's."""
    damaged(pair, bytes.fromhex("a0030201"), 112)


def signed_by_nothing(pair: Pair) -> None:
    """An issuer's name of no kind of text, which is parsed by who looks at the name."""
    damaged(pair, bytes.fromhex("060355040a"), 0)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (mismatched, r"server\.key is not that of the certificate .*server\.pem"),
        (locked, r"server\.key needs a password.*openssl pkey"),
        (swapped, r"server\.pem holds no certificate in PEM"),
        (lambda pair: pair.key.write_bytes(b""), r"server\.key holds no private key in PEM"),
        (lambda pair: pair.chain.write_bytes(b"\0"), r"server\.pem holds no certificate in PEM"),
        (
            lambda pair: pair.chain.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n"),
            r"holds no certificate",
        ),
        (lambda pair: pair.chain.unlink(), r"server\.pem cannot be read: No such file"),
        (lambda pair: pair.key.unlink(), r"server\.key cannot be read: No such file"),
        (off_the_curve, r"server\.pem has a public key that makes no sense"),
        (of_no_curve, r"server\.pem has a public key that makes no sense"),
        (of_version_113, r"server\.pem holds no certificate"),
        (signed_by_nothing, r"gRPC cannot load .*server\.pem and .*server\.key: a byte"),
    ],
    ids=[
        "mismatched", "locked", "swapped", "no key", "no chain", "cut", "chain gone", "key gone",
        "off the curve", "of no curve", "of version 113", "signed by nothing",
    ],
)  # fmt: skip
def test_files_that_cannot_work_are_refused(tmp_path: Path, spoil: object, sentence: str) -> None:
    """With the file's name and what to do; the contents of a key are never shown."""
    pair = put(CA.issue_cert("localhost"), tmp_path)
    made = certificates(pair)
    assert callable(spoil)
    spoil(pair)
    with pytest.raises(ConfigError, match=sentence) as caught:
        made.take(made.read())
    assert "PRIVATE KEY-----\n" not in str(caught.value)


def descriptors() -> int:
    """How many are open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_grpc_cannot_load_is_asked_of_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes lines of its own about that; the same bytes are refused again without it, others
    are tried, and no descriptor stays.
    """
    asked: list[int] = []
    loads = tls._loads

    def counted(made: Any) -> bool:
        asked.append(1)
        return loads(made)

    monkeypatch.setattr(tls, "_loads", counted)
    good = put(CA.issue_cert("localhost"), tmp_path)
    made = certificates(good)
    made.take(made.read())
    taken = made.read()
    signed_by_nothing(good)
    before = descriptors()
    for _ in range(3):
        with pytest.raises(ConfigError, match="gRPC cannot load"):
            made.take(made.read())
    assert len(asked) == 2
    made.take(taken)
    assert len(asked) == 3
    assert descriptors() <= before


def test_no_port_is_no_fault_of_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gRPC has nothing to listen on, nothing is known of the certificate: it is taken."""
    monkeypatch.setattr(tls, "_NOWHERE", "unix:/nowhere/at/all")
    leaf = leaf_of_this_run()
    pem = Pem(leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes(), None)
    Certificates(Path("server.pem"), Path("server.key")).take(pem)


@pytest.mark.parametrize(
    "make",
    [
        ed25519.Ed25519PrivateKey.generate,
        ed448.Ed448PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP521R1()),
        lambda: ec.generate_private_key(ec.SECP224R1()),
        lambda: ec.generate_private_key(ec.SECP256K1()),
        lambda: rsa.generate_private_key(65_537, 1024),
        lambda: dsa.generate_private_key(2048),
    ],
    ids=["Ed25519", "Ed448", "P-521", "P-224", "secp256k1", "RSA 1024", "DSA"],
)
def test_a_kind_of_key_that_clients_do_not_take_is_refused(make: Callable[[], Any]) -> None:
    """gRPC serves some of them, and its own clients cannot connect; the sentence says what can."""
    chain, key = self_signed(make())
    with pytest.raises(ConfigError, match=r"ECDSA and P-256 or P-384, or with RSA of 2048 bits"):
        Certificates(Path("server.pem"), Path("server.key")).take(Pem(chain, key, None))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(places=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4))
def test_no_damage_is_more_than_a_refusal(places: list[tuple[int, int]]) -> None:
    """Whatever bytes of a certificate are others, it is taken or refused with a sentence."""
    leaf = leaf_of_this_run()
    der = bytearray(ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode()))
    for place, byte in places:
        der[place % len(der)] = byte
    made = Certificates(Path("server.pem"), Path("server.key"))
    chain = ssl.DER_cert_to_PEM_cert(bytes(der)).encode()
    with contextlib.suppress(ConfigError):
        made.take(Pem(chain, leaf.private_key_pem.bytes(), None))


@functools.cache
def leaf_of_this_run() -> trustme.LeafCert:
    """Made once."""
    return CA.issue_cert("localhost")


def test_a_certificate_out_of_its_time_is_refused(tmp_path: Path) -> None:
    """Expired, or of tomorrow."""
    old = CA.issue_cert("localhost", not_before=utc(-120), not_after=utc(-60))
    early = CA.issue_cert("localhost", not_before=utc(3600))
    for leaf, sentence in ((old, "has expired on"), (early, "is not valid before")):
        made = certificates(put(leaf, tmp_path))
        with pytest.raises(ConfigError, match=sentence):
            made.take(made.read())


def test_an_authority_for_clients_has_to_be_one(tmp_path: Path) -> None:
    """A file without a certificate would let nobody in, or anybody: refused."""
    file = tmp_path / "clients.pem"
    made = certificates(put(CA.issue_cert("localhost"), tmp_path), file)
    file.write_text("")
    with pytest.raises(ConfigError, match=r"clients\.pem holds no certificate"):
        made.take(made.read())
    CA.cert_pem.write_to_path(file)
    made.take(made.read())
