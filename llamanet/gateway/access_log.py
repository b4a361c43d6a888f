"""One log line for each request that is over: who asked what of whom, and how it went.

Rules:
- Nothing that a prompt or an answer says is ever in it, and no query and no key: only the key's label.
- A line is one line, whatever a client sends: names that are not plain words are written as JSON strings, and cut.
"""

import json
import logging

from llamanet.gateway.exchange import Exchange

log = logging.getLogger("llamanet.gateway.access")

MOST = 200
"""Characters of a name."""


def log_access(exchange: Exchange) -> None:
    """Write the line; machines find the same in the record's `fields` (`cli/logs.py`)."""
    if not log.isEnabledFor(logging.INFO):
        return
    fields = {
        "request_id": exchange.request_id,
        "client": exchange.client,
        "key": exchange.key,
        "method": exchange.method,
        "path": exchange.path[:MOST],
        "status": exchange.status,
        "model": None if exchange.model is None else exchange.model[:MOST],
        "node": exchange.node_id,
        "prompt_tokens": exchange.prompt_tokens,
        "cached_tokens": exchange.cached_tokens,
        "completion_tokens": exchange.tokens,
        "ttft_s": None if exchange.ttft is None else round(exchange.ttft, 4),
        "seconds": round(exchange.seconds, 4),
    }
    log.info("%s", access_line(fields), extra={"fields": fields})


def access_line(fields: dict[str, str | int | float | None]) -> str:
    """The fields as text; what is not known is left out."""
    return " ".join(f"{name}={_plain(value)}" for name, value in fields.items() if value is not None)


def _plain(value: str | int | float | None) -> str:
    if isinstance(value, str) and not (value.isascii() and value.isprintable() and not set(value) & set(' "=')):
        return json.dumps(value)
    return str(value)
