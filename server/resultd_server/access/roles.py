"""Roles, what each RPC needs, and who has which role where."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from types import MappingProxyType

from resultd_server import limits

NAME_CHARS_MAX = 255  # of a principal: it stands in lines of the log
EVERY_NAMESPACE = "*"
NAMESPACE = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{limits.NAMESPACE_BYTES_MAX - 1}}}")


class Role(enum.IntEnum):
    """What a credential may do in a namespace; each includes those before it."""

    READER = 1
    """Reads, waits, lists."""

    WORKER = 2
    """Reports results, declares and claims groups, hears of revocations."""

    ADMIN = 3
    """Takes away what others wrote: forgets, deletes, revokes."""

    @property
    def word(self) -> str:
        """The role as people write it."""
        return self.name.lower()


ROLES: Mapping[str, Role] = MappingProxyType({role.word: role for role in Role})

NEEDED: Mapping[str, Role] = MappingProxyType(
    {
        f"resultd.v1.{method}": role
        for role, methods in {
            Role.READER: (
                "ResultService.GetResult",
                "ResultService.BatchGetResults",
                "ResultService.WaitFor",
                "ResultService.Iterate",
                "ResultService.Watch",
                "ResultService.ListResults",
                "ResultService.GetServerInfo",
                "GroupService.GetGroup",
                "GroupService.ListGroups",
                "GroupService.ListGroupMembers",
            ),
            Role.WORKER: (
                "ResultService.StoreResult",
                "ResultService.BatchStoreResults",
                "GroupService.CreateGroup",
                "GroupService.AddGroupMembers",
                "GroupService.AddToTotal",
                "GroupService.SealGroup",
                "GroupService.ClaimGroup",
                "WorkerService.WatchRevocations",
            ),
            Role.ADMIN: (
                "ResultService.ForgetResults",
                "GroupService.DeleteGroup",
                "WorkerService.RevokeTasks",
            ),
        }.items()
        for method in methods
    }
)
"""The role an RPC of ours needs. One that is missing here keeps the server from starting."""


class Principal:
    """Somebody whose credential was checked."""

    __slots__ = ("expires_s", "name", "roles")

    def __init__(
        self, name: str, roles: Mapping[str, Role], expires_s: float | None = None
    ) -> None:
        """`expires_s`: seconds since 1970, None for never."""
        everywhere = roles.get(EVERY_NAMESPACE, Role.READER)
        self.name = name
        self.roles: Mapping[str, Role] = {
            where: max(role, everywhere) for where, role in roles.items()
        }
        self.expires_s = math.inf if expires_s is None else expires_s

    def role_in(self, namespace: str) -> Role | None:
        """The role in a namespace, whether or not that exists; None for none."""
        return self.roles.get(namespace) or self.roles.get(EVERY_NAMESPACE)

    def expired(self, now_s: float) -> bool:
        """Whether the credential's time has run out."""
        return self.expires_s <= now_s

    def __repr__(self) -> str:
        return f"Principal({self.name!r})"


def roles_of(said: object) -> dict[str, Role]:
    """Roles by namespace, from what a file or a claim says: `{"prod": "worker"}`.

    Raises ValueError, a clause with the remedy.
    """
    if not isinstance(said, dict) or not said:
        raise ValueError("roles name namespaces and a role in each: { prod = 'worker' }")
    found = {}
    for namespace, word in said.items():
        if namespace != EVERY_NAMESPACE and not (
            isinstance(namespace, str) and NAMESPACE.fullmatch(namespace)
        ):
            raise ValueError(f"{namespace!r} is not a namespace: 1 to 64 of a-z 0-9 . _ -, or '*'")
        role = ROLES.get(word) if isinstance(word, str) else None
        if role is None:
            raise ValueError(f"the role in {namespace!r} is one of {', '.join(ROLES)}")
        found[namespace] = role
    return found
