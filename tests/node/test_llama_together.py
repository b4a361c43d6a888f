"""What streams say in one batch is what each says alone, with what slots remember and without.

llama.cpp multiplies batches of another shape in another order, and rounds otherwise. So where the two likeliest tokens
are almost equally likely, the other one may come, and from there on it is another text. Such a near tie is the only
place where texts may part.
"""

import trio
from asking import Reply, finished

from llamanet.node.engine import Engine

NEAR_TIE = 0.25
"""Between the log-probabilities of the two likeliest tokens, at most."""
SYSTEM = "You are a guide to a city by the sea, and you answer in one sentence. " * 4
TOPICS = ("ships", "kings", "bread", "snow", "the port", "a long way home")
PROMPTS = [f"{SYSTEM}{number} tales of {topic}: once" for number, topic in enumerate(TOPICS)]


def near_tie_where_they_part(alone: Reply, other: Reply) -> bool:
    """Whether the texts part, at a near tie. Fails if they part anywhere else."""
    for first, second in zip(alone.logprobs, other.logprobs, strict=False):
        if first.token != second.token:
            gap = min(told.top[0].logprob - told.top[1].logprob for told in (first, second))
            assert gap < NEAR_TIE, (gap, first, second)
            return True
    assert alone.tokens == other.tokens
    return False


async def test_texts_part_only_at_near_ties(engine: Engine) -> None:
    options = {"logprobs": 2, "ignore_eos": True, "max_tokens": 24}
    alone = []
    for prompt in PROMPTS:
        for slot in range(engine.slots):
            await finished(engine, f"{slot} " * 60, max_tokens=1)
        alone.append(await finished(engine, prompt, **options))
        assert alone[-1].finished.usage.cached_tokens == 0
    together: dict[int, Reply] = {}

    async def one(number: int) -> None:
        together[number] = await finished(engine, PROMPTS[number], **options)

    async with trio.open_nursery() as streams:
        for number in range(len(PROMPTS)):
            streams.start_soon(one, number)
    assert all(reply.finished.usage.cached_tokens > 50 for reply in together.values()), "memory is reused"
    ties = sum(near_tie_where_they_part(alone[number], reply) for number, reply in together.items())
    assert ties <= len(PROMPTS) // 2
