"""Whose call it is, and whether they may make it: namespace, credential, role.

The namespace is the metadata `resultd-namespace`; the credential `authorization: Bearer …`, or
else the client certificate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from resultd_server.access.roles import EVERY_NAMESPACE, NAMESPACE, NEEDED, Principal, Role
from resultd_server.errors import (
    CredentialExpired,
    CredentialInvalid,
    CredentialMissing,
    DomainError,
    FieldInvalid,
    NamespaceDenied,
    RoleInsufficient,
)
from resultd_server.interceptors import Context, Handler, Raw

if TYPE_CHECKING:
    from resultd_server.access.authority import Authority

NAMESPACE_KEY = "resultd-namespace"
CREDENTIAL_KEY = "authorization"
_BEARER = "bearer"

CHECK_S = 1.0
"""How often open streams are asked whether their credential has expired."""

_AT_ONCE = 500  # streams checked before others have their turn

Identify = Callable[[Context], str]
"""The namespace a call may act in. Raises DomainError for a call that may not be made."""

log = structlog.get_logger("resultd.access")


def namespace(name: str) -> str:
    """A namespace from call metadata; "default" if there is none."""
    if not name:
        return "default"
    if not NAMESPACE.fullmatch(name):
        raise FieldInvalid(
            "resultd-namespace",
            "is not a namespace",
            "use 1 to 64 of a-z, 0-9, dot, underscore and hyphen, beginning with a letter or digit",
        )
    return name


def namespace_of(context: Context) -> str:
    """The call's namespace. Raises FieldInvalid."""
    found: str | None = None
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_KEY:
            if found is not None:
                raise FieldInvalid(NAMESPACE_KEY, "is said twice", "say it once")
            found = value if isinstance(value, str) else value.decode("ascii", "replace")
    return "default" if found is None else namespace(found)


class OpenDoor:
    """A server without authentication: whoever can connect may do everything."""

    def identify(self, _: str) -> Identify:
        """What tells the namespace of a method's calls."""
        return namespace_of

    everywhere = identify

    def hold(self, _: str, handler: Handler) -> Handler:
        """A stream lasts as long as it likes."""
        return handler


class Gate:
    """A server with an auth file: every call is checked, and streams for as long as they last."""

    def __init__(self, authority: Authority, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since 1970."""
        self._authority = authority
        self._clock = clock
        self._held: set[_Held] = set()

    def identify(self, method: str) -> Identify:
        """What checks a method's calls. Raises KeyError for one that needs no role: none is."""
        needed = NEEDED[method]

        def identified(context: Context) -> str:
            return self._authorise(context, method, needed)[0]

        return identified

    def everywhere(self, method: str) -> Identify:
        """The same of a method that tells of all namespaces: for an admin of every one."""

        def identified(context: Context) -> str:
            role = self._caller(context).roles.get(EVERY_NAMESPACE)
            if role is None:
                raise NamespaceDenied(EVERY_NAMESPACE)
            if role < Role.ADMIN:
                raise RoleInsufficient(method, Role.ADMIN.word, role.word)
            return namespace_of(context)

        return identified

    def hold(self, method: str, handler: Handler) -> Handler:
        """Ends a stream once its caller may not have it any longer."""
        needed = NEEDED[method]

        async def held(raw: Raw, context: Context) -> bytes | None:
            task = asyncio.current_task()
            assert task is not None  # handlers run in tasks
            _, principal = self._authorise(context, method, needed)
            stream = _Held(task, context, method, needed, principal)
            self._held.add(stream)
            try:
                return await handler(raw, context)
            except asyncio.CancelledError:
                if stream.refusal is None:
                    raise
                # With a status: a call whose handler is merely cancelled never ends.
                raise stream.refusal from None
            finally:
                self._held.discard(stream)

        return held

    def _authorise(self, context: Context, method: str, needed: Role) -> tuple[str, Principal]:
        principal = self._caller(context)
        where = namespace_of(context)
        role = principal.role_in(where)
        if role is None:
            raise NamespaceDenied(where)
        if role < needed:
            raise RoleInsufficient(method, needed.word, role.word)
        return where, principal

    def _caller(self, context: Context) -> Principal:
        principal = self._principal(context)
        if principal.expired(self._clock()):
            raise CredentialExpired
        return principal

    def _principal(self, context: Context) -> Principal:
        said = [
            value for key, value in context.invocation_metadata() or () if key == CREDENTIAL_KEY
        ]
        if not said:
            return self._certified(context)
        value = said[0] if isinstance(said[0], str) else said[0].decode("ascii", "replace")
        scheme, _, token = value.partition(" ")
        if len(said) > 1 or scheme.lower() != _BEARER:
            raise CredentialInvalid
        return self._authority.bearer(token.strip())

    def _certified(self, context: Context) -> Principal:
        for pem in context.auth_context().get("x509_pem_cert", ()):
            return self._authority.certificate(pem)
        raise CredentialMissing

    async def recheck(self) -> None:
        """Ends the streams that would not be let in now: the auth file has changed."""
        for number, stream in enumerate(list(self._held)):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            try:
                _, stream.principal = self._authorise(stream.context, stream.method, stream.needed)
            except DomainError as refusal:
                stream.end(refusal)

    def end_expired(self) -> None:
        """Ends the streams whose credential has expired."""
        now_s = self._clock()
        for stream in self._held:
            if stream.principal.expired(now_s):
                stream.end(CredentialExpired())

    async def watch(self, changed: asyncio.Event) -> None:
        """Ends streams as their credentials expire or `changed` is set. Runs until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            if changed.is_set():
                changed.clear()
                try:
                    await self.recheck()
                except Exception:
                    changed.set()  # the run after this one owes the rest
                    raise
            self.end_expired()


class _Held:
    """An open stream, and whose it is."""

    __slots__ = ("context", "method", "needed", "principal", "refusal", "task")

    def __init__(
        self,
        task: asyncio.Task[None],
        context: Context,
        method: str,
        needed: Role,
        principal: Principal,
    ) -> None:
        self.task = task
        self.context = context
        self.method = method
        self.needed = needed
        self.principal = principal
        self.refusal: DomainError | None = None

    def end(self, refusal: DomainError) -> None:
        if self.refusal is None:
            self.refusal = refusal
            log.info("stream ended", principal=self.principal.name, reason=refusal.reason_name)
            self.task.cancel()
