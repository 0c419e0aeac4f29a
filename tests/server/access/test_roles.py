"""Roles: which includes which, where they reach, how they are written."""

from __future__ import annotations

import pytest

from resultd_server.access.roles import NEEDED, Principal, Role, roles_of


def test_each_role_includes_the_one_before() -> None:
    """An admin may what a worker may, and a worker what a reader may."""
    assert Role.READER < Role.WORKER < Role.ADMIN
    assert [role.word for role in Role] == ["reader", "worker", "admin"]


def test_what_takes_away_needs_an_admin_and_what_reads_a_reader() -> None:
    """By their names: Get, List, Wait, Watch and Iterate read; Forget, Delete, Revoke take away."""
    for method, role in NEEDED.items():
        name = method.rpartition(".")[2]
        if name == "WatchRevocations":
            assert role == Role.WORKER
        elif name.startswith(("Get", "BatchGet", "List", "Wait", "Watch", "Iterate")):
            assert role == Role.READER
        elif name.startswith(("Forget", "Delete", "Revoke")):
            assert role == Role.ADMIN
        else:
            assert role == Role.WORKER


def test_a_role_reaches_where_it_is_given() -> None:
    """Exactly there; '*' is everywhere, and never takes from what is given somewhere."""
    some = Principal("p", {"a": Role.WORKER})
    assert (some.role_in("a"), some.role_in("b"), some.role_in("*")) == (Role.WORKER, None, None)
    every = Principal("p", {"*": Role.WORKER, "a": Role.ADMIN, "b": Role.READER})
    found = [every.role_in(where) for where in ("a", "b", "c")]
    assert found == [Role.ADMIN, Role.WORKER, Role.WORKER]


def test_a_principal_expires_at_its_time() -> None:
    """From that second on, and never if none is said; and shows no more than its name."""
    principal = Principal("p", {"*": Role.ADMIN}, 10.0)
    assert [principal.expired(now) for now in (9.9, 10.0)] == [False, True]
    assert not Principal("p", {}).expired(1e18)
    assert repr(principal) == "Principal('p')"


def test_roles_are_read_as_people_write_them() -> None:
    """A namespace or '*' to a word."""
    assert roles_of({"a.b-c_1": "worker", "*": "reader"}) == {
        "a.b-c_1": Role.WORKER,
        "*": Role.READER,
    }


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({}, "roles name namespaces"),
        (None, "roles name namespaces"),
        (["worker"], "roles name namespaces"),
        ({"A": "worker"}, "'A' is not a namespace"),
        ({"": "worker"}, "'' is not a namespace"),
        ({"a*": "worker"}, "is not a namespace"),
        ({1: "worker"}, "1 is not a namespace"),
        ({"a": "boss"}, "the role in 'a' is one of reader, worker, admin"),
        ({"a": "ADMIN"}, "is one of"),
        ({"a": 3}, "is one of"),
        ({"a": ["admin"]}, "is one of"),
    ],
)
def test_other_roles_are_refused_with_the_remedy(said: object, sentence: str) -> None:
    """Whatever is no mapping of namespaces to roles is refused; nothing is guessed."""
    with pytest.raises(ValueError, match=sentence.replace("*", r"\*")):
        roles_of(said)
