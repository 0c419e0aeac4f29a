"""Laws of having Node at hand, or not."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from resultd.cli.demo import node
from resultd.v1 import result_service_pb2


@pytest.fixture
def bin_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it, and an empty cache."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return place


def program(place: Path, script: str) -> None:
    """Put a shell script where it is found as a command."""
    place.write_text(f"#!/bin/sh\n{script}\n")
    place.chmod(place.stat().st_mode | stat.S_IXUSR)


def test_a_machine_without_node_is_no_error_but_a_sentence(bin_: Path) -> None:
    """What is missing is said: node, a newer node, npm."""
    with pytest.raises(node.NodeMissingError, match="node is not installed"):
        node.command("h:1", "n", bin_)
    program(bin_ / "node", "echo v12.1.0")
    with pytest.raises(node.NodeMissingError, match=r"v12\.1\.0 is older"):
        node.command("h:1", "n", bin_)
    program(bin_ / "node", "echo v20.1.0")
    with pytest.raises(node.NodeMissingError, match="npm is not installed"):
        node.command("h:1", "n", bin_)


def test_packages_that_cannot_be_fetched_are_given_up(
    bin_: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """npm's own reason is passed on; one that takes too long is stopped."""
    program(bin_ / "npm", "echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(node.NodeMissingError, match="ENOTFOUND"):
        node.packages()
    monkeypatch.setattr(node, "INSTALL_SECONDS_MAX", 0.2)
    program(bin_ / "npm", "exec /bin/sleep 30")
    with pytest.raises(node.NodeMissingError, match="did not install"):
        node.packages()


def test_a_cache_that_cannot_be_written_is_said(
    bin_: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache directory that is none: a sentence, no traceback."""
    program(bin_ / "npm", "exit 0")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(node.NodeMissingError, match="cannot be kept"):
        node.packages()


def test_packages_are_installed_once(bin_: Path) -> None:
    """The second time what lies in the cache is taken, without npm."""
    modules = " ".join(
        f'"$3/node_modules/{package.rpartition("@")[0]}"' for package in node.PACKAGES
    )
    program(bin_ / "npm", f"/bin/mkdir -p {modules}")
    first = node.packages()
    (bin_ / "npm").unlink()
    assert node.packages() == first


def test_a_descriptor_set_has_imports_first() -> None:
    """Every file comes after those it imports, each once: what loaders ask for."""
    seen: list[str] = []
    for file in node.descriptor_set(result_service_pb2.DESCRIPTOR).file:
        assert set(file.dependency) <= set(seen)
        seen.append(file.name)
    assert len(seen) == len(set(seen))
    assert seen[-1] == "resultd/v1/result_service.proto"
