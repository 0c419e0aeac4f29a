"""`resultd demo`: the whole of it, in order."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import resultd
from resultd.cli.demo import files, node
from resultd.cli.demo.crew import Crew
from resultd.cli.demo.outage import Outage
from resultd.cli.demo.screen import Screen
from resultd.cli.demo.tally import Tally, Verdict, judge
from resultd.cli.options import CommandError
from resultd.client import Client
from resultd.testing import Server, ServerError

GROUP = "demo"
# All of it ends in under a minute, come what may.
STREAM_SECONDS_MAX = 45.0
# How long workers and the app keep trying while there is no server.
PATIENCE_SECONDS = 40

Files = Annotated[int, typer.Option("--files", min=10, max=1000, help="How many files.")]
Workers = Annotated[int, typer.Option("--workers", min=1, max=16, help="Workers in Python.")]
Pace = Annotated[
    float,
    typer.Option(
        "--pace",
        min=0,
        max=5,
        help="Seconds each task takes beyond its work, so that there is something to watch.",
    ),
]
Away = Annotated[
    float, typer.Option("--away", min=0, max=10, help="Seconds the server stays away.")
]
UseNode = Annotated[
    bool, typer.Option("--node/--no-node", help="Have a worker in Node too, where there is node.")
]


def demo(
    files_: Files = 300,
    workers: Workers = 3,
    pace: Pace = 0.12,
    away: Away = 1.0,
    use_node: UseNode = True,
) -> None:
    """See the main job done: workers count words, a server dies, nothing is lost."""
    if importlib.util.find_spec("lmdb") is None:
        raise CommandError("the demo starts a server: pip install 'resultd[server]'")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="resultd-demo-")))
        paths = files.choose(files_, scratch)
        try:
            verdict = _Demo(paths, workers, pace, away, use_node, scratch, stack).run(began)
        except ServerError as error:
            raise CommandError(str(error)) from None
    if not verdict.adds_up:
        raise typer.Exit(1)


class _Demo:
    def __init__(
        self,
        paths: list[Path],
        workers: int,
        pace: float,
        away: float,
        use_node: bool,
        scratch: Path,
        stack: contextlib.ExitStack,
    ) -> None:
        self.paths = {f"{GROUP}-{i:03d}": str(path) for i, path in enumerate(paths)}
        self.tasks: list[dict[str, Any]] = [
            {"task_id": task, "path": path, "pace": pace, "group_id": GROUP, "index": index}
            for index, (task, path) in enumerate(self.paths.items())
        ]
        self.count, self.use_node, self.scratch, self.stack = workers, use_node, scratch, stack
        self.screen = Screen(len(paths))
        self.server = Server(scratch / "data")
        self.outage = Outage(self.server, away, self.screen.say)
        self.tally = Tally()

    def run(self, began: float) -> Verdict:
        """Run all of it; whether it adds up."""
        say = self.screen.say
        say(f"Counting the words of {len(self.paths)} files, one task each.")
        self.stack.enter_context(self.server)
        say(f"server {self.server.url} (pid {self.server.pid}), nothing stored yet")
        url = f"{self.server.url}?timeout={PATIENCE_SECONDS}"
        client = self.stack.enter_context(Client(url))
        client.group(GROUP).create(self.paths)
        with Crew(self.tasks, self.scratch) as crew:
            for number in range(1, self.count + 1):
                worker = crew.hire_python(url, f"python-{number}")
                say(f"worker {worker.name} (pid {worker.process.pid})")
            if self.use_node:
                # Beside the others: it may have to fetch packages first. Waited for before
                # the scratch directory goes, so that no npm is left behind.
                hiring = threading.Thread(target=self._hire_node, args=(crew,))
                hiring.start()
                self.stack.callback(hiring.join)
            with self.screen:
                self._stream(client)
            for line in crew.dead:
                say(line)
        return self._sum_up(client, began)

    def _hire_node(self, crew: Crew) -> None:
        address = self.server.url.removeprefix("resultd://")
        try:
            command, environment = node.command(address, "node-1", self.scratch)
            worker = crew.hire(command, "node-1", environment)
        except node.NodeMissingError as error:
            self.screen.say(f"no worker in Node: {error}")
        except RuntimeError:
            self.screen.say("no worker in Node: the work was done before it was ready")
        else:
            self.screen.say(f"worker {worker.name} (pid {worker.process.pid})")

    def _stream(self, client: Client) -> None:
        try:
            for member in client.group(GROUP).as_completed(STREAM_SECONDS_MAX):
                assert member.meta is not None
                self.tally.add(member.meta)
                if member.state != "SUCCESS":
                    self.screen.failure(self.paths[member.id], member.meta)
                self.screen.landed(self.tally.done, len(self.tally.failed), self.tally.total_words)
                if not self.outage.started and 2 * self.tally.done >= len(self.paths):
                    self.outage.start()
        except resultd.TimeoutError:
            self.screen.say(f"not all results came in {STREAM_SECONDS_MAX:g} s")
        self.outage.join()

    def _sum_up(self, client: Client, began: float) -> Verdict:
        expected = files.count(map(Path, self.paths.values()))
        stored = client.list_results(group_id=GROUP)
        verdict = judge(self.tally, self.paths, expected, stored)
        outage, tally = self.outage, self.tally
        gap = tally.longest_gap(outage.began, outage.ended)
        by_worker = ", ".join(f"{name} {n}" for name, n in sorted(tally.workers.items()))
        self.screen.table(
            [
                ("files", f"{len(self.paths)}, {tally.done} with a result"),
                ("words", f"{tally.total_words:,}; counted here: {sum(expected.words.values()):,}"),
                ("failures", f"{len(tally.failed)}; not UTF-8 here: {len(expected.broken)}"),
                ("results by worker", by_worker),
                ("server away", f"{outage.ended - outage.began:.1f} s"),
                ("longest gap around it", f"{gap:.1f} s"),
                ("lost", str(verdict.lost)),
                ("duplicates", str(verdict.duplicates)),
                ("time", f"{time.monotonic() - began:.1f} s"),
                *(("PROBLEM", problem) for problem in verdict.problems),
                ("it", "adds up" if verdict.adds_up else "DOES NOT ADD UP"),
            ]
        )
        return verdict
