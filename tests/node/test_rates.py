"""The time to the first token that an engine tells of: what it counts."""

import pytest

from llamanet.node.rates import Rates

RATES = {"decode": 10.0, "prefill": 100.0, "service_s": 8.0}
IDLE = {"slots": 4, "running": 0, "waiting": 0, "prompt_tokens": 50, "now": 100.0}


@pytest.mark.parametrize(
    ("measured", "load", "seconds"),
    [
        ({}, {}, 0.5 + 0.1),
        ({"pending_tokens": 200}, {"running": 3}, 2.5 + 0.1),
        ({}, {"running": 3}, 0.5 + 0.1),
        ({}, {"running": 4}, 0.5 + 0.1 + 2.0),
        ({}, {"running": 4, "waiting": 3}, 0.5 + 0.1 + 8.0),
        ({"step_began": 99.9}, {"running": 1}, 0.5 + 0.1 + 0.1),
        ({"step_began": 70.0}, {"running": 1}, 0.5 + 0.1 + 30.0),
        ({"prefill": 0.0, "decode": 0.0}, {}, 0.0),
    ],
)
def test_prompt_queue_step_and_what_is_in_the_way(measured, load, seconds):
    assert Rates(**{**RATES, **measured}).ttft_s(**{**IDLE, **load}) == pytest.approx(seconds)
