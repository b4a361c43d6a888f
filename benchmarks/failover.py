"""How long does a stream pause when its node is lost? From the blow to the next token from another node.

The node that answers is killed (`kill -9`), or stopped (SIGSTOP: it hangs and its sockets stay open), after 40 tokens.
The pause holds the noticing, the choice of another node, and that node's prefill of the prompt and the 40 tokens.

Then forty streams run on four nodes, of which one is killed, one stopped and one drained (SIGTERM) meanwhile. What each
says is compared, id by id, with what it says when nobody is disturbed. Greedy draws differ where two tokens are almost
equally likely, for a batch of another size rounds otherwise, so texts that part at such a place are counted apart. The
stall of a stream is its longest silence, told as it is, and without the new prefill: what the next node needed from
taking the request to its first token. Nobody waits for a slot, for each node has one for every stream.
"""

import signal
import statistics
from collections.abc import Sequence

import attrs
import trio
from asking import percentile
from report import MODELS, Case, main, spread

from llamanet.cli.demo_model import demo_model
from llamanet.errors import LlamaNetError
from llamanet.swarm import Reply, Swarm
from llamanet.testing.processes import NodeProcess, start_swarm

PROMPT = "Count: 1, 2, 3, 4, 5, 6, 7, 8,"
TOKENS_BEFORE = 40
TOKENS = 80
STREAMS = 40
NEAR_TIE = 0.1
"""Of natural logarithms: so close, two tokens may change places."""
BLOWS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)


async def pause_after(blow: signal.Signals, nodes: list[NodeProcess]) -> float:
    """Seconds from the blow to the first token of the next node."""
    by_label = {node.label: node for node in nodes}
    struck, struck_at = None, 0.0
    async with (
        Swarm(bootstrap_nodes=[node.dht_address for node in nodes]) as swarm,
        swarm.stream(PROMPT, max_tokens=TOKENS, temperature=0.0) as stream,
    ):
        async for _ in stream:
            if struck is None and len(stream.token_ids) >= TOKENS_BEFORE and stream.node_id is not None:
                struck, struck_at = stream.node_id, trio.current_time()
                by_label[struck].send_signal(blow)
            elif struck is not None and stream.node_id != struck:
                return trio.current_time() - struck_at
    raise RuntimeError("the stream ended before its node was lost")


@attrs.define
class Told:
    """What one of the forty streams said, and when."""

    reply: Reply | None = None
    error: LlamaNetError | None = None
    stall: float = 0.0
    """Its longest silence after the first token, in seconds."""
    beyond: float = 0.0
    """Its longest, in seconds, without what the next node needed to read the prompt and the delivered tokens."""


async def ask_forty(swarm: Swarm, tokens: int, nodes: Sequence[NodeProcess] = ()) -> list[Told]:
    """Forty streams at once, greedy, with the chances of two tokens in each place.

    Three of `nodes` are struck, always the one that most streams are at, the first once a fifth of all tokens has come,
    the next one fifth later.
    """
    told = [Told() for _ in range(STREAMS)]
    standing = {node.label: node for node in nodes}
    blows = list(BLOWS) if nodes else []
    at: dict[int, str | None] = {}
    came = 0

    async def one(number: int) -> None:
        nonlocal came
        try:
            async with swarm.stream(
                f"Story {number}. Once upon a time", max_tokens=tokens, temperature=0.0, ignore_eos=True, logprobs=2
            ) as stream:
                heard = node = None
                async for chunk in stream:
                    now = trio.current_time()
                    came += len(chunk.token_ids)
                    at[number] = stream.node_id
                    if blows and came >= (len(BLOWS) - len(blows) + 1) * STREAMS * tokens // 5:
                        here = list(at.values())
                        standing.pop(max(standing, key=here.count)).send_signal(blows.pop(0))
                    if heard is not None:
                        taken = None if stream.node_id == node else stream.accepted_at
                        told[number].stall = max(told[number].stall, now - heard)
                        told[number].beyond = max(told[number].beyond, (now if taken is None else taken) - heard)
                    heard, node = now, stream.node_id
                told[number].reply = stream.reply()
                del at[number]
        except LlamaNetError as error:
            told[number].error = error

    async with trio.open_nursery() as nursery:
        for number in range(STREAMS):
            nursery.start_soon(one, number)
    return told


def differs(told: Told, calm: Told) -> str | None:
    """How a disturbed stream differs from the undisturbed one: "near tie", "wrong", or not at all (None)."""
    if told.reply is None or calm.reply is None:
        return None
    ids, expected = told.reply.token_ids, calm.reply.token_ids
    if ids == expected:
        return None
    at = next((at for at, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), None)
    if at is None or len(ids) != len(expected):
        return "wrong"
    top = calm.reply.logprobs[at].top
    near = len(top) > 1 and top[0].logprob - top[1].logprob < NEAR_TIE and ids[at] in (top[0].token, top[1].token)
    return "near tie" if near else "wrong"


async def forty_streams(nodes: list[NodeProcess], tokens: int) -> tuple[list[Told], list[Told]]:
    """The streams undisturbed and disturbed."""
    async with Swarm(bootstrap_nodes=[node.dht_address for node in nodes]) as swarm:
        return await ask_forty(swarm, tokens), await ask_forty(swarm, tokens, nodes)


def disturbances(path: str, quick: bool) -> list[Case]:
    """Forty streams on four nodes, of which three go."""
    tokens = 40 if quick else 160
    with start_swarm(4, "--model-path", path, "--n-threads", "1", "--n-ctx", "512", "--n-parallel", "40") as nodes:
        calm, disturbed = trio.run(forty_streams, nodes, tokens)
    errors = [told.error for told in disturbed if told.error is not None]
    differences = [differs(told, before) for told, before in zip(disturbed, calm, strict=True)]
    beyond = [told.beyond for told in disturbed]
    stalls = [told.stall for told in disturbed]
    hops = sum(len(told.reply.hops) for told in disturbed if told.reply)
    return [
        Case(
            name="40 streams, three of four nodes lost: errors",
            value=len(errors),
            unit="streams",
            better="lower",
            target=0,
            ours="; ".join(map(str, errors)) or f"{hops} changes of node",
        ),
        Case(
            name="40 streams, three of four nodes lost: tokens missing, doubled or wrong",
            value=differences.count("wrong"),
            unit="streams",
            better="lower",
            target=0,
            ours=f"{differences.count(None)} the same, {differences.count('near tie')} part at a near tie",
        ),
        Case(
            name="40 streams, three of four nodes lost: p99 stall beyond the new prefill",
            value=percentile(beyond, 0.99),
            unit="s",
            better="lower",
            target=1.5,
            ours=spread(beyond, "s"),
        ),
        Case(
            name="40 streams, three of four nodes lost: p99 stall in all",
            value=percentile(stalls, 0.99),
            unit="s",
            better="lower",
            ours=spread(stalls, "s"),
        ),
    ]


def measure(quick: bool) -> list[Case]:
    path = trio.run(demo_model, MODELS)
    cases = []
    for name, blow, target in (("killed", signal.SIGKILL, 1.0), ("stopped", signal.SIGSTOP, 3.0)):
        pauses = []
        for _ in range(1 if quick else 10):
            with start_swarm(2, "--model-path", str(path), "--n-threads", "1") as nodes:
                pauses.append(trio.run(pause_after, blow, nodes))
        cases.append(
            Case(
                name=f"pause of a stream whose node is {name}",
                value=statistics.median(pauses),
                unit="s",
                better="lower",
                target=target,
                ours=spread(pauses, "s"),
            )
        )
    return [*cases, *disturbances(str(path), quick)]


if __name__ == "__main__":
    main(measure)
