"""`resultd serve` as a process: signals, exit codes, what it says when it cannot start."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import result_service_pb2_grpc, state_pb2, stream_pb2
from resultd_server import heap, logs, serve
from resultd_server.config import Settings
from resultd_server.engine.lease import Lease
from resultd_server.serve import EXIT_CONFIG, EXIT_NO_ROOM
from tests.support import disk_faults, reports, serve_command, workers
from tests.support.refusals import Refusal, taken_apart
from tests.support.server_process import ServerProcess

DRAINING = stream_pb2.END_REASON_DRAINING
ALONE = pytest.mark.skipif(
    workers.WORKERS > 1, reason="workers share a store on disk and a TCP port"
)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of the test's own: it will end it."""
    with ServerProcess(tmp_path) as server:
        yield server


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """A server that is to refuse to start."""
    command = [sys.executable, "-m", "resultd_server", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def results(channel: grpc.Channel) -> result_service_pb2_grpc.ResultServiceStub:
    """ResultService on a channel."""
    return result_service_pb2_grpc.ResultServiceStub(channel)


def test_sigterm_ends_streams_with_draining_and_exits_0(own: ServerProcess) -> None:
    """SIGTERM: every stream gets END(DRAINING) with a delay, status OK, and the exit code is 0."""
    with grpc.insecure_channel(own.address) as channel:
        waits = [results(channel).WaitFor(pb.WaitForRequest(task_ids=[f"t{n}"])) for n in range(9)]
        for wait in waits:
            assert next(wait).control.kind == stream_pb2.CONTROL_KIND_SYNCED
        own.send(signal.SIGTERM)
        for wait in waits:
            [last] = list(wait)
            assert last.control.end_reason == DRAINING
            assert last.control.retry_delay.ToTimedelta().total_seconds() > 0
            assert wait.code() == grpc.StatusCode.OK
    assert own.wait() == 0


def test_a_server_with_open_health_watches_still_ends_soon(own: ServerProcess) -> None:
    """Health watches, which never end by themselves, get NOT_SERVING and do not hold a drain up."""
    with grpc.insecure_channel(own.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types lack Watch
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        own.send(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert own.process.wait(8) == 0  # under the 10 s of drain_s
        own.wait()


def test_calls_under_way_finish_while_new_ones_are_sent_elsewhere(tmp_path: Path) -> None:
    """While it drains, what began goes on, and what comes is DRAINING with a RetryInfo."""
    options = (("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0))
    with (
        ServerProcess(tmp_path, "--drain-s", "30") as server,
        grpc.insecure_channel(server.address, options) as channel,
        grpc.insecure_channel(server.address) as other,
    ):
        ids = [f"big{n}" for n in range(8)]
        for task_id in ids:
            results(channel).StoreResult(reports.success(task_id, b"x" * 2**20))
        # Nobody reads it yet, so that it is still under way while the server drains.
        wait = results(channel).WaitFor(pb.WaitForRequest(task_ids=ids))
        results(other).GetResult(pb.GetResultRequest(task_id="t"))
        server.send(signal.SIGTERM)
        refusal = _until_refused(other)
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "DRAINING")
        assert refusal.retry_delay_s == 1
        frames = list(wait)
        assert frames[-1].control.end_reason in (DRAINING, stream_pb2.END_REASON_COMPLETE)
        assert server.wait() == 0


def _until_refused(channel: grpc.Channel) -> Refusal:
    while True:
        try:
            results(channel).GetResult(pb.GetResultRequest(task_id="t"), timeout=10)
        except grpc.RpcError as error:
            return taken_apart(error)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """A second SIGTERM does not wait for what is under way."""
    with (
        ServerProcess(tmp_path, "--drain-s", "600") as server,
        grpc.insecure_channel(server.address, (("grpc.http2.bdp_probe", 0),)) as channel,
    ):
        for number in range(8):
            results(channel).StoreResult(reports.success(f"big{number}", b"x" * 2**20))
        ids = [f"big{n}" for n in range(8)]
        wait = results(channel).WaitFor(pb.WaitForRequest(task_ids=ids))
        next(wait)
        server.send(signal.SIGTERM)
        _until_refused(channel)
        server.send(signal.SIGTERM)
        assert server.wait() == 0


def test_what_was_acknowledged_before_the_signal_is_there_after_it(tmp_path: Path) -> None:
    """Reports that got OK while the server was told to stop are read by the next one."""
    acknowledged: list[str] = []
    with ServerProcess(tmp_path) as server, grpc.insecure_channel(server.address) as channel:

        def report() -> None:
            while True:
                task_id = f"t{len(acknowledged)}"
                try:
                    results(channel).StoreResult(reports.success(task_id), timeout=10)
                except grpc.RpcError:
                    return
                acknowledged.append(task_id)

        worker = threading.Thread(target=report)
        worker.start()
        while len(acknowledged) < 50:
            results(channel).GetResult(pb.GetResultRequest(task_id="t"))
        assert server.stop() == 0
        worker.join()
    with ServerProcess(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        got = results(channel).BatchGetResults(pb.BatchGetResultsRequest(task_ids=acknowledged))
        assert [meta.state for meta in got.metas] == [state_pb2.STATE_SUCCESS] * len(acknowledged)


def test_a_second_server_on_the_port_refuses(own: ServerProcess, tmp_path: Path) -> None:
    """A port in use: one sentence that names it and a remedy, exit code 2, nothing taken over."""
    second = run("--data", str(tmp_path / "other"), "--listen", own.address)
    assert second.returncode == 2
    [line] = second.stderr.splitlines()
    assert line == (
        f"resultd: Cannot listen on {own.address}: Address already in use: stop the server that "
        "listens there, or name another address with --listen."
    )
    assert not second.stdout
    assert not (tmp_path / "other").exists()


def test_a_second_server_on_the_data_refuses(own: ServerProcess, tmp_path: Path) -> None:
    """A data directory in use: one sentence with a remedy, exit code 2."""
    second = run("--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0")
    assert second.returncode == 2
    [line] = second.stderr.splitlines()
    assert line.startswith("resultd: A server uses the data directory")
    with grpc.insecure_channel(own.address) as channel:
        assert results(channel).StoreResult(reports.success("t")).version == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--listen", "127.0.0.1"], "listen"),
        (["--listen", "127.0.0.1:0"], "--data"),
        (["--listen", "0.0.0.0:0", "--data", "/nowhere"], "--insecure"),
        (["--auth-file", "/nowhere/auth.toml", "--data", "x"], "/nowhere/auth.toml cannot be read"),
        (["--tls-cert", "/dev/null", "--tls-key", "/dev/null", "--data", "x"], "no certificate"),
        (["--data", ""], "data: is empty"),
        (["--data", "x", "--max-db-bytes", "99999999TiB"], "max_db_bytes"),
        (["--data", "x", "--stream-age-s", "0"], "stream_age_s"),
        (["--data", "x", "--engine", "paper"], "engine"),
        (["--data", "/dev/null/x", "--listen", "127.0.0.1:0"], "/dev/null"),
        (["--data", "x", "--listen", "no.such.host.invalid:0", "--insecure"], "no.such.host"),
        (["--data", "x", "--listen", "unix:/no/such/directory/s"], "/no/such/directory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_cannot_use_it_refuses_in_a_sentence(flags: list[str], said: str) -> None:
    """Settings that cannot be used: one line on stderr that names them, exit code 2."""
    refused = run(*flags)
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert line.startswith("resultd: ")
    assert said in line


@pytest.mark.parametrize(
    "begins",
    [
        ["import runpy; runpy.run_module('resultd_server', run_name='__main__')"],
        ["from resultd.cli import main; main()", "serve"],
    ],
    ids=["module", "script"],
)
def test_a_traceback_is_plain(begins: list[str]) -> None:
    """As Python writes it, for a log: no frames drawn, no values of variables."""
    broken_serve = "import resultd_server.serve; resultd_server.serve.serve = None; "
    command = [sys.executable, "-c", broken_serve + begins[0], *begins[1:]]
    broken = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert broken.returncode == 1
    assert broken.stderr.startswith("Traceback (most recent call last):\n")
    assert broken.stderr.splitlines()[-1] == "TypeError: 'NoneType' object is not callable"


@pytest.mark.parametrize(
    ("flag", "value"),
    [("data", "{}/\udcff"), ("listen", "unix:{}/\udcff"), ("admin", "\udcff:0")],
)
def test_a_name_that_is_not_utf_8_is_refused_in_a_sentence(
    tmp_path: Path, flag: str, value: str
) -> None:
    """What LMDB and gRPC cannot be told is named before anything is made of it: exit code 2."""
    flags = ["--listen", "127.0.0.1:0", "--data", str(tmp_path / "data")]
    refused = run(*flags, f"--{flag}", value.format(tmp_path))
    assert refused.returncode == EXIT_CONFIG
    [line] = refused.stderr.splitlines()
    assert line.startswith(f"resultd: {flag}: is not UTF-8: name another (got '")
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """A directory with a foreign or broken store: one line that says so, exit code 2."""
    foreign, garbled, broken = (tmp_path / name for name in ("foreign", "garbled", "broken"))
    for directory in (foreign, garbled, broken):
        directory.mkdir()
    (foreign / "data.mdb").write_bytes(b"x" * 8192)
    (garbled / "resultd.json").write_text("{")
    (broken / "resultd.json").write_text('{"format": 1, "lmdb": "0.9.36", "store_id": "s"}')
    (broken / "data.mdb").write_bytes(b"x" * 8192)
    for directory in (foreign, garbled, broken):
        refused = run("--data", str(directory), "--listen", "127.0.0.1:0")
        assert refused.returncode == 2, refused.stderr
        [line] = refused.stderr.splitlines()
        assert line.startswith("resultd: ")
        assert str(directory) in line


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    if (reason := disk_faults.no_small_disk()) is not None:
        pytest.skip(reason)
    with disk_faults.small_disk(tmp_path) as disk:
        yield disk


def test_no_room_for_a_new_store_is_no_mistake_in_the_settings(small: Path) -> None:
    """It passes by itself: exit code 4, which a service manager tries again, and what to do."""
    with disk_faults.taken(small):
        refused = run("--data", str(small / "data"), "--listen", "127.0.0.1:0")
    assert refused.returncode == EXIT_NO_ROOM, refused.stderr
    [line] = refused.stderr.splitlines()
    assert "No space left on device: make room on its disk" in line
    assert "backup" not in line


def test_several_processes_wait_for_room_for_a_journal(small: Path) -> None:
    """What a killed server of one process left they cannot serve before LMDB has it: code 4."""
    server = ServerProcess(small, "--workers", "1").start()
    with grpc.insecure_channel(server.address) as channel:
        results(channel).StoreResult(reports.success("t", bytes(100_000)))
        server.kill()
    flags = ("--data", str(small / "data"), "--listen", "127.0.0.1:0", "--workers", "2")
    with disk_faults.taken(small):
        refused = run(*flags)
    assert refused.returncode == EXIT_NO_ROOM, refused.stderr
    [line] = refused.stderr.splitlines()
    assert "cannot be written into the store: make room on its disk" in line
    assert "a server of one process serves it" in line


def test_a_worker_without_room_ends_them_all_with_its_code(small: Path) -> None:
    """One of several that cannot open the store says why, and its exit code is the supervisor's."""
    Lease(small / "data").close()
    (small / "data" / "lock.mdb").unlink()  # of which the supervisor has no need
    flags = ("--data", str(small / "data"), "--listen", "127.0.0.1:0", "--workers", "2")
    with disk_faults.taken(small):
        refused = run(*flags)
    assert refused.returncode == EXIT_NO_ROOM, refused.stderr
    assert "make room on its disk" in refused.stderr


def test_files_that_may_not_be_written_say_what_to_do(tmp_path: Path) -> None:
    """A disk that is read only, in a sentence with its remedy and exit code 2."""
    with ServerProcess(tmp_path):
        pass
    data, read_only = tmp_path / "data", tmp_path / "read-only"
    read_only.mkdir()
    command = "mount --bind {0} {1} && mount -o remount,ro,bind {1} && exec {2}"
    serve = f"{sys.executable} -m resultd_server --data {read_only} --listen 127.0.0.1:0"
    script = command.format(data, read_only, serve)
    within = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    refused = subprocess.run(within, capture_output=True, text=True, timeout=30, check=False)
    if "unshare" in refused.stderr or "mount:" in refused.stderr:
        pytest.skip(refused.stderr)
    assert refused.returncode == EXIT_CONFIG
    assert refused.stderr == (
        f"resultd: The data directory {read_only} cannot be used: Read-only file system: mount its "
        "disk for writing, or name another directory.\n"
    )


@ALONE
def test_a_unix_socket_serves(tmp_path: Path) -> None:
    """unix:PATH is listened on, refused while it is in use, and taken again after a crash."""
    listen = f"unix:{tmp_path}/s"
    server = ServerProcess(tmp_path, listen=listen).start()
    assert server.address == listen
    with grpc.insecure_channel(listen) as channel:
        assert results(channel).StoreResult(reports.success("t")).version == 1
    second = run("--data", str(tmp_path / "other"), "--listen", listen)
    assert (second.returncode, len(second.stderr.splitlines())) == (2, 1)
    assert "Address already in use" in second.stderr
    server.kill()
    with ServerProcess(tmp_path, listen=listen), grpc.insecure_channel(listen) as channel:
        got = results(channel).GetResult(pb.GetResultRequest(task_id="t"))
        assert got.meta.state == state_pb2.STATE_SUCCESS


@ALONE
def test_a_signal_as_soon_as_it_is_ready_drains(tmp_path: Path) -> None:
    """SIGTERM at the very moment the address is printed still ends with exit code 0."""
    server = ServerProcess(tmp_path, "--engine", "memory").start()
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert [line["event"] for line in server.log_lines()][-1] == "stopped"


def test_flags_are_read_as_the_settings_read_them(tmp_path: Path) -> None:
    """A size may have a unit on the command line too; what is not given is the default."""
    read = serve_command.settings(["--data", str(tmp_path), "--max-db-bytes", "10GiB"])
    assert read.max_db_bytes == 10 * 1024**3
    assert read.drain_s == Settings.model_fields["drain_s"].default


def test_a_server_loads_only_what_it_is_asked_for() -> None:
    """Without an admin port, TLS and an auth file their libraries are not imported."""
    wanted = "prometheus_client", "cryptography", "jwt", "rich", "pydantic_settings"
    program = (
        f"import sys, resultd_server.serve; print([n for n in {wanted!r} if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


class Still:
    """Serves nothing."""

    admin = ""

    async def start(self) -> str:
        """Is there."""
        return "here"

    async def drain(self) -> None:
        """Has nothing to end."""

    async def stop(self) -> None:
        """Has nothing to stop."""


async def test_what_was_logged_is_there_before_the_server_says_it_is_ready(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever waits for that may look into the log for the admin port."""
    printed: list[str] = []
    monkeypatch.setattr(heap, "settle", lambda: None)  # it is for the whole process
    monkeypatch.setattr(logs, "flush", lambda: printed.append(capfd.readouterr().out))
    broken = asyncio.Event()
    broken.set()
    with structlog.testing.capture_logs() as lines:
        settings = Settings.model_validate({"engine": "memory"})
        assert await serve._serve(settings, Still(), broken, lambda: 3) == 3
    assert (printed, capfd.readouterr().out) == ([""], "resultd ready on here\n")
    assert [line["event"] for line in lines] == ["serving", "stopped"]


@pytest.mark.parametrize(("host", "warnings"), [("127.0.0.1", 0), ("0.0.0.0", 1)])
def test_an_admin_port_for_others_is_told(tmp_path: Path, host: str, warnings: int) -> None:
    """A warning says that everybody who can connect may read the metrics."""
    with ServerProcess(tmp_path, "--admin", f"{host}:0") as server:
        said = [line["event"] for line in server.log_lines() if line["level"] == "warning"]
    assert sum("admin port open" in event for event in said) == warnings
