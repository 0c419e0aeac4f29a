"""What a worker in Node needs: the program, its packages, and the protocol's descriptors."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from resultd.v1 import result_service_pb2

WORKER = Path(__file__).with_name("node_worker.cjs")
PACKAGES = ("@grpc/grpc-js@^1.10.0", "@grpc/proto-loader@^0.7.10")
NODE_MIN = 18
INSTALL_SECONDS_MAX = 20.0


class NodeMissingError(Exception):
    """There will be no worker in Node; says why."""


def command(address: str, name: str, scratch: Path) -> tuple[list[str], dict[str, str]]:
    """Give the command and environment of a worker; may take seconds the first time.

    Raises:
        NodeMissingError: Node or its packages cannot be had.
    """
    node = _node()
    modules = packages()
    descriptors = scratch / "resultd.binpb"
    descriptors.write_bytes(descriptor_set(result_service_pb2.DESCRIPTOR).SerializeToString())
    environment = os.environ | {"NODE_PATH": str(modules)}
    return [node, str(WORKER), address, name, str(descriptors)], environment


def packages() -> Path:
    """Return the directory of Node's packages, installed on first use into the user's cache.

    Raises:
        NodeMissingError: they are not there and cannot be installed quickly.
    """
    home = _cache() / "node"
    modules = home / "node_modules"
    if all((modules / package.rpartition("@")[0]).is_dir() for package in PACKAGES):
        return modules
    npm = shutil.which("npm")
    if npm is None:
        raise NodeMissingError("npm is not installed")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as fresh:
            _install(npm, fresh)
            shutil.rmtree(home, ignore_errors=True)
            Path(fresh).rename(home)
            Path(fresh).mkdir()  # for the context manager to delete
    except OSError as error:
        raise NodeMissingError(f"its packages cannot be kept in {home}: {error}") from None
    return modules


def descriptor_set(file: FileDescriptor) -> FileDescriptorSet:
    """Describe a .proto file and all it imports, imports first."""
    found: dict[str, FileDescriptor] = {}

    def visit(one: FileDescriptor) -> None:
        if one.name not in found:
            for imported in one.dependencies:
                visit(imported)
            found[one.name] = one

    visit(file)
    made = FileDescriptorSet()
    for one in found.values():
        one.CopyToProto(made.file.add())
    return made


def _node() -> str:
    node = shutil.which("node")
    if node is None:
        raise NodeMissingError("node is not installed")
    shown = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    major = shown.lstrip("v").partition(".")[0]
    if not major.isdigit() or int(major) < NODE_MIN:
        raise NodeMissingError(f"node {shown.strip()} is older than {NODE_MIN}")
    return node


def _install(npm: str, directory: str) -> None:
    flags = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts")
    line = [npm, "install", "--prefix", directory, *flags, "--loglevel=error", *PACKAGES]
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS_MAX
        )
    except subprocess.TimeoutExpired:
        raise NodeMissingError(
            f"npm did not install its packages in {INSTALL_SECONDS_MAX:.0f} s"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise NodeMissingError(f"npm cannot install its packages: {last}")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "resultd"
