"""A real Prometheus scrapes three live nodes, and is asked every query of the dashboard and of the alerts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests.fault.cluster import Stage

from .programs import needed

pytestmark = pytest.mark.ops

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
RULES: Final = DEPLOY / "prometheus" / "smtpraft.rules.yml"
DASHBOARD: Final = DEPLOY / "grafana" / "smtpraft.json"
SCRAPE_S: Final = 1
WATCH_S: Final = 12  # some scrapes under load: enough for a rate

QUIET: Final = {
    # What a healthy cluster has nothing to say about: no refusal was made. All other queries must find something.
    'sum by (stage, code) (rate(smtpraft_messages_rejected_total{job="smtpraft",instance=~".*"}[8s]))',
}


@contextlib.asynccontextmanager
async def prometheus(directory: Path, port: int, targets: list[str]) -> AsyncIterator[str]:
    """Run it with our rules, scraping every second; yield its address once it is ready."""
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "smtpraft", "static_configs": [{"targets": targets}]}],
    }
    path = directory / "prometheus.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    address = f"http://127.0.0.1:{port}"
    with (directory / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            needed("prometheus", "prometheus"),
            f"--config.file={path}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 30
        while not await asyncio.to_thread(_answers, f"{address}/-/ready"):
            assert process.returncode is None, (directory / "prometheus.log").read_text()
            assert time.monotonic() < deadline, "Prometheus was not ready"
            await asyncio.sleep(0.1)
        yield address
    finally:
        process.kill()
        await process.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def query(address: str, expression: str) -> list[dict[str, Any]]:
    """Return what an instant query finds; fail with Prometheus's own words if it cannot be asked."""
    try:
        with urlopen(f"{address}/api/v1/query?{urlencode({'query': expression})}", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
    except HTTPError as error:
        raise AssertionError(f"{expression}: {error.read().decode()}") from None
    assert found["status"] == "success", found
    result = found["data"]["result"]
    assert isinstance(result, list)
    return result


def rules() -> list[dict[str, Any]]:
    import yaml

    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Yield (panel, expression) as Grafana would ask them."""
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [(p["title"], target["expr"]) for p in dashboard["panels"] for target in p.get("targets", ())]
    expressions += [(note["name"], note["expr"]) for note in dashboard["annotations"]["list"]]
    values = {"$__rate_interval": f"{8 * SCRAPE_S}s", "$job": "smtpraft", "$instance": ".*"}
    for panel, expression in expressions:
        for name, value in values.items():
            expression = expression.replace(name, value)
        assert "$" not in expression, expression
        yield panel, expression


@pytest.mark.quick
def test_promtool_accepts_the_rules_and_they_say_what_they_should() -> None:
    promtool = needed("promtool", "prometheus")
    for command in (["check", "rules", RULES.name], ["test", "rules", "smtpraft.rules.test.yml"]):
        done = subprocess.run([promtool, *command], cwd=RULES.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    example = subprocess.run(
        [promtool, "check", "config", "prometheus.yml"], cwd=RULES.parent, capture_output=True, text=True, check=False
    )
    assert example.returncode == 0, example.stdout + example.stderr


@pytest.mark.quick
def test_every_metric_that_is_asked_for_is_in_the_reference() -> None:
    """Without a Prometheus: a renamed metric must not leave an alert asleep."""
    reference = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    known = set(re.findall(r"^\| `(smtpraft_\w+)", reference, re.MULTILINE))
    asked = {
        name
        for text in [*(rule["expr"] for rule in rules()), *(expression for _, expression in dashboard_queries())]
        for name in re.findall(r"smtpraft_\w+", text)
    }
    assert {name for name in asked if re.sub(r"_(bucket|sum|count)$", "", name) not in known | {name} & known} == set()


@pytest.mark.timeout(180)
async def test_every_query_of_dashboard_and_alerts_finds_something_in_a_live_cluster(tmp_path: Path) -> None:
    needed("prometheus", "prometheus")
    promtool = needed("promtool", "prometheus")
    async with Stage(tmp_path) as stage:
        nodes = stage.cluster.nodes
        targets = [f"127.0.0.1:{node.admin_port}" for node in nodes]
        port = stage.cluster.spare_ports[0]
        async with prometheus(tmp_path, port, targets) as address, stage.load(clients_per_node=2) as load:
            await asyncio.sleep(WATCH_S)
            for node in nodes:
                text = await stage.cluster.ask(node, "/metrics")
                checked = await asyncio.to_thread(
                    subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True, check=False
                )
                assert checked.returncode == 0, checked.stdout + checked.stderr
            assert len(query(address, "up == 1")) == 3
            empty = []
            for panel, expression in dashboard_queries():
                if not query(address, expression) and expression not in QUIET and panel != "Changes of leader":
                    empty.append((panel, expression))
            assert empty == []
            for rule in rules():
                expression = rule["expr"]
                # What the rule compares must be there, or it could never fire.
                for selector in re.findall(r"(?:smtpraft_\w+|up)(?:\{[^}]*\})?", expression):
                    name = selector.partition("{")[0]
                    assert query(address, name), f"{rule['alert']}: {name} is nowhere"
            assert query(address, 'ALERTS{alertstate="firing"}') == [], "a healthy cluster sets off no alarm"

            victim = await stage.cluster.leader()
            stage.kill(victim)
            (down,) = (rule["expr"] for rule in rules() if rule["alert"] == "SmtpraftNodeDown")
            deadline = time.monotonic() + 20
            while not (found := query(address, down)):
                assert time.monotonic() < deadline, "a dead node goes unnoticed"
                await asyncio.sleep(0.2)
            assert [series["metric"]["instance"] for series in found] == [f"127.0.0.1:{victim.admin_port}"]
            await load.finish()
