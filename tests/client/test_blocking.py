"""The blocking client, against a swarm that runs in another thread."""

import asyncio
import gc
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from llamanet.client import Client
from llamanet.client.batch import AHEAD
from llamanet.client.blocking import MAX_PROMPTS_AHEAD
from llamanet.errors import ClientClosed, NoNodeServes, NotJoined, RequestRefused, UserError
from llamanet.node.host import Model
from llamanet.swarm import Swarm
from llamanet.testing.backend import ScriptedBackend, scripted_text, scripted_tokens

ROOT = Path(__file__).resolve().parents[2]
GREEDY = {"temperature": 0.0}


def expected(count, prompt="hello"):
    return scripted_text(scripted_tokens(prompt, count))


class SwarmThread:
    """A node in a thread of its own."""

    def __init__(self):
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))

    async def _main(self):
        self._stop, self._token = trio.Event(), trio.lowlevel.current_trio_token()
        backend = ScriptedBackend(step_time=0.005, sleep=time.sleep)
        async with Swarm(node_id="first", host="127.0.0.1") as swarm:
            await swarm.serve(Model(name="alpha", digest=bytes(32), make_backend=lambda: backend))
            self.swarm, self.address = swarm, f"127.0.0.1:{swarm.dht_port}"
            self._ready.set()
            await self._stop.wait()

    def __enter__(self):
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._token.run_sync_soon(self._stop.set)
        self._thread.join()

    def wait_idle(self):
        return self._wait_for(lambda: not self._running())

    def wait_busy(self):
        return self._wait_for(self._running)

    def _wait_for(self, condition):
        deadline = time.monotonic() + 5
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        return condition()

    def _running(self):
        return trio.from_thread.run(self.swarm.nodes, trio_token=self._token)[0].running


@pytest.fixture(scope="module")
def swarm():
    with SwarmThread() as thread:
        yield thread


@pytest.fixture
def client(swarm):
    with Client(swarm.address) as client:
        yield client


def test_the_example_that_users_know(swarm):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))

        async def main():
            client = Client(
                bootstrap_nodes=swarm.address, model="alpha", min_tps=1.0, max_load=0.8, dht_port=taken.getsockname()[1]
            )
            try:
                response = client.generate(prompt="What is LlamaNet?", max_tokens=15, temperature=0.7)
                if response:
                    return response
            finally:
                await client.close()

        response = asyncio.run(main())
    assert response.node_id == "first"
    assert len(response.text) > 10
    assert response.tokens_generated == 15
    assert 0 < response.ttft < response.generation_time


def test_a_batch_of_an_iterator_without_end(client):
    thread = threading.get_ident()
    taken = []

    def prompts():
        for number in itertools.count():
            assert threading.get_ident() == thread
            taken.append(number)
            yield f"prompt {number}"

    with client.map(prompts(), max_tokens=4, concurrency=3, **GREEDY) as results:
        for number in range(300):
            assert next(results).text == expected(4, f"prompt {number}")
    assert len(taken) <= 300 + MAX_PROMPTS_AHEAD + 3 * AHEAD
    with client.map((f"prompt {number}" for number in range(20)), max_tokens=4, **GREEDY) as results:
        assert [result.text for result in results] == [expected(4, f"prompt {number}") for number in range(20)]


def test_a_batch(client, tmp_path):
    prompts = [f"prompt {number}" for number in range(10)]
    with client.map(prompts, max_tokens=4, concurrency=3, **GREEDY) as results:
        assert [result.text for result in results] == [expected(4, prompt) for prompt in prompts]
        assert list(results) == []
    with client.map(prompts, max_tokens=400, concurrency=3, **GREEDY) as results:
        assert next(results).index == 0
    with pytest.raises(StopIteration):
        next(results)
    with pytest.raises(RequestRefused, match="0 requests in flight"):
        list(client.map(prompts, concurrency=0))
    with pytest.raises(FileNotFoundError):
        list(client.map(prompts, journal=tmp_path / "nowhere" / "journal"))
    results = client.map(prompts, max_tokens=400, concurrency=3)
    client.close()
    with pytest.raises(ClientClosed):
        list(results)


def test_it_generates_streams_and_looks_around(client):
    assert client.generate("hello", max_tokens=9, **GREEDY).text == expected(9)
    chat = [{"role": "user", "content": "Hi"}]
    assert client.generate(messages=chat, max_tokens=3, **GREEDY).text == expected(3, "<user> Hi <assistant>")
    with client.stream("hello", max_tokens=9, **GREEDY) as stream:
        assert "".join(chunk.text for chunk in stream) == expected(9)
    assert (stream.node_id, stream.finish_reason, stream.hops) == ("first", "length", ())
    assert stream.usage.completion_tokens == 9
    assert stream.reply().text == expected(9)
    assert [node.node_id for node in client.nodes()] == ["first"]
    assert [model.name for model in client.models()] == ["alpha"]


def test_errors(client):
    with pytest.raises(NoNodeServes, match="the swarm serves alpha"):
        client.generate("hello", model="beta")
    with pytest.raises(NoNodeServes, match="min_tps"):
        client.generate("hello", min_tps=1e6)
    with pytest.raises(RequestRefused, match="max_tokens"):
        client.stream("hello", max_tokens=-1)
    with pytest.raises(UserError, match="not host:port"):
        Client("nonsense")


def test_no_swarm(monkeypatch):
    monkeypatch.setattr("llamanet.client.client.JOIN_S", 0.2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with Client(f"127.0.0.1:{silent.getsockname()[1]}") as client, pytest.raises(NotJoined):
            client.generate("hello")


def test_many_threads_share_a_client(client):
    with ThreadPoolExecutor(8) as executor:
        prompts = [f"prompt {number}" for number in range(16)]
        replies = list(executor.map(lambda prompt: client.generate(prompt, max_tokens=5, **GREEDY), prompts))
    assert [reply.text for reply in replies] == [expected(5, prompt) for prompt in prompts]


def test_leaving_a_stream_stops_it(swarm, client):
    with client.stream("hello", **GREEDY) as stream:
        next(stream)
    assert swarm.wait_idle()
    for _ in client.stream("hello", **GREEDY):
        break
    gc.collect()
    assert swarm.wait_idle()


def test_closing_twice_and_using_it_afterwards(swarm):
    client = Client(swarm.address)
    stream = client.stream("hello", **GREEDY)
    next(stream)
    client.close()
    client.close()
    asyncio.run(awaited(client.close()))
    trio.run(awaited, client.close())
    with pytest.raises(ClientClosed):
        client.generate("hello")
    with pytest.raises(ClientClosed):
        next(stream)
    stream.close()
    assert swarm.wait_idle()


async def awaited(closed):
    await closed


def test_closing_in_the_middle_of_a_call(swarm):
    client = Client(swarm.address)
    with ThreadPoolExecutor(1) as executor:
        call = executor.submit(client.generate, "hello", **GREEDY)
        assert swarm.wait_busy()
        client.close()
        with pytest.raises(ClientClosed):
            call.result(5)
    assert swarm.wait_idle()


def test_a_forgotten_client_is_closed(swarm):
    before = threading.active_count()
    client = Client(swarm.address)
    assert threading.active_count() == before + 1
    del client
    gc.collect()
    assert threading.active_count() == before


def test_an_interrupted_call_stops_its_work(swarm, client):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        client.generate("hello", **GREEDY)
    assert swarm.wait_idle()
    assert client.generate("hello", max_tokens=3, **GREEDY).text == expected(3)


def test_the_end_of_the_program_without_closing(swarm):
    program = f"""
from llamanet.client import Client
client = Client({swarm.address!r})
stream = client.stream("hello", temperature=0.0)
print(next(stream).text)
"""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert (done.stdout, done.stderr, done.returncode) == (expected(1) + "\n", "", 0)
    assert time.monotonic() - start < 5
    assert swarm.wait_idle()
