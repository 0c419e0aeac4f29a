"""The auth file: what it lets in, and what it refuses to be."""

from __future__ import annotations

import contextlib
import datetime
import tempfile
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from resultd_server.access import authority, tokens
from resultd_server.access.authority import Authority
from resultd_server.access.roles import Role
from resultd_server.config import ConfigError
from resultd_server.errors import CredentialExpired, CredentialInvalid
from tests.support.jwts import AUDIENCE, ISSUER, Issuer

TOKEN = tokens.PREFIX + "t" * 43
HOUR = datetime.timedelta(hours=1)
ENTRY = f"""
[[tokens]]
name = "a"
sha256 = "{tokens.hash_of(TOKEN)}"
roles = {{ mine = "worker" }}
"""


def authority_of(directory: Path, text: str) -> Authority:
    """One that goes by a file of this text."""
    file = directory / "auth.toml"
    file.write_text(text)
    made = Authority(file)
    made.take(made.read())
    return made


def test_a_token_gives_its_name_roles_and_time(tmp_path: Path) -> None:
    """As the entry says; the time with its zone."""
    known = authority_of(tmp_path, ENTRY + "expires = 2027-01-01T02:00:00+02:00\n")
    found = known.bearer(TOKEN)
    new_year = datetime.datetime(2027, 1, 1, tzinfo=datetime.timezone.utc)
    assert (found.name, found.role_in("mine")) == ("a", Role.WORKER)
    assert found.expires_s == new_year.timestamp()


CERTIFICATE = "[[certificates]]\nname = 'w'\nidentity = 'dns:w'\nroles = { a = 'reader' }\n"


def test_certificates_that_nobody_is_asked_for_are_refused(tmp_path: Path) -> None:
    """Whoever wrote them thinks they count; the sentence says which setting is missing."""
    file = tmp_path / "auth.toml"
    file.write_text(ENTRY)
    made = Authority(file, certificates=False)
    made.take(made.read())
    file.write_text(ENTRY + CERTIFICATE)
    with pytest.raises(ConfigError, match="--tls-client-ca"):
        made.take(made.read())
    assert made.bearer(TOKEN).name == "a"  # it goes on as before
    asking = Authority(file)
    asking.take(asking.read())


def test_who_is_not_in_the_file_is_not_let_in(tmp_path: Path) -> None:
    """Another token, none, or one that is gone since; the error never says why."""
    known = authority_of(tmp_path, ENTRY)
    for other in (tokens.new(), "", "a.b.c"):
        with pytest.raises(CredentialInvalid) as caught:
            known.bearer(other)
        assert str(caught.value) == str(CredentialInvalid())
    (tmp_path / "auth.toml").write_text("")
    known.take(known.read())
    with pytest.raises(CredentialInvalid):
        known.bearer(TOKEN)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[tokens", "is not TOML"),
        ("x = 1", "x: Extra inputs are not permitted"),
        (ENTRY + "secret = 'x'", r"tokens\.0\.secret: Extra"),
        (ENTRY * 2, "has the credential of 'a' twice"),
        (ENTRY.replace("worker", "boss"), r"tokens\.0\.roles: the role in 'mine' is one of reader"),
        (ENTRY.replace("mine", '"A B"'), "'A B' is not a namespace"),
        (ENTRY.replace(tokens.hash_of(TOKEN), TOKEN), r"sha256: is not a hash: 64 of 0-9 a-f"),
        (ENTRY.replace('name = "a"', ""), r"tokens\.0\.name: Field required"),
        (ENTRY + "expires = 2027-01-01", "expires: is not a time with its zone"),
        (ENTRY + "expires = 2027-01-01T00:00:00", "expires: is not a time with its zone"),
        (ENTRY + "expires = 1999999999", "expires: is not a time with its zone"),
        ("[[certificates]]\nname='w'\nidentity='w'\nroles={a='reader'}", "is not dns:NAME, uri:"),
        ("[jwt]", r"jwt\.algorithms: Field required"),
        ("a = " + "[" * 5_000, "is nested too deep"),
        ("a = " + "1" * 5_000, "is not TOML"),
    ],
    ids=lambda value: value[:40],
)
def test_a_file_that_makes_no_sense_is_refused_by_name(
    tmp_path: Path, text: str, sentence: str
) -> None:
    """The sentence names the file, the place and what would do, and no secret."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        authority_of(tmp_path, text)
    assert "auth.toml" in str(caught.value)
    assert TOKEN not in str(caught.value)


FRAGMENTS = st.sampled_from(
    [
        "[[tokens]]\n", "[jwt]\n", "[[certificates]]\n", "{", "}", "[", "]", '"', "=", "\n",
        "\\u0000", "name", "sha256", "roles", "expires", "identity", "algorithms", "jwks_file",
        "issuer", '"*"', '"x"', "'reader'", "0", "-1", "1e400", "nan", "true",
        "9999-12-31T23:59:59-23:59",
    ]
)  # fmt: skip


@given(text=st.lists(FRAGMENTS | st.text(max_size=3), max_size=30).map(" ".join))
def test_whatever_the_file_says_it_is_read_or_refused(text: str) -> None:
    """Nothing but a ConfigError comes of it."""
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(ConfigError):
        authority_of(Path(directory), text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, or no UTF-8."""
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        Authority(tmp_path / "none.toml").read()
    (tmp_path / "bytes.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match=r"bytes\.toml is not UTF-8"):
        Authority(tmp_path / "bytes.toml").read()


def test_what_cannot_be_taken_leaves_all_as_it_was(tmp_path: Path) -> None:
    """After a refusal those let in before still are."""
    known = authority_of(tmp_path, ENTRY)
    (tmp_path / "auth.toml").write_text(ENTRY * 2)
    with pytest.raises(ConfigError):
        known.take(known.read())
    assert known.bearer(TOKEN).name == "a"


def test_a_jwt_is_checked_once_while_its_key_stays(tmp_path: Path) -> None:
    """The second time the answer is remembered; with another key in the file nothing is."""
    issuer, other = Issuer("ES256"), Issuer("ES256")
    issuer.write(tmp_path / "key.pem")
    known = authority_of(tmp_path, issuer.section("public_key_file = 'key.pem'"))
    token = issuer.token(sub="me", resultd={"mine": "reader"})
    first = known.bearer(token)
    assert (first.name, first.role_in("mine")) == ("me", Role.READER)
    assert known.bearer(token) is first
    with pytest.raises(CredentialInvalid):
        known.bearer(other.token(sub="me", resultd={"mine": "reader"}))
    with pytest.raises(CredentialExpired):
        known.bearer(issuer.token(exp=-31))
    before = known.read()
    other.write(tmp_path / "key.pem")
    assert known.read() != before
    known.take(known.read())
    with pytest.raises(CredentialInvalid):
        known.bearer(token)


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least used goes first."""
    monkeypatch.setattr(authority, "CACHED_MAX", 3)
    issuer = Issuer("ES256")
    issuer.write(tmp_path / "key.pem")
    known = authority_of(tmp_path, issuer.section("public_key_file = 'key.pem'"))
    made = [issuer.token(sub=f"n{n}") for n in range(4)]
    first = known.bearer(made[0])
    second = known.bearer(made[1])
    assert known.bearer(made[0]) is first
    for token in made[2:]:
        known.bearer(token)
    assert known.bearer(made[0]) is first
    assert known.bearer(made[1]) is not second


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ("", "name one of public_key_file, jwks_file and secret_file"),
        ("public_key_file = 'key.pem'\njwks_file = 'x'", "name one of"),
        ("secret_file = 'key.pem'", "HS256, HS384 and HS512 go with secret_file"),
        ("public_key_file = 'none.pem'", r"none\.pem cannot be read"),
        (r'public_key_file = "a\u0000b"', r"a\\x00b' is no file's name"),
        ("public_key_file = 'auth.toml'", r"auth\.toml is no public key in PEM"),
        ("public_key_file = 'key.pem'\nleeway_s = 61", r"leeway_s: .*less than or equal to 60"),
    ],
)
def test_a_jwt_section_that_makes_no_sense_is_refused(
    tmp_path: Path, section: str, sentence: str
) -> None:
    """One key, one kind of algorithm, a leeway of at most a minute."""
    issuer = Issuer("ES256")
    issuer.write(tmp_path / "key.pem")
    with pytest.raises(ConfigError, match=sentence):
        authority_of(tmp_path, issuer.section(section))


@pytest.mark.parametrize(
    ("algorithms", "section"),
    [
        ('["none"]', "public_key_file = 'key.pem'"),
        ('["HS256"]', "public_key_file = 'key.pem'"),
        ('["ES256", "HS256"]', "public_key_file = 'key.pem'"),
        ('["RS256"]', "public_key_file = 'key.pem'"),
        ("[]", "public_key_file = 'key.pem'"),
    ],
)
def test_algorithms_that_do_not_go_with_the_key_are_refused(
    tmp_path: Path, algorithms: str, section: str
) -> None:
    """Never "none", never a public key as an HMAC's secret, and none that the key is not for."""
    Issuer("ES256").write(tmp_path / "key.pem")
    text = (
        f"[jwt]\nissuer = '{ISSUER}'\naudience = '{AUDIENCE}'\n"
        f"algorithms = {algorithms}\n{section}\n"
    )
    with pytest.raises(ConfigError):
        authority_of(tmp_path, text)


def test_a_certificate_is_known_by_the_kind_of_its_name(tmp_path: Path) -> None:
    """dns, uri, email and cn are different names, however alike they read."""
    client = trustme.CA().issue_cert("w.example.org", "w@example.org", common_name="common")
    pem = client.cert_chain_pems[0].bytes()
    found = authority.identities(x509.load_pem_x509_certificate(pem))
    assert found == ["dns:w.example.org", "email:w@example.org", "cn:common"]
    entry = "[[certificates]]\nname = 'w'\nroles = {{ '*' = 'reader' }}\nidentity = '{}'\n"
    known = authority_of(tmp_path, entry.format("email:w@example.org"))
    principal = known.certificate(pem)
    assert (principal.name, principal.role_in("any")) == ("w", Role.READER)
    ends = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    assert principal.expires_s == ends.timestamp()
    assert known.certificate(pem) is principal
    for other in ("dns:w@example.org", "cn:w.example.org", "dns:W.example.org"):
        with pytest.raises(CredentialInvalid):
            authority_of(tmp_path, entry.format(other)).certificate(pem)


def test_a_certificate_may_be_named_by_a_uri(tmp_path: Path) -> None:
    """As those of a service mesh are, all of it and exactly."""
    key = ec.generate_private_key(ec.SECP256R1())
    nobody = x509.Name([])
    now = datetime.datetime.now(datetime.timezone.utc)
    uri = x509.UniformResourceIdentifier("spiffe://prod/worker")
    pem = (
        x509.CertificateBuilder(nobody, nobody, key.public_key(), 1, now, now + HOUR)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    entry = "[[certificates]]\nname='w'\nidentity='uri:{}'\nroles={{mine='worker'}}"
    known = authority_of(tmp_path, entry.format("spiffe://prod/worker"))
    assert known.certificate(pem).role_in("mine") == Role.WORKER
    for other in ("spiffe://prod/work", "spiffe://prod/worker/2"):
        with pytest.raises(CredentialInvalid):
            authority_of(tmp_path, entry.format(other)).certificate(pem)


def test_a_certificate_without_names_is_nobody(tmp_path: Path) -> None:
    """And bytes that are no certificate are not either."""
    ca = trustme.CA()
    pem = ca.cert_pem.bytes()
    found = x509.load_pem_x509_certificate(pem)
    assert authority.identities(found) == []
    for bytes_ in (found.public_bytes(Encoding.PEM), b"nothing"):
        with pytest.raises(CredentialInvalid):
            authority_of(tmp_path, "").certificate(bytes_)
