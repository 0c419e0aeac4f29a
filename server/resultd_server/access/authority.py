"""The auth file: who is let in, by which credential, with which roles.

[[tokens]]                         # made by `resultd token new`
name = "worker-1"
sha256 = "…"
roles = { prod = "worker", staging = "admin" }
expires = 2027-06-30T00:00:00Z     # may be left out

[[certificates]]                   # client certificates, with --tls-client-ca
name = "scheduler"
identity = "dns:scheduler.example.org"
roles = { "*" = "reader" }

[jwt]
jwks_file = "issuer.json"          # or public_key_file, or secret_file
algorithms = ["ES256"]
issuer = "https://login.example.org"
audience = "resultd"
"""

from __future__ import annotations

import datetime
import hashlib
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from resultd_server.access import jwts
from resultd_server.access.roles import NAME_CHARS_MAX, Principal, Role, roles_of
from resultd_server.access.tokens import PREFIX, Tokens
from resultd_server.config import ConfigError, bytes_of
from resultd_server.errors import CredentialInvalid

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]  # 3.10 only

CACHED_MAX = 4_096  # JWTs and certificates checked before: about 1 KiB each
_STRANGE = (
    ValueError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_IDENTITY = re.compile(r"(dns|uri|email|cn):\S(.*\S)?")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=NAME_CHARS_MAX)
    roles: dict[str, Role]

    @field_validator("roles", mode="before")
    @classmethod
    def _roles(cls, value: object) -> object:
        return roles_of(value)


class _Token(_Entry):
    sha256: str
    expires: datetime.datetime | None = None

    @field_validator("sha256")
    @classmethod
    def _hash(cls, value: str) -> str:
        if not _SHA256.fullmatch(value):
            raise ValueError("is not a hash: 64 of 0-9 a-f, as `resultd token new` prints them")
        return value

    @field_validator("expires", mode="before")
    @classmethod
    def _zone(cls, value: object) -> object:
        # Of TOML's own kinds of time only the one that is the same everywhere.
        if value is not None and not (isinstance(value, datetime.datetime) and value.tzinfo):
            raise ValueError("is not a time with its zone: write 2027-06-30T00:00:00Z")
        return value


class _Certificate(_Entry):
    identity: str

    @field_validator("identity")
    @classmethod
    def _kind(cls, value: str) -> str:
        if not _IDENTITY.fullmatch(value):
            raise ValueError("is not dns:NAME, uri:URI, email:ADDRESS or cn:NAME")
        return value


class _Jwt(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    public_key_file: Path | None = None
    jwks_file: Path | None = None
    secret_file: Path | None = None
    algorithms: tuple[str, ...] = Field(min_length=1)
    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    roles_claim: str = Field("resultd", min_length=1)
    leeway_s: float = Field(30, ge=0, le=jwts.LEEWAY_S_MAX)

    @field_validator("algorithms")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = (*jwts.SIGNATURES, *jwts.HMAC)
        if unknown := [each for each in value if each not in known]:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return value

    @model_validator(mode="after")
    def _one_key(self) -> _Jwt:
        if sum(each is not None for each in self._files) != 1:
            raise ValueError("name one of public_key_file, jwks_file and secret_file")
        shared = self.secret_file is not None
        if any((each in jwts.HMAC) != shared for each in self.algorithms):
            raise ValueError(
                "HS256, HS384 and HS512 go with secret_file, all others with a public key"
            )
        return self

    @property
    def _files(self) -> tuple[Path | None, ...]:
        return self.public_key_file, self.jwks_file, self.secret_file

    @property
    def key_file(self) -> Path:
        return next(each for each in self._files if each is not None)

    def keys(self, raw: bytes) -> dict[str | None, Any]:
        if self.public_key_file is not None:
            return jwts.public_key(raw, self.algorithms)
        if self.jwks_file is not None:
            return jwts.key_set(raw, self.algorithms)
        return jwts.secret(raw, self.algorithms)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: tuple[_Token, ...] = ()
    certificates: tuple[_Certificate, ...] = ()
    jwt: _Jwt | None = None


class Contents(NamedTuple):
    """The bytes of the auth file, and of the key it names."""

    text: bytes
    key: bytes


class _Known(NamedTuple):
    """What an auth file says, ready to be asked."""

    tokens: Tokens
    verifier: jwts.Verifier | None
    certificates: dict[str, Principal]


class Authority:
    """Tells whose a credential is. `read` and `take` make it follow its file."""

    what = "auth file"

    def __init__(self, file: Path, *, certificates: bool = True) -> None:
        """`certificates`: whether the server asks clients for theirs."""
        self._file = file
        self._certificates = certificates
        self._known = _Known(Tokens({}), None, {})
        # What took a signature or a parse, by its hash: secrets are not kept.
        self._checked: OrderedDict[bytes, Principal] = OrderedDict()

    def read(self) -> Contents:
        """The files as they are now. Raises ConfigError."""
        text = bytes_of(self._file)
        said = _parse(self._file, text)
        return Contents(text, bytes_of(self._key_file(said.jwt)) if said.jwt else b"")

    def take(self, contents: Contents) -> None:
        """Goes by these contents from now on. Raises ConfigError, and goes on as before."""
        said = _parse(self._file, contents.text)
        if said.certificates and not self._certificates:
            raise ConfigError(
                f"The auth file {self._file} has [[certificates]], which nobody is asked for: "
                "name who signs them with --tls-client-ca, or take them out."
            )
        self._known = _Known(
            Tokens(_unique(self._file, said.tokens, lambda token: token.sha256)),
            self._verifier(said.jwt, contents.key) if said.jwt else None,
            _unique(self._file, said.certificates, lambda certificate: certificate.identity),
        )
        self._checked.clear()

    def _key_file(self, said: _Jwt) -> Path:
        return self._file.parent / said.key_file  # an absolute one stays what it is

    def _verifier(self, said: _Jwt, key: bytes) -> jwts.Verifier:
        try:
            keys = said.keys(key)
        except ValueError as error:
            raise ConfigError(f"The key {self._key_file(said)} {error}.") from None
        return jwts.Verifier(
            keys,
            issuer=said.issuer,
            audience=said.audience,
            claim=said.roles_claim,
            leeway_s=said.leeway_s,
        )

    def bearer(self, token: str) -> Principal:
        """Whose token it is, were it of today. Raises CredentialInvalid, CredentialExpired."""
        principal = self._known.tokens.find(token)
        if principal is not None:
            return principal
        verifier = self._known.verifier
        if verifier is None or token.startswith(PREFIX):
            raise CredentialInvalid
        return self._cached(token.encode(), lambda: verifier.check(token))

    def certificate(self, pem: bytes) -> Principal:
        """Who has this client certificate, which TLS has checked. Raises CredentialInvalid."""
        return self._cached(pem, lambda: self._by_identity(pem))

    def _cached(self, credential: bytes, check: Callable[[], Principal]) -> Principal:
        key = hashlib.sha256(credential).digest()
        found = self._checked.get(key)
        if found is None:
            found = self._checked[key] = check()
            if len(self._checked) > CACHED_MAX:
                self._checked.popitem(last=False)
        else:
            self._checked.move_to_end(key)
        return found

    def _by_identity(self, pem: bytes) -> Principal:
        try:
            with warnings.catch_warnings():
                # Of a serial number below 1, say: TLS has taken it, and it is no identity here.
                warnings.simplefilter("ignore", CryptographyDeprecationWarning)
                found = x509.load_pem_x509_certificate(pem)
                names = identities(found)
        except _STRANGE:  # what gRPC's TLS took, and this library does not
            raise CredentialInvalid from None
        for name in names:
            principal = self._known.certificates.get(name)
            if principal is not None:
                expires_s = found.not_valid_after_utc.timestamp()
                return Principal(principal.name, principal.roles, expires_s)
        raise CredentialInvalid


def identities(certificate: x509.Certificate) -> list[str]:
    """What a certificate says of its holder: `dns:…`, `uri:…`, `email:…`, `cn:…`."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = None
    found = []
    if names is not None:
        found += [f"dns:{name}" for name in names.get_values_for_type(x509.DNSName)]
        found += [f"uri:{uri}" for uri in names.get_values_for_type(x509.UniformResourceIdentifier)]
        found += [f"email:{name}" for name in names.get_values_for_type(x509.RFC822Name)]
    common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return found + [f"cn:{_text(name.value)}" for name in common]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _parse(file: Path, text: bytes) -> _File:
    try:
        return _File(**tomllib.loads(text.decode()))
    except UnicodeDecodeError:
        raise ConfigError(f"The auth file {file} is not UTF-8: write it anew.") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # a secret may stand in the wrong place
        where = ".".join(map(str, first["loc"])) or "it"
        why = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"The auth file {file}: {where}: {why}.") from None
    except ValueError as error:  # TOMLDecodeError, and a number of 5,000 digits
        raise ConfigError(f"The auth file {file} is not TOML: {error}.") from None
    except RecursionError:
        raise ConfigError(f"The auth file {file} is nested too deep: write it anew.") from None


def _unique(file: Path, entries: tuple[Any, ...], key: Callable[[Any], str]) -> dict[str, Any]:
    found: dict[str, Principal] = {}
    for entry in entries:
        if key(entry) in found:
            raise ConfigError(f"The auth file {file} has the credential of {entry.name!r} twice.")
        expires = getattr(entry, "expires", None)
        expires_s = expires.timestamp() if expires else None
        found[key(entry)] = Principal(entry.name, entry.roles, expires_s)
    return found
