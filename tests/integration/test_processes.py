"""Whole swarms of processes: found in any order, and going on when a node dies, hangs, or leaves.

Speed is for the benchmarks; here deadlines are generous.
"""

import json
import signal
import socket

import pytest
import trio

from llamanet import Swarm
from llamanet.errors import NoNodeServes, SwarmBusy
from llamanet.testing.processes import NodeProcess, close_all

PROMPT = "Count: 1, 2, 3, 4, 5, 6, 7, 8,"
"""Counting on, greedy: at each of the first 160 places the likeliest token leads by 0.8 or more in its logit, so the
rounding of other batch shapes, some hundredths, flips none of them."""
TOKENS = 160
BEFORE_DEATH = 40
WITHIN_S = 60


def free_udp_port():
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        return udp.getsockname()[1]


def says_that_its_bootstrap_peer_is_down(entry):
    return entry["level"] == "warning" and entry["message"].startswith("bootstrap peer down, retrying: 127.0.0.1:")


async def labels_seen_from(address, wanted):
    """The labels of the nodes that a client sees through `address`, once they are `wanted`."""
    with trio.fail_after(WITHIN_S):
        async with Swarm(bootstrap_nodes=[address]) as swarm:
            while {node.node_id for node in await swarm.nodes()} != wanted:
                await trio.lowlevel.checkpoint()


async def generate(address, **arguments):
    with trio.fail_after(WITHIN_S):
        async with Swarm(bootstrap_nodes=[address]) as swarm:
            return await swarm.generate(PROMPT, max_tokens=TOKENS, temperature=0.0, **arguments)


async def test_flags_and_variables_in_any_order_the_bootstrap_node_last(model, tmp_path):
    bootstrap = f"127.0.0.1:{free_udp_port()}"
    settings = {
        "MODEL_PATH": str(model),
        "HOST": "127.0.0.1",
        "PORT": "0",
        "DHT_PORT": "0",
        "BOOTSTRAP_NODES": bootstrap,
        "N_THREADS": "1",
        "HEARTBEAT_INTERVAL": "2",
    }
    flags = [item for name, value in settings.items() for item in (f"--{name.lower().replace('_', '-')}", value)]
    by_variables = NodeProcess(variables={**settings, "NODE_ID": "variables", "DATA_DIR": str(tmp_path / "1")})
    by_flags = NodeProcess(*flags, "--node-id", "flags", "--data-dir", str(tmp_path / "2"))
    nodes = [by_variables, by_flags]
    try:
        for node in nodes:
            await trio.to_thread.run_sync(node.wait_ready)
            await trio.to_thread.run_sync(node.wait_for, says_that_its_bootstrap_peer_is_down, WITHIN_S)
        # A flag comes before its variable, and an empty variable is an unset one.
        mixed = {**settings, "DHT_PORT": bootstrap.rpartition(":")[2], "BOOTSTRAP_NODES": "", "NODE_ID": "wrong"}
        nodes.append(
            NodeProcess("--node-id", "bootstrap", variables={**mixed, "DATA_DIR": str(tmp_path / "3"), "LOG_LEVEL": ""})
        )
        await trio.to_thread.run_sync(nodes[2].wait_ready)
        assert [node.label for node in nodes] == ["variables", "flags", "bootstrap"]
        for node in nodes:
            await labels_seen_from(node.dht_address, {"variables", "flags", "bootstrap"})
    finally:
        close_all(nodes)
    assert [node.process.returncode for node in nodes] == [0, 0, 0]


async def stream_with_a_blow(nodes, blow):
    """The whole of a stream whose node gets `blow` in the middle: its text, its ids, and the labels that gave it."""
    by_label = {node.label: node for node in nodes}
    text, speakers = "", []
    with trio.fail_after(WITHIN_S):
        async with (
            Swarm(bootstrap_nodes=[node.dht_address for node in nodes]) as swarm,
            swarm.stream(PROMPT, max_tokens=TOKENS, temperature=0.0) as stream,
        ):
            async for chunk in stream:
                text += chunk.text
                if stream.node_id not in speakers:
                    speakers.append(stream.node_id)
                if len(speakers) == 1 and len(stream.token_ids) - len(chunk.token_ids) < BEFORE_DEATH <= len(
                    stream.token_ids
                ):
                    by_label[stream.node_id].send_signal(blow)
    assert stream.finish_reason == "length"
    assert stream.usage.completion_tokens == len(stream.token_ids) == TOKENS
    return text, tuple(stream.token_ids), speakers


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_node_lost_in_mid_stream_costs_no_token(new_swarm, swarm_of_three, blow):
    nodes = await trio.to_thread.run_sync(new_swarm, 2)
    text, token_ids, speakers = await stream_with_a_blow(nodes, blow)
    assert len(speakers) == 2
    undisturbed = await generate(swarm_of_three[0].dht_address)
    assert token_ids == undisturbed.token_ids
    assert text == undisturbed.text
    assert undisturbed.hops == ()


async def test_a_draining_node_finishes_its_stream(new_swarm):
    (node,) = await trio.to_thread.run_sync(new_swarm, 1)
    with trio.fail_after(WITHIN_S):
        async with Swarm(bootstrap_nodes=[node.dht_address]) as swarm:
            async with swarm.stream(PROMPT, max_tokens=TOKENS, temperature=0.0) as stream:
                async for _ in stream:
                    if len(stream.token_ids) < BEFORE_DEATH:
                        continue
                    if len(stream.token_ids) == BEFORE_DEATH:
                        node.send_signal(signal.SIGTERM)
            assert stream.finish_reason == "length"
            assert stream.hops == ()
            with pytest.raises((NoNodeServes, SwarmBusy)):
                await swarm.generate(PROMPT, max_tokens=1)
    assert await trio.to_thread.run_sync(node.wait, WITHIN_S) == 0


async def test_the_bootstrap_node_dies_and_the_swarm_goes_on(new_swarm, model, tmp_path):
    bootstrap, survivor, other = await trio.to_thread.run_sync(new_swarm, 3, "--heartbeat-interval", "2")
    with trio.fail_after(WITHIN_S):
        async with Swarm(bootstrap_nodes=[bootstrap.dht_address]) as swarm:
            await swarm.generate(PROMPT, max_tokens=1)
            bootstrap.process.kill()
            assert (await swarm.generate(PROMPT, max_tokens=8)).node_id in {survivor.label, other.label}
            arguments = ["--model-path", str(model), "--host", "127.0.0.1", "--port", "0", "--dht-port", "0"]
            arguments += ["--n-threads", "1", "--node-id", "newcomer", "--data-dir", str(tmp_path)]
            with NodeProcess(*arguments, "--bootstrap-nodes", survivor.dht_address) as newcomer:
                await trio.to_thread.run_sync(newcomer.wait_ready)
                seen = {survivor.label, other.label, "newcomer"}
                await labels_seen_from(other.dht_address, seen)
                await labels_seen_from(newcomer.dht_address, seen)


async def test_a_private_swarm_is_closed(new_swarm, run, tmp_path):
    key = tmp_path / "swarm.key"
    key.write_text("5a" * 32)
    key.chmod(0o600)
    (node,) = await trio.to_thread.run_sync(new_swarm, 1, "--swarm-key-file", str(key))
    outside = run("nodes", "--bootstrap-nodes", node.dht_address)
    assert outside.returncode == 1
    assert "not joined" in outside.stderr
    inside = run("nodes", "--json", "--bootstrap-nodes", node.dht_address, "--swarm-key-file", key)
    assert [entry["node_id"] for entry in json.loads(inside.stdout)] == ["node-1"]


async def test_plain_websockets(new_swarm):
    (node,) = await trio.to_thread.run_sync(new_swarm, 1, "--no-tls")
    reply = await generate(node.dht_address)
    assert reply.text.startswith(" 9, 10, 11, 12,")
