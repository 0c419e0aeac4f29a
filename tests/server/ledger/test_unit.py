"""One unit of work: what it changed is what is hinted."""

from __future__ import annotations

from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.unit import GROUP, TASK, Unit
from tests.server.ledger.test_txn import empty_txn


def test_a_key_is_hinted_once_a_unit() -> None:
    """However often a key changes in a unit, it is named once, under its namespace and kind."""
    unit = Unit(empty_txn(), 0)
    for _ in range(2):
        unit.hint(Namespace("n", bytes(8)), TASK, "x")
    unit.hint(Namespace("n", bytes(8)), GROUP, "x")
    assert unit.changed == {("n", TASK, "x"), ("n", GROUP, "x")}
