"""`resultd verify`."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from resultd_server.engine import environment
from resultd_server.ledger import keys, usage
from resultd_server.ledger.txn import Db
from resultd_server.verify_command import EXIT_CANNOT, EXIT_DAMAGED, verify
from tests.support.stores import MAP_BYTES, Clock, Store, make_engine


def run(*arguments: str) -> Result:
    """What `resultd verify` does with these."""
    single = typer.Typer()
    single.command()(verify)
    return CliRunner().invoke(single, arguments)


async def fill(directory: Path) -> None:
    """A store with a record."""
    engine = make_engine("journaled", Clock(), directory)
    await engine.start()
    await Store(engine, Clock()).report("t1")
    await engine.close()


async def test_a_whole_store_ends_with_0(tmp_path: Path) -> None:
    """In words, and as one JSON object."""
    await fill(tmp_path)
    said = run(str(tmp_path))
    assert said.exit_code == 0
    assert said.stdout.startswith("whole: ")
    found = json.loads(run(str(tmp_path), "--json").stdout)
    assert (found["whole"], found["count"], found["damages"]) == (True, 0, [])


async def test_a_damaged_store_ends_with_1(tmp_path: Path) -> None:
    """A file that lost its end is named."""
    await fill(tmp_path)
    data = tmp_path / "data.mdb"
    data.write_bytes(data.read_bytes()[:-4096])
    said = run(str(tmp_path))
    assert said.exit_code == EXIT_DAMAGED
    assert "data.mdb" in said.stdout
    assert "DAMAGED" in said.stdout
    found = json.loads(run(str(tmp_path), "--json").stdout)
    assert found["whole"] is False
    assert found["damages"][0]["where"] == "data.mdb"


async def test_a_wrong_count_is_set_right_where_that_is_asked(tmp_path: Path) -> None:
    """Without --recount it is damage and the option is named; with it the count is told."""
    await fill(tmp_path)
    opened = environment.open_environment(tmp_path, MAP_BYTES)
    meta = environment.open_databases(opened, tmp_path)[Db.META]
    with opened.begin(write=True) as txn:
        (key,) = [key for key in environment.keys_of(txn, meta) if key.startswith(keys.usage(b""))]
        txn.put(key, environment.seal(key, usage.pack(5, 5)), db=meta)
    opened.close()
    said = run(str(tmp_path))
    assert said.exit_code == EXIT_DAMAGED
    assert "run it with --recount" in said.stdout
    said = run(str(tmp_path), "--recount")
    assert said.exit_code == 0
    assert "'default' holds 1 records, " in said.stdout
    assert "its count said 5 records, 5 bytes" in said.stdout
    assert json.loads(run(str(tmp_path), "--json", "--recount").stdout)["recounted"] == []


def test_what_is_no_store_ends_with_2(tmp_path: Path) -> None:
    """A sentence on stderr, nothing on stdout."""
    said = run(str(tmp_path))
    assert said.exit_code == EXIT_CANNOT
    assert "There is no store" in said.stderr
    assert said.stdout == ""
