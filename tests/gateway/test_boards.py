"""`deploy/prometheus` and `deploy/grafana`: they are well-formed, and name only what `/metrics` really has."""

import json
import re
from pathlib import Path

import pytest
import trio
import yaml
from asgi import app_for, ask
from prometheus_client.parser import text_string_to_metric_families

from llamanet.gateway.events import RequestAnswered, RequestEnded, RequestMoved
from llamanet.testing.cluster import Cluster
from llamanet.wire.inference import Status

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "llamanet.rules.yml").read_text())
BOARD = json.loads((DEPLOY / "grafana" / "llamanet.json").read_text())
OF_PROMETHEUS = {"up": {"job"}}
"""Series that Prometheus itself makes."""
OF_SCRAPES = {"instance", "job"}
"""Labels that Prometheus itself adds."""


def rules():
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions():
    targets = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
    asked = [f"{variable['query']}" for variable in BOARD["templating"]["list"] if variable["type"] == "query"]
    return [rule["expr"] for rule in rules()] + targets + asked


@pytest.fixture
async def series(autojump_clock, nursery):
    """The names and labels of everything that a gateway on a node shows once it has been used."""
    cluster = Cluster(nursery)
    (node,) = await cluster.start_nodes(1)
    app, gateway = app_for(await cluster.start_client())
    gateway.engines = lambda: node.host.endpoint.status(Status(id=0)).models
    await trio.sleep(1)
    known = {"request_id": "r", "model": "alpha"}
    gateway.events.publish(RequestAnswered(**known, node_id="n", ttft=1.0))
    gateway.events.publish(RequestMoved(**known, from_node="n", to_node=None, reason="busy"))
    gateway.events.publish(RequestEnded(**known, node_id="n", tokens=1, seconds=1.0, status=200))
    gateway.metrics.gap("alpha")(1.0)
    gateway.metrics.cancelled.labels("alpha").inc()
    await ask(app, "POST", "/v1/completions", b"{}")
    families = text_string_to_metric_families((await ask(app, "GET", "/metrics")).body.decode())
    found = dict(OF_PROMETHEUS)
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_they_name_only_what_is_there(series):
    recorded = {rule["record"]: {"model"} for rule in rules() if "record" in rule}
    for expression in expressions():
        named = re.findall(r"\b(up|(?:llamanet|process)[a-z0-9_:]+)\b", expression)
        assert named, expression
        for name in named:
            assert name in series or name in recorded, expression
        labels = {label for name in named for label in {**series, **recorded}[name]} | OF_SCRAPES
        used = re.findall(r"([a-z_]+)=~?\"", expression)
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            used += group.split(", ")
        assert set(used) <= labels, expression


def test_brackets_are_balanced():
    for expression in expressions():
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing), expression


def test_rules_have_what_prometheus_wants():
    names = [rule.get("record") or rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        if "record" in rule:
            assert set(rule) == {"record", "expr"}
            assert re.fullmatch(r"llamanet:[a-z_]+:[a-z0-9]+", rule["record"])
        else:
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
            assert re.fullmatch(r"\d+m", rule["for"])
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}


def test_the_scrape_configuration_names_the_rules():
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["llamanet.rules.yml"]
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "llamanet"
    assert job["static_configs"][0]["targets"] == ["localhost:8080"]


def test_the_board_has_panels_that_fit():
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    variables = {variable["name"] for variable in BOARD["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?([a-z_]+)", " ".join(expressions()))) <= variables
