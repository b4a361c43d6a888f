"""Does a stream through the swarm cost speed? Tokens/s of one stream against a bare llama.cpp decode loop.

Ours: a node in its own process, its websocket endpoint with TLS, and a client here that found it through the DHT. The
peer: this process calls llama_decode and llama_sampler_sample in turn, and nothing else. Same model, prompt, threads
and number of tokens; greedy; taken in turn, so that what else the machine does falls on both. Prefill is not counted.
"""

import ctypes
import statistics
import time
from pathlib import Path

import llama_cpp.llama_cpp as lib
import trio
from report import MODELS, Case, main, spread

from llamanet.cli.demo_model import demo_model
from llamanet.node.cores import physical_cores
from llamanet.swarm import Swarm
from llamanet.testing.processes import start_swarm

PROMPT = "Count: 1, 2, 3, 4, 5, 6, 7, 8,"
TOKENS = 128
N_CTX = 2048
THREADS = max(1, physical_cores() - 1)
"""One core is left for the client, which is another machine in a real swarm."""


class BareLoop:
    """One sequence of llama.cpp, and nothing around it."""

    def __init__(self, path: Path) -> None:
        lib.llama_log_set(_silent, ctypes.c_void_p(None))
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        # As in llamanet/node/llama.py, which says why.
        params.use_extra_bufts = b"AMX_INT8 = 1" not in lib.llama_print_system_info()
        self.model = lib.llama_model_load_from_file(str(path).encode(), params)
        self.vocab = lib.llama_model_get_vocab(self.model)
        context_params = lib.llama_context_default_params()
        context_params.n_ctx = N_CTX
        context_params.n_threads = context_params.n_threads_batch = THREADS
        self.context = lib.llama_init_from_model(self.model, context_params)
        self.sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(self.sampler, lib.llama_sampler_init_greedy())

    def tokens_per_second(self) -> float:
        """Decode `TOKENS` tokens after the prompt."""
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        prompt = (lib.llama_token * 64)()
        count = lib.llama_tokenize(self.vocab, PROMPT.encode(), len(PROMPT), prompt, 64, True, True)
        lib.llama_decode(self.context, lib.llama_batch_get_one(prompt, count))
        token = (lib.llama_token * 1)()
        token[0] = lib.llama_sampler_sample(self.sampler, self.context, -1)
        start = time.perf_counter()
        for _ in range(TOKENS - 1):
            lib.llama_decode(self.context, lib.llama_batch_get_one(token, 1))
            token[0] = lib.llama_sampler_sample(self.sampler, self.context, -1)
        return (TOKENS - 1) / (time.perf_counter() - start)


@lib.llama_log_callback
def _silent(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    pass


async def streamed_tokens_per_second(swarm: Swarm) -> float:
    """The same through the swarm, from the first token's arrival to the last one's."""
    arrived = 0
    async with swarm.stream(PROMPT, max_tokens=TOKENS, temperature=0.0) as stream:
        async for chunk in stream:
            if not arrived:
                start, first = time.perf_counter(), len(chunk.token_ids)
            arrived += len(chunk.token_ids)
            end = time.perf_counter()
    return (arrived - first) / (end - start)


def measure(quick: bool) -> list[Case]:
    return trio.run(_measure, 5 if quick else 40)


async def _measure(rounds: int) -> list[Case]:
    path = await demo_model(MODELS)
    bare_loop = BareLoop(path)
    ours, peer = [], []
    with start_swarm(1, "--model-path", str(path), "--n-threads", str(THREADS)) as (node,):
        async with Swarm(bootstrap_nodes=[node.dht_address]) as swarm:
            for round_number in range(rounds + 1):
                rates = bare_loop.tokens_per_second(), await streamed_tokens_per_second(swarm)
                # The first round warms both up.
                if round_number:
                    peer.append(rates[0])
                    ours.append(rates[1])
    return [
        Case(
            name="one stream, TLS websocket / bare decode loop",
            value=statistics.median(mine / theirs for mine, theirs in zip(ours, peer, strict=True)),
            unit="of its tokens/s",
            better="higher",
            target=0.95,
            ours=spread(ours, "tokens/s"),
            peer=spread(peer, "tokens/s"),
        )
    ]


if __name__ == "__main__":
    main(measure)
