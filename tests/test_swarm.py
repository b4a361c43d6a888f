"""`Swarm` over real sockets, with scripted models."""

import time

import pytest
import trio

import llamanet
from llamanet.errors import NoNodeServes, UserError
from llamanet.node.host import Model
from llamanet.swarm import Swarm
from llamanet.testing.backend import ScriptedBackend, scripted_text, scripted_tokens

GREEDY = {"temperature": 0.0}


def model(name="alpha", *, step_time=0.005, **script):
    def make_backend():
        return ScriptedBackend(step_time=step_time, sleep=time.sleep, **script)

    return Model(name=name, digest=bytes(32), make_backend=make_backend)


def serving(bootstrap_nodes=(), **options):
    return Swarm(bootstrap_nodes, host="127.0.0.1", **options)


def address_of(swarm):
    return f"127.0.0.1:{swarm.dht_port}"


def expected(count, prompt="hello"):
    return scripted_text(scripted_tokens(prompt, count))


async def test_it_joins_asks_and_serves():
    assert llamanet.Swarm is Swarm
    async with serving(node_id="first") as first:
        await first.serve(model())
        async with serving([address_of(first)], node_id="second") as second, Swarm(address_of(first)) as swarm:
            reply = await swarm.generate("hello", model="alpha", max_tokens=20, **GREEDY)
            assert (reply.text, reply.node_id, reply.finish_reason) == (expected(20), "first", "length")
            assert reply.usage.completion_tokens == reply.tokens_generated == 20
            assert 50 < reply.tokens_per_second < 250
            assert 0 < reply.ttft < reply.generation_time < 5

            await second.serve(model("beta"))
            reply = await swarm.generate(
                messages=[{"role": "user", "content": "Hi"}], model="beta", max_tokens=3, **GREEDY
            )
            assert (reply.text, reply.node_id) == (expected(3, "<user> Hi <assistant>"), "second")
            assert [node.node_id for node in await swarm.nodes()] == ["first", "second"]
            assert [node.node_id for node in await swarm.nodes(model="beta")] == ["second"]
            assert [known.name for known in await second.models()] == ["alpha", "beta"]

            # Who serves asks itself too.
            assert (await second.generate("hello", model="beta", max_tokens=3, **GREEDY)).text == expected(3)
        assert [node.node_id for node in await first.nodes()] == ["first"]


async def test_streams():
    async with serving(node_id="first") as first:
        await first.serve(model())
        async with Swarm(address_of(first)) as swarm, swarm.stream("hello", max_tokens=20, **GREEDY) as stream:
            chunks = [chunk async for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == expected(20)
    assert [token for chunk in chunks for token in chunk.token_ids] == scripted_tokens("hello", 20)
    assert (stream.node_id, stream.finish_reason, stream.hops) == ("first", "length", ())


async def test_leaving_finishes_what_is_served_to_others(nursery):
    leave, left = trio.Event(), trio.Event()

    async def member(task_status):
        async with serving(node_id="first") as first:
            await first.serve(model())
            task_status.started(first)
            await leave.wait()
        left.set()

    first = await nursery.start(member)
    async with Swarm(address_of(first)) as swarm, swarm.stream("hello", max_tokens=60, **GREEDY) as stream:
        text = (await stream.__anext__()).text
        leave.set()
        async for chunk in stream:
            text += chunk.text
        await left.wait()
    assert (text, stream.hops) == (expected(60), ())


async def test_errors_of_the_block_come_out_as_they_are():
    async def fail():
        async with serving() as swarm:
            await swarm.serve(model())
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        await fail()
    with pytest.raises(NoNodeServes):
        async with Swarm() as swarm:
            await swarm.generate("hello")


async def test_cancelling_the_block():
    with trio.move_on_after(0.3) as scope:
        async with serving() as swarm:
            await swarm.serve(model())
            async with swarm.stream("hello") as stream:
                async for _ in stream:
                    pass
    assert scope.cancelled_caught


async def test_a_taken_port_is_an_error():
    async with Swarm() as swarm:
        with pytest.raises(UserError, match="the port is taken"):
            async with Swarm(dht_port=swarm.dht_port):
                pass
        async with serving() as server:
            await server.serve(model())
            [view] = await server.nodes()
            with pytest.raises(UserError, match=r"the port is taken \(--port \(PORT\)\)"):
                async with serving(port=int(view.address.rpartition(":")[2])) as other:
                    await other.serve(model())


async def test_models_that_cannot_be_served(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    async with serving(data_dir=tmp_path) as swarm:
        for path, complaint in [("missing.gguf", "does not exist"), ("bad.gguf", "not a GGUF file")]:
            with pytest.raises(UserError, match=complaint):
                await swarm.serve(tmp_path / path)
        await swarm.serve(model())
        with pytest.raises(UserError, match="two models are named 'alpha'"):
            await swarm.serve(model())
        assert (await swarm.generate("hello", max_tokens=3, **GREEDY)).text == expected(3)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"bootstrap_nodes": "localhost"}, "'localhost' is not host:port"),
        ({"bootstrap_nodes": ["127.0.0.1:8001", "127.0.0.1:0"]}, "'127.0.0.1:0' is not host:port"),
        ({"swarm_key": "abc"}, "swarm_key must be 32 bytes"),
        ({"swarm_key_file": "/nowhere"}, "swarm key file /nowhere"),
    ],
)
def test_settings_are_checked_at_once(options, complaint):
    with pytest.raises(UserError, match=complaint):
        Swarm(**options)


async def test_a_private_swarm_hears_its_own_only(tmp_path):
    key = "ab" * 32
    (tmp_path / "key").write_text(key + "\n")
    (tmp_path / "key").chmod(0o600)
    async with serving(swarm_key=key, node_id="first") as first:
        await first.serve(model())
        async with Swarm(address_of(first), swarm_key_file=tmp_path / "key") as member:
            assert (await member.generate("hello", max_tokens=3, **GREEDY)).node_id == "first"
        async with Swarm(address_of(first)) as outsider:
            with trio.move_on_after(0.6) as scope:
                await outsider.nodes()
            assert scope.cancelled_caught
