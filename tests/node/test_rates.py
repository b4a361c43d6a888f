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


def step(rates, *, drawing, tokens, now, fixed=0.02, token=0.001):
    rates.step(drawing=drawing, tokens=tokens, seconds=fixed + token * tokens, now=now)


@pytest.mark.parametrize("prompt", [5, 50, 500])
@pytest.mark.parametrize("streams", [0, 1, 10])
def test_prompts_measure_alike_whatever_their_length_and_the_load(prompt, streams):
    rates = Rates()
    drawing = streams + 1
    step(rates, drawing=drawing, tokens=drawing, now=0.0)
    step(rates, drawing=drawing, tokens=drawing + max(prompt, drawing), now=1.0)
    assert rates.prefill == pytest.approx(1000.0)


def test_a_prompt_is_never_free():
    rates = Rates()
    rates.step(drawing=1, tokens=1, seconds=0.02, now=0.0)
    rates.step(drawing=1, tokens=11, seconds=0.01, now=1.0)
    assert rates.prefill == pytest.approx(10 / (0.02 * 0.01))


def test_what_was_slow_under_load_recovers_while_idle_and_not_before():
    rates = Rates()
    step(rates, drawing=1, tokens=1, now=0.0, fixed=0.019)
    for number in range(100):
        step(rates, drawing=8, tokens=8, now=number / 2, fixed=0.492)
    assert rates.stream_rate(49.5) == pytest.approx(2.0, rel=0.01)
    assert rates.stream_rate(59.5) == pytest.approx(50 - 48 / 2.71828, rel=0.01)
    assert rates.stream_rate(200.0) == pytest.approx(50.0, rel=0.01)
    rates.step_began = 50.0
    assert rates.stream_rate(200.0) == pytest.approx(2.0, rel=0.01), "a step that hangs is no rest"
    rates.step_began = None
    step(rates, drawing=1, tokens=1, now=200.0, fixed=0.019)
    assert rates.decode == pytest.approx(50.0, rel=0.01)


def test_slow_prompts_are_forgotten_while_no_prompt_is_measured():
    rates = Rates()
    now = 0.0
    for token, prompts in ((0.001, 20), (0.02, 100)):
        for _ in range(prompts):
            now += 1.0
            step(rates, drawing=1, tokens=1, now=now, fixed=0.019)
            now += 1.0
            step(rates, drawing=1, tokens=101, now=now, token=token)
    assert rates.prefill_rate(now) == pytest.approx(50.0, rel=0.1)
    assert rates.prefill_rate(now + 60) == pytest.approx(1000.0, rel=0.4)
    slow = rates.ttft_s(**{**IDLE, "now": now})
    assert rates.ttft_s(**{**IDLE, "now": now + 60}) < slow / 5
    # One more slow prompt after the rest: it is believed as far as any other.
    step(rates, drawing=1, tokens=101, now=now + 60, token=0.02)
    assert 100 < rates.prefill < rates.best_prefill


def test_a_prompt_that_cost_hardly_anything_is_not_the_best():
    rates = Rates()
    step(rates, drawing=1, tokens=1, now=0.0)
    step(rates, drawing=1, tokens=501, now=1.0)
    rates.step(drawing=1, tokens=11, seconds=0.02, now=2.0)
    assert rates.best_prefill == pytest.approx(1000.0)


@pytest.mark.parametrize(("seconds", "share"), [(30, 0.95), (600, 0.4)])
def test_a_slow_stretch_of_a_lone_stream_leaves_its_best(seconds, share):
    rates = Rates()
    step(rates, drawing=1, tokens=1, now=0.0, fixed=0.019)
    for number in range(seconds):
        step(rates, drawing=1, tokens=1, now=float(number), fixed=0.999)
    assert rates.stream_rate(seconds - 1.0) < 4
    assert rates.stream_rate(seconds + 100.0) == pytest.approx(50 * share, rel=0.1)
