"""What the campaign of the tenants is made of: every RPC there is, and an eye for foreign words."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections import Counter

import grpc
import pytest

from resultd import v1
from resultd_server.access.roles import NEEDED
from tests.campaigns._record import Tally
from tests.campaigns.tenants import Broken, Player
from tests.support.request_fields import METHODS
from tests.support.tenants import Tenant, Writer, filled
from tests.support.twins import Side


def two() -> tuple[Tenant, Tenant]:
    """Tenants that know of each other."""
    return Tenant("one", random.Random(1)), Tenant("two", random.Random(2))


def test_every_rpc_of_every_service_takes_part() -> None:
    """Whatever service the protocol's modules have, its methods are called and have a role."""
    modules = [importlib.import_module(f"{v1.__name__}.{found.name}")
               for found in pkgutil.iter_modules(v1.__path__)]  # fmt: skip
    services = [
        service
        for module in modules
        if hasattr(module, "DESCRIPTOR")
        for service in module.DESCRIPTOR.services_by_name.values()
    ]
    assert {method.full_name for each in services for method in each.methods} == set(METHODS)
    assert set(NEEDED) == set(METHODS)


def test_every_field_of_every_request_can_be_filled() -> None:
    """Nothing is left out: a field that is not in the vocabulary raises."""
    one, other = two()
    for method in METHODS.values():
        for _ in range(50):
            filled(method.input_type, Writer(one, [other])).SerializeToString()
    unknown = next(iter(METHODS.values())).output_type
    with pytest.raises(KeyError, match=unknown.name):
        filled(unknown, Writer(one, [other]))


def test_what_a_stream_is_held_for_is_asked_for() -> None:
    """Every stream can wait for an id of nobody's, be it a task's or a group's."""
    one, other = two()
    for method in METHODS.values():
        if method.server_streaming:
            request = filled(method.input_type, Writer(one, [other], held="nobody's"))
            assert b"nobody's" in request.SerializeToString()


async def test_a_foreign_word_is_seen_unless_it_was_said_before() -> None:
    """What another tenant wrote may come back only from who has said it itself."""
    one, other = two()
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    side = Side(channel, ())
    player, theirs = (Player(each, side, side, Tally(Counter())) for each in (one, other))
    player.others = [theirs]
    word, next_word = other.word().encode(), other.word().encode()
    player._look_through("Method", b"", one.word().encode(), None)
    with pytest.raises(Broken, match="two's"):
        player._look_through("Method", b"", b"..." + word, None)
    player._look_through("Method", word, b"..." + word, None)
    with pytest.raises(Broken, match="two's"):
        player._look_through("Method", b"", word + next_word, None)
    with pytest.raises(Broken, match="two's"):
        player._look_through("Method", b"", other.mark.encode(), None)
    await channel.close()
