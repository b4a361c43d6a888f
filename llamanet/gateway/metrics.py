"""`/metrics`, for Prometheus: what the gateway counts, and how the swarm's client, the DHT and this node's engines are.

Rules:
- Counters and histograms follow the gateway's events and its ended requests; all else is looked up when asked for.
- No label has more than a bounded number of values: a model gets its own once a node has answered for it, up to
  `MAX_MODELS`, and a path is named only if it is an endpoint. The rest is "other".
- Nothing costs more than a microsecond or two a token.
"""

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamanet._version import __version__
from llamanet.client.statistics import Statistics
from llamanet.gateway.events import (
    Event,
    RequestAnswered,
    RequestEnded,
    RequestMoved,
    RequestStarted,
)
from llamanet.gateway.exchange import Exchange
from llamanet.gateway.openai import READER_LEFT
from llamanet.wire.inference import ModelStatus

OTHER = "other"
MAX_MODELS = 64
ENDPOINTS = (
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/",
    "/live",
    "/health",
    "/ready",
    "/metrics",
    "/openapi.json",
)
_STATUSES = frozenset({*map(int, HTTPStatus), READER_LEFT})
TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
REQUEST_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """The registry of one gateway."""

    def __init__(self, statistics: Callable[[], Statistics], engines: Callable[[], Iterable[ModelStatus]]) -> None:
        """`statistics` are the swarm's, `engines` the models that this very process serves."""
        self.registry = CollectorRegistry()
        self._models: set[str] = set()
        self.requests = self._counter("requests", "HTTP requests that are over", "model", "endpoint", "status")
        self.cancelled = self._counter("cancelled", "Requests whose reader went away before the end", "model")
        self.tokens = self._counter("tokens", "Tokens: of prompts, found in a cache, of answers", "model", "kind")
        self.moves = self._counter("failovers", "Times that a request left a node for another", "model", "cause")
        self.ttft = self._histogram("ttft_seconds", "Until the first token", TTFT_S)
        self.gaps = self._histogram("inter_token_seconds", "Between two tokens of a stream, as they arrive here", GAP_S)
        self.seconds = self._histogram("request_seconds", "From a request's start to its end", REQUEST_S)
        self.running = Gauge(
            "llamanet_gateway_running", "Requests that the swarm is asked for now", registry=self.registry
        )
        build = Gauge("llamanet_build", "1, with the version as its label", ["version"], registry=self.registry)
        build.labels(__version__).set(1)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_Looked(lambda: (*of_client(statistics()), *of_engines(engines()))))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"llamanet_gateway_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"llamanet_gateway_{name}", text, ["model"], buckets=buckets, registry=self.registry)

    def model(self, name: str | None) -> str:
        """The label's value for a model."""
        return name if name in self._models else OTHER

    def _served(self, name: str | None) -> None:
        if name is not None and len(self._models) < MAX_MODELS:
            self._models.add(name)

    def gap(self, model: str | None) -> Callable[[float], None]:
        """What is to be told the seconds between the tokens of a stream."""
        observe: Callable[[float], None] = self.gaps.labels(self.model(model)).observe
        return observe

    def heard(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, RequestStarted):
            self.running.inc()
        elif isinstance(event, RequestAnswered):
            self._served(event.model)
            self.ttft.labels(self.model(event.model)).observe(event.ttft)
        elif isinstance(event, RequestMoved):
            self.moves.labels(self.model(event.model), cause_of(event.reason)).inc()
        elif isinstance(event, RequestEnded):
            self.running.dec()
            if event.status == HTTPStatus.OK:
                self._served(event.model)  # Embeddings have no first token.
            model = self.model(event.model)
            for kind, count in (
                ("prompt", event.prompt_tokens),
                ("cached", event.cached_tokens),
                ("completion", event.tokens),
            ):
                self.tokens.labels(model, kind).inc(count)

    def ended(self, exchange: Exchange) -> None:
        """Count a request that is over."""
        model, endpoint = self.model(exchange.model), endpoint_of(exchange.path)
        status = exchange.status if exchange.status in _STATUSES else OTHER
        self.requests.labels(model, endpoint, status).inc()
        if endpoint.startswith("/v1/") and endpoint != "/v1/models":
            self.seconds.labels(model).observe(exchange.seconds)
            if exchange.status == READER_LEFT:
                self.cancelled.labels(model).inc()


def endpoint_of(path: str) -> str:
    """The label's value for a path."""
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in ENDPOINTS else OTHER


def cause_of(reason: str) -> str:
    """The label's value for why a request left its node, in the client's words (`Hop.reason`)."""
    causes = {"busy": "busy", "another node spoke sooner": "hedge", "the reader was too slow": "slow_reader"}
    return causes.get(reason, "failure")


class _Looked(Collector):
    """Metrics that are looked up when they are asked for."""

    def __init__(self, look: Callable[[], Iterable[Metric]]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        yield from self._look()


def _total(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"llamanet_{name}", text, value=value)


def _now(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"llamanet_{name}", text, value=value)


def of_client(statistics: Statistics) -> list[Metric]:
    """How the swarm's client is doing, and its DHT."""
    health = statistics.dht
    drops = CounterMetricFamily("llamanet_dht_dropped", "Datagrams that were dropped", labels=["reason"])
    for reason, count in health.drops.items():
        drops.add_metric([reason], count)
    refused = CounterMetricFamily("llamanet_dht_refused", "Our records that peers refused", labels=["reason"])
    for reason, count in health.refused.items():
        refused.add_metric([reason], count)
    rtt = GaugeMetricFamily("llamanet_dht_rtt_seconds", "Latest round trips", labels=["quantile"])
    for share, seconds in health.rtt_percentiles.items():
        rtt.add_metric([f"{share / 100:g}"], seconds)
    return [
        _total("client_requests", "Generations that the client was asked for", statistics.requests),
        _total("client_hedges", "Generations that a second node was asked for too", statistics.hedges),
        _now("client_waiting", "Requests that wait here because all nodes are busy", statistics.waiting),
        _now("client_in_flight", "Requests that nodes have", statistics.in_flight),
        _now("dht_joined", "1 if some peer has answered and is there still", health.joined),
        _now("dht_contacts", "Contacts in the routing table", health.contacts),
        _now("dht_failing_contacts", "Of them, those that did not answer lately", health.failing_contacts),
        _now("dht_network_size", "How many nodes there are, estimated", health.network_size),
        _now("dht_stored_records", "Records that we hold for others", health.stored_records),
        _now("dht_stored_bytes", "Their bytes", health.stored_bytes),
        _total("dht_lookups", "Lookups", health.lookups),
        _total("dht_lookups_answered", "Lookups in which at least one peer answered", health.lookups_answered),
        _total("dht_requests_sent", "Requests to peers", health.requests_sent),
        _total("dht_requests_served", "Requests of peers", health.requests_served),
        _total("dht_overdue", "Requests to peers that were not answered in time", health.overdue),
        rtt,
        drops,
        refused,
    ]


_ENGINE_NOW = {
    "slots": "Requests that can run at the same time",
    "running": "Requests that run",
    "waiting": "Requests that wait for a slot",
    "tokens_per_second": "Of one stream",
    "prefill_tokens_per_second": "Of prompts",
    "memory_tokens": "Tokens remembered, in live and idle slots",
    "batch_tokens": "Tokens computed in one step",
}
_ENGINE_SECONDS = {
    "ttft_s": "That a short prompt should expect until its first token",
    "queue_s": "From a request's arrival until it has a slot",
    "first_s": "From a request's arrival to its first token, as measured",
    "gap_s": "Between two tokens of a stream",
}
_ENGINE_TOTAL = {
    "prompt_tokens": "Tokens of prompts",
    "cached_tokens": "Those of them that were not computed anew",
    "completion_tokens": "Tokens of answers",
    "embedded_tokens": "Tokens of embedded texts",
}


def of_engines(engines: Iterable[ModelStatus]) -> list[Metric]:
    """The figures of the models that this process serves."""
    found = list(engines)
    kinds: tuple[tuple[type[GaugeMetricFamily | CounterMetricFamily], dict[str, str]], ...] = (
        (GaugeMetricFamily, _ENGINE_NOW),
        (GaugeMetricFamily, _ENGINE_SECONDS),
        (CounterMetricFamily, _ENGINE_TOTAL),
    )
    metrics: list[Metric] = []
    for family, fields in kinds if found else ():
        for field, text in fields.items():
            name = f"{field.removesuffix('_s')}_seconds" if field.endswith("_s") else field
            metric = family(f"llamanet_engine_{name}", text, labels=["model"])
            for engine in found:
                metric.add_metric([engine.name], getattr(engine, field))
            metrics.append(metric)
    return metrics


def routes(metrics: Metrics) -> list[Route]:
    """The route."""

    async def scrape(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return [Route("/metrics", scrape, methods=["GET"])]
