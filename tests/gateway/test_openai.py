"""What the swarm's errors are to a client of OpenAI's API: a status, a code, and when to come back."""

import pytest

from llamanet.errors import DeadlineExceeded, NodeFailed, NoNodeServes, NotJoined, RequestRefused, SwarmBusy
from llamanet.gateway.openai import UNAVAILABLE_RETRY_S, api_error


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (RequestRefused("no", "sampling.top_p", "0 to 1"), 400, "invalid_value", None),
        (NoNodeServes("beta", 0, ("alpha",)), 404, "model_not_found", None),
        (SwarmBusy("alpha", 2, 1.2), 429, "swarm_busy", "2"),
        (NodeFailed("node-a", "it broke"), 500, "internal_error", None),
        (NoNodeServes("alpha", 2, ("alpha",)), 503, "no_node_serves", str(UNAVAILABLE_RETRY_S)),
        (NotJoined(("10.0.0.1:8001",)), 503, "not_joined", str(UNAVAILABLE_RETRY_S)),
        (DeadlineExceeded(3.0, 7), 504, "deadline_exceeded", None),
    ],
)
def test_every_error_has_its_status(error, status, code, retry_after):
    told = api_error(error)
    assert (told.status, told.code, told.headers().get("retry-after")) == (status, code, retry_after)
    assert str(error).split(";")[0] in told.message or status == 404
    assert told.body()["error"]["code"] == code
