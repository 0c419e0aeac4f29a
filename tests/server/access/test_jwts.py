"""JWTs: what is checked, with which key, and that nothing but a refusal comes of the rest."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import math
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from resultd_server.access import jwts
from resultd_server.access.jwts import Verifier
from resultd_server.access.roles import Role
from resultd_server.errors import CredentialExpired, CredentialInvalid
from tests.support.jwts import AUDIENCE, ISSUER, MAKERS, Issuer

ES = Issuer("ES256")
OTHER = Issuer("ES256")
SECRET = bytes(range(64))


def verifier(keys: Any = None, **more: Any) -> Verifier:
    """One that trusts ES, unless other keys are given."""
    keys = keys or jwts.public_key(ES.pem, ("ES256",))
    said = {"issuer": ISSUER, "audience": AUDIENCE, "claim": "resultd", "leeway_s": 0, **more}
    return Verifier(keys, **said)


def segment(value: object) -> str:
    """A part of a token."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", MAKERS)
def test_a_sound_token_says_who_and_where_and_how_long(algorithm: str) -> None:
    """sub, the roles' claim, exp and the leeway beyond; with every kind of key."""
    issuer = Issuer(algorithm)
    token = issuer.token(sub="me", resultd={"mine": "worker", "*": "reader"}, exp=60)
    found = verifier(jwts.public_key(issuer.pem, (algorithm,)), leeway_s=30).check(token)
    expires_s = jwt.decode(token, options={"verify_signature": False})["exp"] + 30
    assert (found.name, found.expires_s) == ("me", expires_s)
    assert (found.role_in("mine"), found.role_in("other")) == (Role.WORKER, Role.READER)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://login.example.or"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"exp": None},
        {"exp": "soon"},
        {"exp": math.inf},
        {"exp": math.nan},
        {"exp": 10**400},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"resultd": None},
        {"resultd": "admin"},
        {"resultd": {}},
        {"resultd": {"mine": "boss"}},
        {"resultd": {"Mine": "admin"}},
        {"nbf": 2**40},
        {"iat": 2**40},
    ],
    ids=repr,
)
def test_a_token_that_lacks_or_mistakes_a_claim_is_refused(claims: dict[str, Any]) -> None:
    """Well signed and still not for us: refused, without saying why."""
    with pytest.raises(CredentialInvalid):
        verifier().check(ES.token(**claims))


def test_one_of_several_audiences_is_enough() -> None:
    """As the standard has it."""
    assert verifier().check(ES.token(aud=["other", AUDIENCE])).name == "somebody"


def test_time_runs_out_after_the_leeway() -> None:
    """Expired is said as such: the holder did have a good token."""
    assert verifier(leeway_s=30).check(ES.token(exp=-10)).name == "somebody"
    with pytest.raises(CredentialExpired):
        verifier(leeway_s=30).check(ES.token(exp=-31))


def test_the_token_does_not_choose_its_algorithm() -> None:
    """No "none", an HMAC keyed with the public key, another's signature: all refused."""
    body = segment(jwt.decode(ES.token(), options={"verify_signature": False}))
    unsigned = f"{segment({'alg': 'none', 'typ': 'JWT'})}.{body}."
    head = f"{segment({'alg': 'HS256', 'typ': 'JWT'})}.{body}"
    mixed = f"{head}.{segment(hmac.digest(ES.pem, head.encode(), hashlib.sha256))}"
    header, _, rest = ES.token().partition(".")
    claimed = f"{segment({'alg': 'HS256'})}.{rest}"
    for token in (unsigned, mixed, claimed, OTHER.token(), f"{header}.{body}.", ""):
        with pytest.raises(CredentialInvalid):
            verifier().check(token)


def test_a_key_in_the_token_is_not_used() -> None:
    """jwk, jku and x5u in the header are the caller's words: nobody looks, nothing is fetched."""
    for headers in ({"jwk": OTHER.jwk()}, {"jku": "http://127.0.0.1:9/"}, {"x5u": "file:///x"}):
        with pytest.raises(CredentialInvalid):
            verifier().check(OTHER.token(headers=headers))


def key_set(*entries: dict[str, Any]) -> bytes:
    """A JWKS file."""
    return json.dumps({"keys": entries}).encode()


def test_a_key_set_is_asked_by_key_id() -> None:
    """The key the token names, and only that; with one key no name is needed."""
    both = key_set(ES.jwk(kid="1", alg="ES256"), OTHER.jwk(kid="2", use="sig"))
    several = verifier(jwts.key_set(both, ("ES256",)))
    assert several.check(ES.token(headers={"kid": "1"})).name == "somebody"
    assert several.check(OTHER.token(headers={"kid": "2"})).name == "somebody"
    for token in (ES.token(headers={"kid": "2"}), ES.token(headers={"kid": "3"}), ES.token()):
        with pytest.raises(CredentialInvalid):
            several.check(token)
    for entry in (ES.jwk(kid="1"), ES.jwk()):
        one = verifier(jwts.key_set(key_set(entry), ("ES256",)))
        assert one.check(ES.token()).name == "somebody"
    with pytest.raises(CredentialInvalid):
        verifier(jwts.key_set(key_set(ES.jwk(kid="1")), ("ES256",))).check(
            ES.token(headers={"kid": "2"})
        )


def test_keys_for_other_algorithms_are_left_aside() -> None:
    """Those for encryption, of another kind, or for an algorithm that was not named."""
    rsa_key = Issuer("RS256")
    said = key_set(
        ES.jwk(kid="1"),
        OTHER.jwk(kid="enc", use="enc"),
        rsa_key.jwk(kid="rsa"),
        OTHER.jwk(kid="other", alg="ES256K"),
    )
    assert set(jwts.key_set(said, ("ES256",))) == {"1"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"[]", "is no key set"),
        (b"{", "is no key set"),
        (b'{"keys": [7]}', "is no key set"),
        (b"[" * 100_000, "is no key set"),
        (key_set(), "holds no key for ES256"),
        (key_set(ES.jwk(use="enc")), "holds no key for ES256"),
        (key_set({"kty": "oct", "k": "AAAA", "kid": "s"}), "holds a secret"),
        (key_set({**ES.jwk(kid="1"), "d": "AAAA"}), "holds a secret"),
        (key_set(ES.jwk(kid="1"), OTHER.jwk(kid="1")), "several keys of the id '1'"),
        (key_set(ES.jwk(), OTHER.jwk()), "several keys of the id None"),
        (key_set({**ES.jwk(kid="1"), "x": "AAAA"}), "not sound"),
        (key_set({"kid": "1"}), "not sound"),
        (key_set({**ES.jwk(), "kid": ["1"]}), r"whose id \['1'\] is no text"),
        (key_set({**ES.jwk(), "kid": 1}), "whose id 1 is no text"),
        (key_set(ES.jwk(alg="none")), "not sound"),
        (key_set(ES.jwk(alg=["ES256"])), "not sound"),
    ],
    ids=[str(n) for n in range(16)],
)
def test_a_key_set_that_is_none_is_refused(text: bytes, sentence: str) -> None:
    """With a clause that goes behind the file's name."""
    with pytest.raises(ValueError, match=sentence):
        jwts.key_set(text, ("ES256",))


_SAID = st.sampled_from(["none", "HS256", "ES256", "OKP", "RSA", "oct", "P-521", "secp256k1", "\0"])


@given(
    said=st.dictionaries(
        st.sampled_from(["kid", "alg", "kty", "crv", "x", "y", "use", "n", "e", "k"]),
        _SAID | st.none() | st.integers() | st.lists(_SAID) | st.dictionaries(_SAID, _SAID),
    )
)
def test_a_key_of_any_shape_is_only_refused(said: dict[str, Any]) -> None:
    """Alone or beside a sound one: keys, or a clause."""
    for entries in ([{**ES.jwk(), **said}], [{**ES.jwk(), **said}, OTHER.jwk(kid="2")]):
        with contextlib.suppress(ValueError):
            jwts.key_set(key_set(*entries), ("ES256", "EdDSA"))


def test_a_short_rsa_key_is_refused() -> None:
    """Below 2048 bits a signature can be made by others one day."""
    short = rsa.generate_private_key(65_537, 1024).public_key()
    pem = short.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(ValueError, match="has 1024 bits: use RSA keys of 2048"):
        jwts.public_key(pem, ("RS256",))


def test_a_shared_secret_signs_with_hmac() -> None:
    """As base64, at least as long as the hash; whitespace around it does not count."""
    keys = jwts.secret(base64.b64encode(SECRET) + b"\n", ("HS256", "HS512"))
    claims = jwt.decode(ES.token(), options={"verify_signature": False})
    for algorithm in ("HS256", "HS512"):
        assert verifier(keys).check(jwt.encode(claims, SECRET, algorithm)).name == "somebody"
    with pytest.raises(CredentialInvalid):
        verifier(keys).check(jwt.encode(claims, SECRET, "HS384"))


@pytest.mark.parametrize(
    ("raw", "algorithm", "sentence"),
    [
        (base64.b64encode(SECRET[:31]), "HS256", "too short: write at least 32"),
        (base64.b64encode(SECRET[:63]), "HS512", "too short: write at least 64"),
        (b"", "HS256", "too short"),
        (b"letters, and not base64", "HS256", "is not base64"),
    ],
)
def test_a_weak_secret_is_refused(raw: bytes, algorithm: str, sentence: str) -> None:
    """With the command that makes a good one."""
    with pytest.raises(ValueError, match=sentence) as caught:
        jwts.secret(raw, (algorithm,))
    assert "openssl rand" in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), _JSON))
def test_a_header_of_any_shape_is_only_refused(header: dict[str, Any]) -> None:
    """Whatever is said in it, the answer is a refusal and nothing else."""
    with pytest.raises(CredentialInvalid):
        verifier().check(f"{segment(header)}.{segment({})}.AAAA")


@given(
    claims=st.dictionaries(st.sampled_from(["iss", "aud", "exp", "nbf", "sub", "resultd"]), _JSON)
)
def test_signed_nonsense_is_only_refused(claims: dict[str, Any]) -> None:
    """An issuer that signs anything ends in refusals too."""
    body = f"{segment({'alg': 'ES256'})}.{segment(claims)}"
    signature = jwt.get_algorithm_by_name("ES256").sign(body.encode(), ES.key)
    with pytest.raises((CredentialInvalid, CredentialExpired)):
        verifier().check(f"{body}.{segment(signature)}")


@given(token=st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_only_refused(token: str) -> None:
    """Dots or none, base64 or not."""
    with pytest.raises(CredentialInvalid):
        verifier().check(token)


@pytest.mark.parametrize(
    "token",
    ["[" * 8000, segment(b"[" * 700) + ".AA.AA", segment(b"{" * 5900) + ".AA.AA", "." * 8000],
    ids=["brackets", "nested", "nested deep", "dots"],
)
def test_a_token_that_is_meant_to_cost_is_refused(token: str) -> None:
    """As long as metadata lets through; the parser is not led too deep."""
    with pytest.raises(CredentialInvalid):
        verifier().check(token)
