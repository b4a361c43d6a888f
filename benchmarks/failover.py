"""How long does a stream pause when its node is lost? From the blow to the next token from another node.

The node that answers is killed (`kill -9`), or stopped (SIGSTOP: it hangs and its sockets stay open), after 40 tokens.
The pause holds the noticing, the choice of another node, and that node's prefill of the prompt and the 40 tokens.
"""

import signal
import statistics

import trio
from report import MODELS, Case, main, spread

from llamanet.cli.demo_model import demo_model
from llamanet.swarm import Swarm
from llamanet.testing.processes import NodeProcess, start_swarm

PROMPT = "Count: 1, 2, 3, 4, 5, 6, 7, 8,"
TOKENS_BEFORE = 40
TOKENS = 80


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


def measure(quick: bool) -> list[Case]:
    path = trio.run(demo_model, MODELS)
    cases = []
    for name, blow, target in (("killed", signal.SIGKILL, 1.0), ("stopped", signal.SIGSTOP, 3.0)):
        pauses = []
        for _ in range(3 if quick else 10):
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
    return cases


if __name__ == "__main__":
    main(measure)
