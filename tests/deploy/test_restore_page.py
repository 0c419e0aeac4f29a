"""docs/operating.md restores: its commands and its pod's script do what the page says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import result_service_pb2_grpc
from tests.deploy.chart import ALL, rendered
from tests.deploy.test_chart import KUBERNETES
from tests.support import reports
from tests.support.server_process import ServerProcess
from tests.tooling.repository import ROOT

RUN_S = 40.0
PAGE = ROOT / "docs" / "operating.md"
DATA, BACKUPS = "/var/lib/resultd", "/var/backups/resultd"
FILE = re.compile(rf"{BACKUPS}/\S+\.backup")


def blocks(kind: str) -> list[str]:
    """The page's blocks of a kind."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [text for named, text in found if named == kind]


def restore_pod() -> dict[str, Any]:
    """The pod that takes over the store's volume."""
    (text,) = blocks("yaml")
    pod: dict[str, Any] = yaml.safe_load(text)
    return pod


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A directory with a `resultd` that is this Python's, for the front of PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    command = directory / "resultd"
    code = "import sys; from resultd.cli import main; sys.exit(main())"
    command.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-c", code])} "$@"\n')
    command.chmod(0o755)
    return directory


def ran(script: str, program: Path, *shell: str) -> str:
    """What a script of the page prints; it must succeed."""
    return subprocess.run(
        [*(shell or ("sh", "-ec")), f'PATH="{program}:$PATH"\n{script}'],
        check=True,
        timeout=RUN_S,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout


def stored(server: ServerProcess, *ids: str) -> None:
    """Reports of tasks, acknowledged."""
    with grpc.insecure_channel(server.address) as channel:
        results = result_service_pb2_grpc.ResultServiceStub(channel)
        for id_ in ids:
            results.StoreResult(reports.success(id_))


def existing(server: ServerProcess, *ids: str) -> list[str]:
    """Which of them the server knows."""
    with grpc.insecure_channel(server.address) as channel:
        results = result_service_pb2_grpc.ResultServiceStub(channel)
        found = results.BatchGetResults(pb.BatchGetResultsRequest(task_ids=ids)).metas
        return [meta.task_id for meta in found if meta.version]


def test_the_pod_is_one_that_kubernetes_takes_and_the_charts_volumes_are_there() -> None:
    """It fits its schema, runs as the server does, and mounts the server's own claims."""
    validator = pytest.importorskip(
        "kubernetes_validate", reason="deploy/requirements-lint.txt is not installed"
    )
    pod = restore_pod()
    validator.validate(pod, KUBERNETES, strict=True)
    objects = rendered(ALL)
    server = objects["StatefulSet", "resultd"]["spec"]
    for key, value in pod["spec"]["securityContext"].items():
        assert server["template"]["spec"]["securityContext"][key] == value
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"]["volumes"]
    }
    (template,) = server["volumeClaimTemplates"]
    assert claims["data"] == f"{template['metadata']['name']}-resultd-0"
    assert ("PersistentVolumeClaim", claims["backup"]) in objects
    (container,) = pod["spec"]["containers"]
    (of_server,) = server["template"]["spec"]["containers"]
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    known = {mount["name"]: mount["mountPath"] for mount in of_server["volumeMounts"]}
    assert paths == {"data": DATA, "backup": BACKUPS} == {name: known[name] for name in paths}


def test_the_pods_script_puts_the_backup_in_the_stores_place(tmp_path: Path, program: Path) -> None:
    """Backup and verify by the page's commands, restore by its script; the old files stay."""
    data, backups = tmp_path / "data", tmp_path / "backups"
    backups.mkdir()
    with ServerProcess(tmp_path) as server:
        stored(server, "before")
        backup, verify, restore = (line.partition("#")[0] for line in blocks("")[0].splitlines())
        ran(backup.replace("DATA", str(data)).replace("BACKUPS", str(backups)), program)
        stored(server, "after")
    ran(verify.replace("DATA", str(data)), program)
    (file,) = backups.glob("*.backup")
    (container,) = restore_pod()["spec"]["containers"]
    (script,) = container["args"]
    (named,) = FILE.findall(script)
    assert restore.strip().replace("FILE", named).replace("NEW", "new") in script
    script = FILE.sub(str(file), script).replace(DATA, str(data))
    ran(script, program, *container["command"])
    (old,) = data.glob("before-*")
    assert {path.name for path in old.iterdir()} >= {"data.mdb"}
    assert not (data / "new").exists()
    with ServerProcess(tmp_path) as server:
        assert existing(server, "before", "after") == ["before"]
        stored(server, "later")
        assert existing(server, "later") == ["later"]


def test_the_chart_knows_what_kubectl_is_told() -> None:
    """The set that is scaled is the chart's; the pod that is waited for is the page's."""
    (commands,) = (block for block in blocks("") if "kubectl scale" in block)
    name = restore_pod()["metadata"]["name"]
    assert f"kubectl wait pod/{name} " in commands
    assert f"kubectl delete pod {name} " in commands
    assert set(re.findall(r"scale statefulset (\S+)", commands)) == {"resultd"}
    assert ("StatefulSet", "resultd") in rendered(ALL)
