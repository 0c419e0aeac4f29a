"""The graph that `build_graph()` returns: which result led to which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO


class DependencyGraph(Mapping[Any, "list[Any]"]):
    """Nodes and, for each, the nodes it leads to; reads like a dict of lists.

    Attributes:
        adjacent: the dict.
        formatter: called with a node, gives its label in `to_dot`; `str` if None.
    """

    def __init__(
        self,
        it: Iterable[tuple[Any, Iterable[Any]]] | None = None,
        formatter: Callable[[Any], str] | None = None,
    ) -> None:
        self.formatter = formatter
        self.adjacent: dict[Any, list[Any]] = {}
        self.update(it or ())

    def add_arc(self, obj: Any) -> None:
        """Add a node."""
        self.adjacent.setdefault(obj, [])

    def add_edge(self, A: Any, B: Any) -> None:  # noqa: N803 (Celery's names)
        """Add an edge from `A`, which is in the graph, to `B`."""
        self.adjacent[A].append(B)

    def connect(self, graph: DependencyGraph) -> None:
        """Take over the nodes of another graph."""
        self.adjacent.update(graph.adjacent)

    def update(self, it: Iterable[tuple[Any, Iterable[Any]]]) -> None:
        """Add nodes and their edges from pairs of a node and what it leads to."""
        pairs = [(node, list(to)) for node, to in it]
        for node, _ in pairs:
            self.add_arc(node)
        for node, to in pairs:
            self.adjacent[node].extend(to)

    def edges(self) -> Iterator[Any]:
        """Iterate over the nodes that lead somewhere."""
        return (node for node, to in self.adjacent.items() if to)

    def valency_of(self, obj: Any) -> int:
        """Count the edges of a node and of all that it leads to; 0 if it is not here."""
        total, stack, seen = 0, [obj], set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            to = self.adjacent.get(node, [])
            total += len(to)
            stack.extend(to)
        return total

    def topsort(self) -> list[Any]:
        """Sort so that every node stands behind those it leads to.

        Raises:
            ValueError: the graph has a cycle.
        """
        order: list[Any] = []
        finished: dict[Any, bool] = {}  # False while what the node leads to is worked on
        for root in self.adjacent:
            if root not in finished:
                self._visit(root, finished, order)
        return order

    def _visit(self, root: Any, finished: dict[Any, bool], order: list[Any]) -> None:
        # With a stack of our own: a chain of tasks may be longer than Python's.
        finished[root] = False
        stack = [(root, iter(self.adjacent.get(root, ())))]
        while stack:
            node, rest = stack[-1]
            for successor in rest:
                state = finished.get(successor)
                if state is False:
                    raise ValueError(f"the graph has a cycle through {successor!r}")
                if state is None:
                    finished[successor] = False
                    stack.append((successor, iter(self.adjacent.get(successor, ()))))
                    break
            else:
                finished[node] = True
                order.append(node)
                stack.pop()

    def to_dot(self, fh: TextIO, formatter: Callable[[Any], str] | None = None) -> None:
        """Write the graph in Graphviz's language to a text file."""
        label = formatter or self.formatter or str
        names = {node: f"n{number}" for number, node in enumerate(self._all_nodes())}
        print("digraph results {", file=fh)
        for node, name in names.items():
            print(f'  {name} [label="{_escaped(label(node))}"];', file=fh)
        for node, to in self.adjacent.items():
            for successor in to:
                print(f"  {names[node]} -> {names[successor]};", file=fh)
        print("}", file=fh)

    def format(self, obj: Any) -> Any:
        """Return a node's label."""
        return self.formatter(obj) if self.formatter else obj

    def _all_nodes(self) -> dict[Any, None]:
        nodes = dict.fromkeys(self.adjacent)
        for to in self.adjacent.values():
            nodes.update(dict.fromkeys(to))
        return nodes

    def __getitem__(self, node: Any) -> list[Any]:
        return self.adjacent[node]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.adjacent)

    def __len__(self) -> int:
        return len(self.adjacent)

    def __repr__(self) -> str:
        return f"<DependencyGraph: {len(self)} nodes>"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
