"""The engine in its thread, on a script: real time, so nothing here depends on how long anything takes."""

import threading
import time
from typing import Any

import pytest
import trio
import trio.testing

from llamanet.errors import EngineBusy, ModelFileError
from llamanet.node.engine import Engine, EngineConfig, serve_engine
from llamanet.testing.backend import ScriptedBackend, scripted_text, scripted_tokens
from llamanet.wire.inference import Failed, Finished, Generate, Sampling, Tokens

REQUEST = Generate(id=1, prompt="one two three", sampling=Sampling(temperature=0, max_tokens=300))


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("engine")]


class Signalling(ScriptedBackend):
    """Says when it draws its token number `signal_at`, and when a sequence has left its slot."""

    signal_at = 0

    def __init__(self, **script: Any) -> None:
        super().__init__(**script)
        self.reached = threading.Event()
        self.ended = threading.Event()

    def draw(self, slot: int, position: int) -> int:
        if self.drawn + 1 == self.signal_at:
            self.reached.set()
        return super().draw(slot, position)

    def end(self, slot: int) -> None:
        super().end(slot)
        self.ended.set()


async def wait(event: threading.Event) -> None:
    assert await trio.to_thread.run_sync(event.wait, 10)


async def tokens(engine: Engine, request: Generate = REQUEST) -> tuple[list[int], str]:
    ids: list[int] = []
    text = ""
    async for message in engine.submit(request):
        if isinstance(message, Tokens):
            ids += message.token_ids
            text += message.text
    assert isinstance(message, Finished)
    return ids, text


async def test_many_streams_through_the_thread(nursery: trio.Nursery) -> None:
    backend = ScriptedBackend()
    engine = await nursery.start(serve_engine, "model", bytes(32), lambda: backend, EngineConfig())
    results: dict[int, tuple[list[int], str]] = {}

    async def one(number: int) -> None:
        request = Generate(id=number, prompt=f"prompt {number}", sampling=REQUEST.sampling)
        results[number] = await tokens(engine, request)

    async with trio.open_nursery() as streams:
        for number in range(20):
            streams.start_soon(one, number)
    for number, (ids, text) in results.items():
        assert ids == scripted_tokens(f"prompt {number}", 300)
        assert text == scripted_text(ids)
    assert len(engine_threads()) == 1


async def test_stopping_joins_the_thread_and_closes_the_model() -> None:
    backend = ScriptedBackend(step_time=0.001, sleep=time.sleep)
    async with trio.open_nursery() as nursery:
        engine = await nursery.start(serve_engine, "model", bytes(32), lambda: backend, EngineConfig())
        generation = engine.submit(Generate(id=1, prompt="a b", sampling=Sampling(temperature=0)))
        await generation.receive()
        nursery.cancel_scope.cancel()
    assert backend.closed
    messages = [message async for message in generation]
    assert isinstance(messages[-1], Failed)
    assert messages[-1].code == "draining"
    assert engine_threads() == []


async def test_a_model_that_does_not_load_leaves_no_thread() -> None:
    def fail() -> ScriptedBackend:
        raise ModelFileError("model.gguf is not a GGUF file")

    with pytest.raises(ModelFileError, match=r"model\.gguf is not"):
        await serve_engine("model", bytes(32), fail, EngineConfig())
    assert engine_threads() == []


async def test_requests_in_preparation_are_done_before_the_model_is_closed() -> None:
    entered, closing = threading.Event(), threading.Event()
    closed_while_used = []

    class Slow(ScriptedBackend):
        def tokenize(self, text: str, *, whole: bool = False) -> list[int]:
            entered.set()
            closed_while_used.append(closing.wait(0.2))
            return super().tokenize(text)

        def close(self) -> None:
            closing.set()

    async with trio.open_nursery() as nursery:
        engine = await nursery.start(serve_engine, "model", bytes(32), Slow, EngineConfig())
        engine.submit(REQUEST)
        await wait(entered)
        nursery.cancel_scope.cancel()
    assert closed_while_used == [False]
    assert closing.is_set()


async def test_a_paused_reader_wakes_the_idle_thread(nursery: trio.Nursery) -> None:
    backend = Signalling()
    backend.signal_at = 10
    engine = await nursery.start(serve_engine, "model", bytes(32), lambda: backend, EngineConfig(buffer_tokens=10))
    generation = engine.submit(REQUEST)
    await wait(backend.reached)
    ids = [i for message in [m async for m in generation] if isinstance(message, Tokens) for i in message.token_ids]
    assert ids == scripted_tokens("one two three", 300)


async def test_a_reader_that_stays_away_is_given_up_by_the_idle_thread(nursery: trio.Nursery) -> None:
    backend = Signalling()
    config = EngineConfig(buffer_tokens=10, reader_timeout=0.05)
    engine = await nursery.start(serve_engine, "model", bytes(32), lambda: backend, config)
    generation = engine.submit(REQUEST)
    await wait(backend.ended)
    messages = [message async for message in generation]
    assert isinstance(messages[-1], Failed)
    assert messages[-1].code == "slow_reader"
    assert backend.drawn == 10


async def test_a_hanging_model_goes_on_when_released(nursery: trio.Nursery) -> None:
    backend = Signalling(hang_at=5, sleep=time.sleep)
    backend.signal_at = 5
    engine = await nursery.start(serve_engine, "model", bytes(32), lambda: backend, EngineConfig())
    generation = engine.submit(REQUEST)
    await wait(backend.reached)
    backend.release()
    messages = [message async for message in generation]
    assert isinstance(messages[-1], Finished)


async def test_preparation_takes_two_threads_and_cancelled_work_is_counted_until_it_is_over(
    nursery: trio.Nursery,
) -> None:
    go_on, prepared, two = threading.Event(), [], threading.Semaphore(0)

    class Slow(ScriptedBackend):
        def tokenize(self, text: str, *, whole: bool = False) -> list[int]:
            prepared.append(text)
            two.release()
            go_on.wait(10)
            return super().tokenize(text)

    backend = Slow(slots=1)
    engine = await nursery.start(serve_engine, "model", bytes(32), lambda: backend, EngineConfig(max_waiting=2))
    generations = [engine.submit(Generate(id=number, prompt=str(number))) for number in range(3)]
    for _ in range(2):
        assert await trio.to_thread.run_sync(two.acquire, True, 10)
    for generation in generations:
        generation.cancel()
    await trio.testing.wait_all_tasks_blocked()
    last = engine.submit(REQUEST)
    with pytest.raises(EngineBusy):
        engine.submit(REQUEST)
    go_on.set()
    messages = [message async for message in last]
    assert isinstance(messages[-1], Finished)
    assert len(prepared) == 3
    assert prepared[2] == "one two three", "the third was cancelled before its turn"
