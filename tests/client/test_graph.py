"""Dependency graphs."""

from __future__ import annotations

import io

import pytest

from resultd._graph import DependencyGraph


def test_a_graph_reads_like_a_dict_of_lists() -> None:
    """Nodes, what they lead to, edges, valency."""
    graph = DependencyGraph([("a", ["b", "c"]), ("b", ["c"]), ("c", [])])
    assert dict(graph) == graph.adjacent == {"a": ["b", "c"], "b": ["c"], "c": []}
    assert (len(graph), "a" in graph, list(graph.edges())) == (3, True, ["a", "b"])
    assert (graph.valency_of("a"), graph.valency_of("nix")) == (3, 0)
    other = DependencyGraph()
    other.add_arc("x")
    other.add_edge("x", "y")
    other.connect(graph)
    assert set(other) == {"x", "a", "b", "c"}
    assert repr(other) == "<DependencyGraph: 4 nodes>"


def test_topsort_puts_what_is_led_to_first() -> None:
    """A long chain is no problem, a circle is said."""
    chain = DependencyGraph((n, [n + 1]) for n in range(5000))
    chain.add_arc(5000)
    assert chain.topsort() == list(range(5000, -1, -1))
    circle = DependencyGraph([("a", ["b"]), ("b", ["a"])])
    with pytest.raises(ValueError, match="cycle"):
        circle.topsort()


def test_dot_names_every_node_and_edge() -> None:
    """With labels escaped and formatted."""
    graph = DependencyGraph([('say "x"', ["b"])], formatter=str.upper)
    out = io.StringIO()
    graph.to_dot(out)
    assert out.getvalue().splitlines() == [
        "digraph results {",
        '  n0 [label="SAY \\"X\\""];',
        '  n1 [label="B"];',
        "  n0 -> n1;",
        "}",
    ]
    assert graph.format("b") == "B"
    assert DependencyGraph().format("b") == "b"
