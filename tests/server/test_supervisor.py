"""Several processes over one store: they serve as one, and outlive one another."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import resultd
from resultd.testing import Server, ServerError
from resultd_server.app import Place
from resultd_server.config import ConfigError, load
from resultd_server.supervisor import order, read_order
from tests.support import http
from tests.support.server_process import ServerProcess
from tests.support.waiting import children_of, until, workers_begun

TWO = ("--workers", "2")


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """A server of two processes that no test harms."""
    with Server(arguments=TWO) as running:
        yield running


@pytest.fixture
def own() -> Iterator[Server]:
    """A server of two processes for one test."""
    with Server(arguments=TWO) as running:
        yield running


def workers_of(server: Server | subprocess.Popen[str]) -> list[int]:
    """The processes of a server."""
    return children_of(server.pid)


def clients(server: Server, count: int) -> list[resultd.Client]:
    """Clients with a connection each: some reach one process, some the other."""
    return [resultd.Client(f"{server.url}?timeout={30 + n}") for n in range(count)]


def test_a_result_stored_in_one_process_is_pushed_by_the_other(shared: Server) -> None:
    """Twelve waiters on twelve connections all hear of results stored on a thirteenth."""
    waiting = clients(shared, 12)
    got: list[object] = []

    def wait(client: resultd.Client, number: int) -> None:
        got.append(client.AsyncResult(f"cross-{number}").get(timeout=20))

    threads = [
        threading.Thread(target=wait, args=(client, number))
        for number, client in enumerate(waiting)
    ]
    for thread in threads:
        thread.start()
    with resultd.Client(shared.url) as storing:
        for number in range(12):
            storing.store_result(f"cross-{number}", number)
    for thread in threads:
        thread.join(20)
    for client in waiting:
        client.close()
    assert set(got) == set(range(12))


def test_a_group_is_counted_once_whoever_stores_its_parts(shared: Server) -> None:
    """A group whose parts come through both processes is complete once, with all of them."""
    storing = clients(shared, 6)
    with resultd.Client(shared.url) as client:
        group = client.group("both").create([f"both-{n}" for n in range(120)])

        def store(own: resultd.Client, first: int) -> None:
            for number in range(first, 120, 6):
                own.store_result(f"both-{number}", number)

        threads = [threading.Thread(target=store, args=(each, n)) for n, each in enumerate(storing)]
        for thread in threads:
            thread.start()
        assert sorted(group.iterate(timeout=30)) == list(range(120))
        for thread in threads:
            thread.join(20)
        assert group.get_info().complete
    for each in storing:
        each.close()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_is_started_again_and_nothing_is_lost(own: Server, victim: int) -> None:
    """Under SIGKILL of either worker: every acknowledged result is there, and waits go on."""
    ids = [f"kept-{number}" for number in range(40)]
    waited: list[object] = []
    before = workers_of(own)
    with resultd.Client(own.url) as client:
        results = client.ResultSet([client.AsyncResult(id_) for id_ in ids])
        waiter = threading.Thread(target=lambda: waited.extend(results.get(timeout=40)))
        waiter.start()
        for number, id_ in enumerate(ids):
            client.store_result(id_, number)
            if number == 20:
                os.kill(before[victim], signal.SIGKILL)
        waiter.join(40)
    assert waited == list(range(40))
    until(lambda: len(set(workers_of(own)) - set(before)) == 1)
    assert "worker died" in own.log()


def test_all_workers_killed_at_once_come_back(own: Server) -> None:
    """The store outlives its processes; the next call finds it."""
    with resultd.Client(own.url) as client:
        client.store_result("before", 1)
        for pid in workers_of(own):
            os.kill(pid, signal.SIGKILL)
        assert client.AsyncResult("before").get(timeout=30) == 1


def test_sigterm_drains_all_and_ends(own: Server) -> None:
    """A stopped server leaves no process, and starts again on the same port and data."""
    with resultd.Client(own.url) as client:
        client.store_result("kept", 1)
        pids = workers_of(own)
        own.restart()
        assert all(not Path(f"/proc/{pid}").exists() for pid in pids)
        assert client.AsyncResult("kept").get(timeout=20) == 1


def test_workers_go_when_their_supervisor_is_killed(own: Server) -> None:
    """After SIGKILL of the supervisor no process stays, and the next server gets the data."""
    with resultd.Client(own.url) as client:
        client.store_result("kept", 1)
        pids = workers_of(own)
        own.kill()
        own.start()
        until(lambda: all(not Path(f"/proc/{pid}").exists() for pid in pids))
        assert client.AsyncResult("kept").get(timeout=20) == 1


def test_a_second_sigterm_ends_a_drain_that_hangs_and_logs_nothing_odd(tmp_path: Path) -> None:
    """Workers that do not move are killed; asyncio has nothing to complain about."""
    with ServerProcess(tmp_path, *TWO, "--drain-s", "60") as server:
        for pid in workers_of(server.process):
            os.kill(pid, signal.SIGSTOP)
        server.send(signal.SIGTERM)
        until(lambda: '"draining"' in server.log())
        server.send(signal.SIGTERM)
        assert server.wait() == 0
        assert {line["event"] for line in server.log_lines()} == {
            "serving", "worker ready", "draining", "stopped",
        }  # fmt: skip


def test_a_second_server_is_kept_off_the_data_and_the_port(own: Server, tmp_path: Path) -> None:
    """Neither the directory nor the port is shared with strangers, workers or not."""
    again = Server(tmp_path, arguments=(*TWO, "--listen", f"127.0.0.1:{own.port}"))
    with pytest.raises(ServerError, match="in use"):
        again.start()
    again.close()


def test_what_workers_cannot_share_is_refused(tmp_path: Path) -> None:
    """The memory engine and unix sockets are for one process; the sentence says so."""
    for flags in ({"engine": "memory"}, {"listen": "unix:/tmp/x.sock"}):
        with pytest.raises(ConfigError, match="workers"):
            load({"data": tmp_path, "workers": 2, **flags}, environ={})


def test_a_worker_is_told_everything(tmp_path: Path) -> None:
    """Settings and place survive the line that starts a worker."""
    settings = load({"data": tmp_path, "workers": 3, "max_db_bytes": 2**31}, environ={})
    place = Place(2, 3, "resultd-x", 8, 9)
    assert read_order(order(settings, place)) == (settings, place)


def test_a_store_that_cannot_be_opened_ends_all(tmp_path: Path) -> None:
    """A foreign directory is refused with exit code 2, before any worker starts."""
    (tmp_path / "data.mdb").write_bytes(b"x" * 8192)
    command = [sys.executable, "-m", "resultd_server", "--data", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--listen", "127.0.0.1:0", *TWO], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 2
    assert "not ours" in ended.stderr


def test_a_scrape_is_right_for_all_workers() -> None:
    """The admin port tells every worker's numbers: together they are what clients did."""
    with Server(arguments=(*TWO, "--admin", "127.0.0.1:0")) as server:
        admin = re.findall(r'"admin": "([^"]+:\d+)"', server.log())[-1]
        for client in clients(server, 8):
            with client:
                client.store_result("counted", 1)
        counted = {"method": "ResultService/StoreResult", "code": "OK"}
        assert http.value(http.get(admin, "/metrics")[1], "resultd_rpcs_total", **counted) == 8
        assert http.get(admin, "/readyz") == http.get(admin, "/livez") == (200, "ok\n")
        victim = workers_of(server)[0]
        os.kill(victim, signal.SIGSTOP)
        status, trouble = http.get(admin, "/livez")
        assert status == 503
        assert trouble.endswith("does not answer\n")
        assert http.get(admin, "/readyz") == (200, "ok\n")  # the other one takes calls
        page = http.get(admin, "/metrics")[1]
        assert http.value(page, "resultd_worker_up") == 1
        os.kill(victim, signal.SIGCONT)


ADMIN = ("--admin", "127.0.0.1:0")
BRISK = ("tests.support.brisk_supervisor",)


def admin_of(server: ServerProcess) -> str:
    """Where the supervisor answers scrapes and probes."""
    return str(re.findall(r'"admin": "([^"]+:\d+)"', server.log())[-1])


def ready(server: ServerProcess) -> list[dict[str, int]]:
    """Every time that a worker became ready, the first one first: its index and pid."""
    return [json.loads(line) for line in server.log().splitlines() if '"worker ready"' in line]


def test_a_server_needs_no_temporary_directory(tmp_path: Path) -> None:
    """Whoever cleans /tmp takes nothing from it: a worker that dies afterwards comes back."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with ServerProcess(tmp_path, *TWO, environ={"TMPDIR": str(temporary)}) as server:
        assert list(temporary.iterdir()) == []
        shutil.rmtree(temporary)
        os.kill(ready(server)[0]["pid"], signal.SIGKILL)
        until(lambda: len(ready(server)) == 3)
        assert server.process.poll() is None


def test_a_worker_that_cannot_start_again_is_tried_until_it_can(tmp_path: Path) -> None:
    """While the auth file is damaged the sibling serves on; once it is mended both do."""
    auth = tmp_path / "auth.toml"
    auth.write_text("")  # lets nobody in
    with ServerProcess(tmp_path, *TWO, *ADMIN, "--auth-file", str(auth)) as server:
        one, other = (line["pid"] for line in ready(server))
        auth.write_text("tokens = [")
        os.kill(one, signal.SIGKILL)
        until(lambda: server.log().count('"code": 2') == 2)
        assert http.get(admin_of(server), "/livez") == (200, "ok\n")
        assert http.get(admin_of(server), "/readyz") == (200, "ok\n")
        assert http.value(http.get(admin_of(server), "/metrics")[1], "resultd_worker_up") == 1
        auth.write_text("")
        until(lambda: len(ready(server)) == 3)
        assert other in children_of(server.process.pid)
        assert server.stop() == 0


def test_a_server_that_cannot_serve_any_more_ends(tmp_path: Path) -> None:
    """When nobody serves and no worker can start, it is not live, and ends as a start would."""
    auth = tmp_path / "auth.toml"
    auth.write_text("")
    with ServerProcess(tmp_path, *TWO, *ADMIN, "--auth-file", str(auth), program=BRISK) as server:
        auth.write_text("tokens = [")
        for pid in children_of(server.process.pid):
            os.kill(pid, signal.SIGKILL)
        until(lambda: http.get(admin_of(server), "/livez") == (503, "no worker serves\n"))
        assert server.wait() == 2


def test_a_supervisor_that_cannot_start_a_process_tries_again(tmp_path: Path) -> None:
    """Out of descriptors it says so; a worker is there as soon as there are some."""
    with ServerProcess(tmp_path, *TWO) as server:
        pid = server.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
        os.kill(ready(server)[0]["pid"], signal.SIGKILL)
        until(lambda: server.log().count('"worker not started"') == 2)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        until(lambda: len(ready(server)) == 3)
        assert server.stop() == 0


def test_a_worker_that_does_not_become_ready_is_killed_and_tried_again(tmp_path: Path) -> None:
    """A restarted worker has its time; beyond it the server is not live, until it is ready."""
    with ServerProcess(tmp_path, *TWO, *ADMIN, program=BRISK) as server:
        pids = {line["index"]: line["pid"] for line in ready(server)}
        os.kill(pids[1], signal.SIGSTOP)  # the other one waits for it
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: '"worker not ready"' in server.log())
        assert http.get(admin_of(server), "/livez") == (503, "worker 0 does not become ready\n")
        os.kill(pids[1], signal.SIGCONT)
        until(lambda: len(ready(server)) == 3)
        assert http.get(admin_of(server), "/livez") == (200, "ok\n")
        assert server.stop() == 0


def test_workers_that_are_not_ready_in_time_end_the_start(tmp_path: Path) -> None:
    """A start that hangs ends with exit code 1, and a sentence: it may go well next time."""
    command = [sys.executable, "-m", *BRISK, "--data", str(tmp_path / "data"), *TWO]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    ) as process:
        until(lambda: len(workers_begun(process.pid)) == 2)
        for pid in children_of(process.pid):
            os.kill(pid, signal.SIGSTOP)
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "resultd: Not ready after 8 s: worker 0, 1.\n"
