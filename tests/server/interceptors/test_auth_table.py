"""Every RPC against every kind of credential, made from the descriptors; and the check checked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from resultd.v1 import group_pb2, group_service_pb2, state_pb2, task_pb2, value_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server.access.roles import NEEDED, Principal, Role
from resultd_server.interceptors import auth
from tests.support.access import AuthFile, answer, asking, utc, with_token
from tests.support.in_process import Served
from tests.support.raw_calls import Metadata
from tests.support.refusals import Refusal
from tests.support.request_fields import METHODS, TEMPLATES

MARKER = b"THEIRS-AND-NOBODY-ELSES"
IDS = ("t", "child")


class Table:
    """A server with two tenants, and a token of each kind."""

    def __init__(self, served: Served, file: AuthFile) -> None:
        self.served = served
        self.by_role = {role: file.add(f"my {role.word}", mine=role.word) for role in Role}
        self.theirs = file.add("they", theirs="admin")
        self.expired = file.add("gone", utc(-1), mine="admin")

    async def ask(self, method: str, metadata: Metadata) -> bytes | Refusal:
        """What a sound call of a method is answered."""
        request: Any = type(TEMPLATES[method])()
        request.CopyFrom(TEMPLATES[method])
        if "sequence" in request.DESCRIPTOR.fields_by_name:
            request.sequence = 1  # else nothing may come
        raw = request.SerializeToString()
        return await answer(self.served.channel, METHODS[method], raw, metadata)

    async def fill(self) -> None:
        """The other tenant's records and group, under the very ids that the requests name."""
        where = with_token(self.theirs, "theirs")
        secret = value_pb2.Payload(data=MARKER)
        create = group_service_pb2.CreateGroupRequest(group_id="g", continuation=secret)
        create.labels["who"] = MARKER.decode()
        create.members.append(group_pb2.GroupMember(id="t", index=0))
        await self.served.groups.CreateGroup(create, metadata=where)
        for id_ in IDS:
            meta = task_pb2.TaskMeta(task_id=id_, state=state_pb2.STATE_SUCCESS, value=secret)
            meta.worker = MARKER.decode()
            await self.served.results.StoreResult(pb.StoreResultRequest(meta=meta), metadata=where)

    async def unharmed(self) -> bool:
        """Whether all of theirs is still there, for them."""
        where = with_token(self.theirs, "theirs")
        got = await self.served.results.BatchGetResults(
            pb.BatchGetResultsRequest(task_ids=IDS), metadata=where
        )
        group = await self.served.groups.GetGroup(
            group_service_pb2.GetGroupRequest(group_id="g"), metadata=where
        )
        return all(meta.value.data == MARKER for meta in got.metas) and (
            group.group.continuation.data == MARKER
        )


@pytest.fixture
async def table(tmp_path: Path) -> AsyncIterator[Table]:
    """The two tenants, with all of theirs stored."""
    file = AuthFile(tmp_path)
    made = Table(None, file)  # type: ignore[arg-type]  # the tokens come before the server
    async with asking(file) as served:
        made.served = served
        await made.fill()
        yield made


async def let_in_wrongly(table: Table) -> list[str]:
    """The checker: which calls are not refused as they must be, or not answered as they must."""
    wrong = []
    for method in METHODS:
        needed = NEEDED[method]
        kinds: dict[str, tuple[Metadata, tuple[str, str] | None]] = {
            "none": ((), ("UNAUTHENTICATED", "CREDENTIAL_MISSING")),
            "unknown": (
                with_token("rsd_unknown", "mine"), ("UNAUTHENTICATED", "CREDENTIAL_INVALID")
            ),
            "another scheme": (
                (("authorization", f"Basic {table.by_role[Role.ADMIN]}"),),
                ("UNAUTHENTICATED", "CREDENTIAL_INVALID"),
            ),
            "expired": (
                with_token(table.expired, "mine"), ("UNAUTHENTICATED", "CREDENTIAL_EXPIRED")
            ),
            "namespace not named": (
                with_token(table.by_role[Role.ADMIN]), ("PERMISSION_DENIED", "NAMESPACE_DENIED")
            ),
            "foreign namespace": (
                with_token(table.by_role[Role.ADMIN], "theirs"),
                ("PERMISSION_DENIED", "NAMESPACE_DENIED"),
            ),
            "missing namespace": (
                with_token(table.by_role[Role.ADMIN], "nobody"),
                ("PERMISSION_DENIED", "NAMESPACE_DENIED"),
            ),
        }  # fmt: skip
        for role in Role:
            refused = None if role >= needed else ("PERMISSION_DENIED", "ROLE_INSUFFICIENT")
            kinds[f"role {role.word}"] = (with_token(table.by_role[role], "mine"), refused)
        for kind, (metadata, expected) in kinds.items():
            found = await table.ask(method, metadata)
            said = (found.code, found.reason) if isinstance(found, Refusal) else None
            if (
                expected is None
                and said is not None
                and said[0] not in ("UNAUTHENTICATED", "PERMISSION_DENIED")
            ):
                said = None  # let in, and then refused for what it asks
            if said != expected:
                wrong.append(f"{method}, {kind}: {said}")
            if isinstance(found, bytes) and MARKER in found:
                wrong.append(f"{method}, {kind}: theirs was shown")
    if not await table.unharmed():
        wrong.append("theirs was harmed")
    return wrong


def test_every_rpc_has_its_role() -> None:
    """The table of roles names the protocol's RPCs, all of them and no others."""
    assert set(NEEDED) == set(METHODS)


async def test_every_rpc_asks_every_credential(table: Table) -> None:
    """No RPC lets in whom it must not, shows or changes what is another namespace's."""
    assert await let_in_wrongly(table) == []


async def test_a_foreign_namespace_looks_like_a_missing_one(table: Table) -> None:
    """Code, reason, sentence and facts are the same, but for the name the caller said."""
    token = table.by_role[Role.ADMIN]
    for method in METHODS:
        foreign = await table.ask(method, with_token(token, "theirs"))
        missing = await table.ask(method, with_token(token, "nobody"))
        assert isinstance(foreign, Refusal)
        assert isinstance(missing, Refusal)
        renamed = missing._replace(
            sentence=missing.sentence.replace("nobody", "theirs"), facts={"namespace": "theirs"}
        )
        assert foreign == renamed


async def test_the_checker_sees_a_namespace_that_is_not_checked(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: every credential reaches everywhere. The table fails for every RPC."""
    monkeypatch.setattr(Principal, "role_in", lambda *_: Role.ADMIN)
    wrong = await let_in_wrongly(table)
    for method in METHODS:
        assert any(line.startswith(f"{method}, foreign namespace: ") for line in wrong)
    assert any("theirs was shown" in line for line in wrong)
    assert "theirs was harmed" in wrong


async def test_the_checker_sees_one_rpc_that_nobody_guards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: one handler is registered without the gate. The table names it, and it alone."""
    guarded = auth.Gate.identify
    open_one = "resultd.v1.GroupService.ListGroups"

    def identify(self: auth.Gate, method: str) -> auth.Identify:
        return auth.namespace_of if method == open_one else guarded(self, method)

    monkeypatch.setattr(auth.Gate, "identify", identify)
    file = AuthFile(tmp_path)
    made = Table(None, file)  # type: ignore[arg-type]  # the tokens come before the server
    async with asking(file) as served:
        made.served = served
        await made.fill()
        wrong = await let_in_wrongly(made)
    assert {line.partition(",")[0] for line in wrong} == {open_one}
    assert f"{open_one}, none: None" in wrong
