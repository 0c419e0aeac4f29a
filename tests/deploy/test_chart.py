"""The Helm chart keeps to what the server is: one replica, its flags, ports and time to drain."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
import yaml

from resultd_server.config import Settings
from tests.deploy.chart import ALL, CHART, SECURE, RefusedError, rendered
from tests.support import serve_command

KUBERNETES = "1.31"
CUSTOM = {"ServiceMonitor", "PrometheusRule"}
"""Kinds that Kubernetes itself does not know: see `test_kinds`."""


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    """The pod of a release with TLS and tokens."""
    spec: dict[str, Any] = rendered(ALL)["StatefulSet", "resultd"]["spec"]["template"]["spec"]
    return spec


def container(pod: dict[str, Any]) -> dict[str, Any]:
    """Its one container."""
    (only,) = pod["containers"]
    assert isinstance(only, dict)
    return only


def flags(pod: dict[str, Any]) -> dict[str, str]:
    """What the server is told, by the names of settings."""
    pairs = (arg.removeprefix("--").partition("=") for arg in container(pod)["args"])
    return {name.replace("-", "_"): value for name, _, value in pairs}


def test_every_object_is_one_that_kubernetes_takes() -> None:
    """Each rendered object fits the schema of its kind, with no field unknown."""
    validator = pytest.importorskip(
        "kubernetes_validate", reason="deploy/requirements-lint.txt is not installed"
    )
    objects = rendered(ALL)
    assert {kind for kind, _ in objects} >= CUSTOM | {
        "StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy", "ConfigMap",
        "CronJob", "PersistentVolumeClaim", "Role", "RoleBinding", "ServiceAccount",
    }  # fmt: skip
    for (kind, _), each in objects.items():
        if kind not in CUSTOM:
            validator.validate(each, KUBERNETES, strict=True)


def test_helm_has_nothing_to_say_against_it() -> None:
    """`helm lint` finds no error."""
    if shutil.which("helm"):
        said = ["helm", "lint", str(CHART), "--set", "insecure=true"]
        subprocess.run(said, check=True, capture_output=True)
        return
    helm = pytest.importorskip("helm_python", reason="no helm, and nothing in its place")
    found = helm.lint(str(CHART), {"insecure": True})
    assert (found["total_charts_linted"], found["errors"]) == (1, [])


def test_one_replica_with_its_volume() -> None:
    """The store is one server's: the number of replicas is no value, the data is on a claim."""
    spec = rendered({**SECURE, "replicas": 3})["StatefulSet", "resultd"]["spec"]
    assert spec["replicas"] == 1
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    (mounted,) = [
        mount["mountPath"]
        for mount in spec["template"]["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == claim["metadata"]["name"]
    ]
    assert flags(spec["template"]["spec"])["data"] == mounted


@pytest.mark.parametrize("values", [ALL, {"insecure": True, "workers": 4}])
def test_the_server_takes_every_flag_and_its_value(values: dict[str, Any]) -> None:
    """The command reads what the chart passes, and listens on the ports that the pod names."""
    pod = rendered(values)["StatefulSet", "resultd"]["spec"]["template"]["spec"]
    settings = serve_command.settings(container(pod)["args"])
    ports = {port["name"]: port["containerPort"] for port in container(pod)["ports"]}
    assert settings.listen == f"0.0.0.0:{ports['grpc']}"
    assert settings.admin == f"0.0.0.0:{ports['admin']}"
    assert settings.insecure == values.get("insecure", False)
    assert (settings.tls_client_ca is None) == settings.insecure


def test_defaults_of_the_chart_are_those_of_the_server() -> None:
    """Ports and the age of streams stand in two places and are the same."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    port = Settings.model_fields["listen"].default.rpartition(":")[2]
    assert values["service"]["port"] == int(port)
    assert values["adminPort"] == int(port) + 1
    assert values["streamAgeS"] == Settings.model_fields["stream_age_s"].default


@pytest.mark.parametrize("drain_s", [0, 20, 90, 0.5])
def test_the_pod_is_given_longer_than_the_server_drains(drain_s: float) -> None:
    """Kubernetes kills only after the drain and what comes after it are over."""
    objects = rendered({**SECURE, "drainS": drain_s})
    pod = objects["StatefulSet", "resultd"]["spec"]["template"]["spec"]
    assert float(flags(pod)["drain_s"]) == drain_s
    assert pod["terminationGracePeriodSeconds"] >= drain_s + 10


def test_nothing_runs_as_root_or_writes_to_its_image(pod: dict[str, Any]) -> None:
    """No root, no privilege, no capability, a root file system that is only read."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = container(pod)["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    # Variables that Kubernetes would add are no settings: the server refuses to start.
    assert pod["enableServiceLinks"] is False


def test_probes_tell_live_from_ready(pod: dict[str, Any]) -> None:
    """Readiness decides who is sent calls, liveness alone who is killed."""
    paths = {
        name: container(pod)[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    }
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert container(pod)["resources"]["limits"]["memory"]


def test_secrets_are_files_that_are_only_read(pod: dict[str, Any]) -> None:
    """Certificates and tokens come from Secrets, and none stands in an argument or a variable."""
    volumes = {each["name"]: each for each in pod["volumes"]}
    for name in ("tls", "auth"):
        assert "secret" in volumes[name]
        (mount,) = [each for each in container(pod)["volumeMounts"] if each["name"] == name]
        assert mount["readOnly"] is True
    assert "env" not in container(pod)


def test_services_say_what_they_carry() -> None:
    """gRPC by `appProtocol`, for meshes and gateways; the headless one serves the set."""
    objects = rendered(ALL)
    service, headless = objects["Service", "resultd"], objects["Service", "resultd-headless"]
    assert [port["appProtocol"] for port in service["spec"]["ports"]] == ["grpc"]
    assert headless["spec"]["clusterIP"] == "None"
    assert objects["StatefulSet", "resultd"]["spec"]["serviceName"] == "resultd-headless"
    monitor = objects["ServiceMonitor", "resultd"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= headless["metadata"]["labels"].items()
    assert not monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in headless["spec"]["ports"]}


def test_the_network_policy_lets_in_callers_and_scrapers_only() -> None:
    """Two ports, each for its peers; nothing goes out."""
    spec = rendered(ALL)["NetworkPolicy", "resultd"]["spec"]
    assert [rule["ports"][0]["port"] for rule in spec["ingress"]] == ["grpc", "admin"]
    assert all(rule["from"] for rule in spec["ingress"])
    assert (spec["policyTypes"], spec["egress"]) == (["Ingress", "Egress"], [])


def test_backups_are_taken_beside_the_server() -> None:
    """The CronJob has the server's own container copy the store onto a volume mounted there."""
    objects = rendered(ALL)
    pod = objects["StatefulSet", "resultd"]["spec"]["template"]["spec"]
    job = objects["CronJob", "resultd-backup"]["spec"]["jobTemplate"]["spec"]["template"]
    said = container(job["spec"])["args"]
    words = said[said.index("--") + 1 :]
    assert (said[0], said[2:4]) == ("exec", ["resultd-0", f"--container={container(pod)['name']}"])
    assert words[:2] == ["sh", "-ec"]
    first, *others = words[2].splitlines()
    _, command, data, _, into = first.split()
    mounts = {mount["mountPath"]: mount["name"] for mount in container(pod)["volumeMounts"]}
    assert (command, data) == ("backup", flags(pod)["data"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claim = volumes[mounts[into]]["persistentVolumeClaim"]["claimName"]
    assert ("PersistentVolumeClaim", claim) in objects
    assert all(line.split()[:2] == ["find", into] for line in others)


def test_the_backups_job_may_do_that_and_nothing_else() -> None:
    """It may enter one pod; to services and policies it is no server."""
    objects = rendered(ALL)
    rules = objects["Role", "resultd-backup"]["rules"]
    assert {name for rule in rules for name in rule["resourceNames"]} == {"resultd-0"}
    assert {kind for rule in rules for kind in rule["resources"]} == {"pods", "pods/exec"}
    job = objects["CronJob", "resultd-backup"]["spec"]["jobTemplate"]["spec"]["template"]
    for kind, name in (("Service", "resultd"), ("NetworkPolicy", "resultd")):
        spec = objects[kind, name]["spec"]
        chosen = spec["podSelector"]["matchLabels"] if kind != "Service" else spec["selector"]
        assert not chosen.items() <= job["metadata"]["labels"].items()


def test_without_backups_nobody_may_enter_the_pod() -> None:
    """Off unless asked for; a claim of one's own is used, and none made."""
    kinds = {kind for kind, _ in rendered(SECURE)}
    assert not kinds & {"CronJob", "Role", "RoleBinding", "PersistentVolumeClaim"}
    own = rendered({**SECURE, "backup": {"enabled": True, "existingClaim": "mine"}})
    assert "PersistentVolumeClaim" not in {kind for kind, _ in own}
    volumes = own["StatefulSet", "resultd"]["spec"]["template"]["spec"]["volumes"]
    assert {"claimName": "mine"} in [volume.get("persistentVolumeClaim") for volume in volumes]


@pytest.mark.parametrize(
    ("values", "remedy"),
    [({}, "tls.secretName"), ({"tls": {"secretName": "tls"}}, "auth.secretName")],
)
def test_an_open_server_has_to_be_asked_for(values: dict[str, Any], remedy: str) -> None:
    """Without TLS, or anybody to ask who calls, nothing is rendered but the way out."""
    with pytest.raises(RefusedError, match=remedy):
        rendered(values)
    assert rendered({**values, "insecure": True})
