"""`/metrics`, `/health` and `/ready`: exact counts, bounded labels, and a swarm that is or is not there."""

import json
import logging
import re

import attrs
import trio
from asgi import app_for, ask
from prometheus_client.parser import text_string_to_metric_families

from llamanet.cli.logs import JsonFormatter
from llamanet.gateway.events import RequestAnswered, RequestEnded, RequestMoved, RequestStarted
from llamanet.gateway.health import FRESH_S
from llamanet.gateway.metrics import ENDPOINTS, MAX_MODELS, cause_of, endpoint_of
from llamanet.testing.cluster import Cluster
from llamanet.wire.inference import Status


async def scrape(app):
    got = await ask(app, "GET", "/metrics")
    assert got.status == 200
    assert got.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(got.body.decode())
        for sample in family.samples
    }


async def started(nursery, **settings):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=0.01, slots=1)
    app, gateway = app_for(await cluster.start_client(), **settings)
    await trio.sleep(1)
    return cluster, app, gateway


def told(request_id="r", model="alpha", ttft=0.3, tokens=9, status=200, moves=()):
    yield RequestStarted(request_id=request_id, model=model, at=0.0)
    yield RequestAnswered(request_id=request_id, model=model, node_id="n", ttft=ttft)
    for reason in moves:
        yield RequestMoved(request_id=request_id, model=model, from_node="n", to_node="o", reason=reason)
    yield RequestEnded(
        request_id=request_id,
        model=model,
        node_id="n",
        tokens=tokens,
        prompt_tokens=4,
        cached_tokens=1,
        seconds=1.0,
        status=status,
    )


async def test_what_requests_do_is_counted(autojump_clock, nursery):
    _, app, gateway = await started(nursery)
    for event in told(moves=["it died: gone", "busy", "another node spoke sooner"]):
        gateway.events.publish(event)
    gap = gateway.metrics.gap("alpha")
    gap(0.02)
    gap(0.2)
    found = await scrape(app)
    assert found["llamanet_gateway_tokens_total", "prompt", "alpha"] == 4
    assert found["llamanet_gateway_tokens_total", "cached", "alpha"] == 1
    assert found["llamanet_gateway_tokens_total", "completion", "alpha"] == 9
    assert found["llamanet_gateway_ttft_seconds_count", "alpha"] == 1
    assert found["llamanet_gateway_ttft_seconds_sum", "alpha"] == 0.3
    assert found["llamanet_gateway_inter_token_seconds_bucket", "0.025", "alpha"] == 1
    assert found["llamanet_gateway_inter_token_seconds_count", "alpha"] == 2
    for cause in ("failure", "busy", "hedge"):
        assert found["llamanet_gateway_failovers_total", cause, "alpha"] == 1
    assert found["llamanet_gateway_running",] == 0
    assert found["process_resident_memory_bytes",] > 1_000_000


async def test_a_chat_is_counted_from_end_to_end_and_logged_without_its_words(
    autojump_clock, nursery, caplog, tmp_path
):
    caplog.set_level(logging.INFO)
    (tmp_path / "keys").write_text("alice sk-0123456789abcdef tpm=100000\n")
    _, app, _ = await started(nursery, api_key_file=tmp_path / "keys", open_metrics=True)
    chat = {"model": "auto", "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 6, "temperature": 0}

    async def post(**body):
        return await ask(
            app,
            "POST",
            "/v1/chat/completions",
            json.dumps(chat | body).encode(),
            authorization="Bearer sk-0123456789abcdef",
        )

    whole = await post()
    assert whole.status == 200
    assert (await post(stream=True)).body.endswith(b"data: [DONE]\n\n")
    assert (await post(model="nobody's")).status == 404
    assert whole.headers["x-ratelimit-limit-tokens"] == "100000"
    found = await scrape(app)
    assert found["llamanet_gateway_requests_total", "/v1/chat/completions", "alpha", "200"] == 2
    assert found["llamanet_gateway_requests_total", "/v1/chat/completions", "other", "404"] == 1
    assert found["llamanet_gateway_tokens_total", "completion", "alpha"] == 12
    assert found["llamanet_gateway_ttft_seconds_count", "alpha"] == 2
    assert found["llamanet_gateway_inter_token_seconds_count", "alpha"] == 10
    assert found["llamanet_gateway_request_seconds_count", "alpha"] == 2
    logged = [JsonFormatter().format(record) for record in caplog.records if record.name == "llamanet.gateway.access"]
    fields = [json.loads(line) for line in logged]
    assert [(entry["key"], entry["model"], entry["completion_tokens"]) for entry in fields[:3]] == [
        ("alice", "alpha", 6),
        ("alice", "alpha", 6),
        ("alice", "nobody's", 0),
    ]
    assert fields[0]["ttft_s"] > 0
    for text in ("secret", "sk-0123456789abcdef", whole.json()["choices"][0]["message"]["content"]):
        assert not [line for line in logged if text in line]


async def test_http_requests_are_counted_by_model_endpoint_and_status(autojump_clock, nursery):
    _, app, _ = await started(nursery)
    await ask(app, "GET", "/v1/models")
    await ask(app, "GET", "/v1/models/unknown")
    await ask(app, "GET", "/no/such/path")
    await ask(app, "GET", "/health", host="evil.example")
    found = await scrape(app)
    assert found["llamanet_gateway_requests_total", "/v1/models", "other", "200"] == 1
    assert found["llamanet_gateway_requests_total", "/v1/models", "other", "404"] == 1
    assert found["llamanet_gateway_requests_total", "other", "other", "404"] == 1
    assert found["llamanet_gateway_requests_total", "/health", "other", "403"] == 1


async def test_labels_are_bounded_whatever_clients_and_nodes_say(autojump_clock, nursery):
    _, app, gateway = await started(nursery)
    for number in range(3 * MAX_MODELS):
        for event in told(request_id=str(number), model=f"made up by a node {number}"):
            gateway.events.publish(event)
        unknown = {"request_id": f"u{number}", "model": f"made up by a client {number}"}
        gateway.events.publish(RequestStarted(**unknown, at=0.0))
        gateway.events.publish(RequestEnded(**unknown, node_id=None, tokens=0, seconds=0.0, status=404))
        await ask(app, "GET", f"/path/{number}")
    found = await scrape(app)
    models = {labels[1] for name, *labels in found if name == "llamanet_gateway_tokens_total"}
    assert len(models) == MAX_MODELS + 1
    assert not [model for model in models if "client" in model]
    assert found["llamanet_gateway_requests_total", "other", "other", "404"] == 3 * MAX_MODELS
    assert len(found) < 60 * MAX_MODELS


async def test_client_and_dht_are_looked_up(autojump_clock, nursery):
    _, app, gateway = await started(nursery)
    client = gateway.swarm
    async with client.stream("hello", temperature=0.0) as stream:
        await stream.__anext__()
        found = await scrape(app)
    assert found["llamanet_client_requests_total",] == 1
    assert found["llamanet_client_in_flight",] == 1
    assert found["llamanet_client_waiting",] == 0
    assert found["llamanet_client_hedges_total",] == 0
    assert found["llamanet_dht_joined",] == 1
    assert found["llamanet_dht_contacts",] == 2
    assert found["llamanet_dht_lookups_total",] >= 1
    assert ("llamanet_dht_rtt_seconds", "0.99") in found
    assert not [name for name, *_ in found if name.startswith("llamanet_engine")]


async def test_a_node_tells_of_its_engines(autojump_clock, nursery):
    cluster, app, gateway = await started(nursery)
    (node, _) = cluster.nodes.values()
    gateway.engines = lambda: node.host.endpoint.status(Status(id=0)).models
    client = gateway.swarm
    replies = [await client.generate(f"hello {number}", max_tokens=5, temperature=0.0) for number in range(6)]
    answered = sum(reply.node_id == node.label for reply in replies)
    found = await scrape(app)
    assert found["llamanet_engine_slots", "alpha"] == 1
    assert found["llamanet_engine_completion_tokens_total", "alpha"] == 5 * answered > 0
    assert found["llamanet_engine_gap_seconds", "alpha"] > 0
    named = {attribute.name for attribute in attrs.fields(type(gateway.engines()[0]))} - {"name", "digest", "n_ctx"}
    told = {name.removeprefix("llamanet_engine_").removesuffix("_total") for name, *_ in found if "_engine_" in name}
    assert {re.sub("_seconds$", "_s", name) for name in told} == named


def test_paths_and_reasons_have_few_names():
    assert [endpoint_of(path) for path in ENDPOINTS] == list(ENDPOINTS)
    assert endpoint_of("/v1/models/some/name") == "/v1/models"
    assert endpoint_of("/v1/chat/completions/") == "other"
    assert cause_of("the reader was too slow") == "slow_reader"
    assert cause_of("anything that a node says") == "failure"


async def test_live_is_not_ready(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("only")
    app, _ = app_for(await cluster.start_client())
    cluster.kill("only")
    got = await ask(app, "GET", "/ready")
    assert (got.status, got.json()["status"]) == (503, "unavailable")
    assert got.json()["reason"]
    assert got.headers["retry-after"] == "2"
    assert (await ask(app, "GET", "/health")).json() == {"status": "ok"}


async def test_ready_once_a_model_is_served_and_not_when_none_is(autojump_clock, nursery):
    cluster, app, _ = await started(nursery)
    assert (await ask(app, "GET", "/ready")).json() == {"status": "ready", "models": 1}
    for label in list(cluster.nodes):
        cluster.kill(label)
    await trio.sleep(FRESH_S)
    assert (await ask(app, "GET", "/ready")).status == 503


async def test_a_crowd_that_asks_whether_we_are_ready_asks_the_swarm_once(autojump_clock, nursery):
    _, app, gateway = await started(nursery)
    looked = 0
    swarm = gateway.swarm

    class Counting:
        statistics = swarm.statistics

        async def models(self):
            nonlocal looked
            looked += 1
            return await swarm.models()

    gateway.swarm = Counting()
    async with trio.open_nursery() as crowd:
        for _ in range(50):
            crowd.start_soon(ask, app, "GET", "/ready")
    assert looked == 1
    await trio.sleep(FRESH_S)
    await ask(app, "GET", "/ready")
    assert looked == 2
