"""Many prompts at once: in order or as they come, journals, failures, fairness, and nothing left behind."""

import itertools
import os
from contextlib import aclosing

import attrs
import pytest
import trio
import trio.testing

from llamanet.client.batch import AHEAD
from llamanet.errors import LlamaNetError, RequestRefused
from llamanet.testing.backend import scripted_text, scripted_tokens
from llamanet.testing.cluster import Cluster

OPTIONS = {"temperature": 0.0, "max_tokens": 5, "model": "alpha"}


def expected(prompt, count=5):
    return scripted_text(scripted_tokens(prompt, count))


def work_of(node):
    states = [engine.state() for engine in node.host.endpoint.engines.values()]
    return sum(state.running + state.waiting for state in states)


def load(cluster):
    return sum(map(work_of, cluster.nodes.values()))


async def collect(client, prompts, **options):
    async with client.map(prompts, **(OPTIONS | options)) as results:
        return [result async for result in results]


@pytest.fixture
async def cluster(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(3, step_time=0.01, slots=4)
    return cluster


@pytest.fixture
async def real_cluster(nursery):
    """For journals, which a thread writes: with the clock as it is."""
    cluster = Cluster(nursery)
    await cluster.start_nodes(3, step_time=0.01, slots=4)
    return cluster


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_batch_over_all_nodes_with_progress(autojump_clock, cluster, ordered):
    prompts = [f"prompt {number}" for number in range(40)]
    progress = []
    results = await collect(
        await cluster.start_client(), prompts, ordered=ordered, progress=lambda *counts: progress.append(counts)
    )
    assert sorted(result.index for result in results) == list(range(40))
    assert ([result.index for result in results] == list(range(40))) or not ordered
    assert all(result.text == expected(prompts[result.index]) for result in results)
    assert {result.reply.node_id for result in results} == set(cluster.nodes)
    assert progress == [(count, 40) for count in range(1, 41)]


async def test_results_come_as_they_are_made_and_a_failure_is_one_of_them(autojump_clock, cluster):
    prompts = ["slow", "x " * 5000, [{"role": "user", "content": "Hi"}]]
    results = await collect(await cluster.start_client(), prompts, ordered=False, concurrency=3)
    by_index = {result.index: result for result in results}
    assert isinstance(by_index[1].error, RequestRefused)
    with pytest.raises(RequestRefused, match="the prompt has 5000 tokens"):
        by_index[1].text  # noqa: B018
    assert by_index[2].text == expected("<user> Hi <assistant>")


async def test_concurrency_is_kept_and_a_reader_that_stops_stops_the_work(autojump_clock, cluster):
    most = 0
    prompts = [f"prompt {number}" for number in range(100)]
    taken = iter(prompts)
    async with (await cluster.start_client()).map(taken, **OPTIONS, concurrency=3) as results:
        assert (await results.receive()).index == 0
        for _ in range(30):
            await trio.sleep(0.01)
            most = max(most, load(cluster))
        await trio.sleep(10)
        assert load(cluster) == 0
        assert most == 3
        assert 3 * AHEAD <= 100 - len(list(taken)) <= 3 * (AHEAD + 1)
        assert (await results.receive()).index == 1


async def test_leaving_the_block_frees_everything(autojump_clock, nursery, cluster):
    await trio.testing.wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as clients:
        client = await cluster.start_client(clients)
        async with client.map(["go on"] * 20, **(OPTIONS | {"max_tokens": 500})) as results:
            with trio.move_on_after(1):
                await results.receive()
            assert load(cluster) == 12
        await trio.sleep(0.1)
        assert load(cluster) == 0
        with pytest.raises(trio.ClosedResourceError):
            await results.receive()
        clients.cancel_scope.cancel()
    await trio.sleep(0.1)
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_a_broken_off_batch_goes_on_from_its_journal(real_cluster, tmp_path):
    client = await real_cluster.start_client()
    prompts = [f"prompt {number}" for number in range(30)]
    path = tmp_path / "batch.jsonl"

    def written():
        return len(path.read_bytes().splitlines())

    async with client.map(prompts, **OPTIONS, journal=path, concurrency=4, logprobs=1) as results:
        for taken in range(1, 11):
            await results.receive()
            assert written() >= taken
    done = written()
    assert 10 <= done < 30
    path.write_bytes(path.read_bytes() + b'{"key": "ab')
    results = await collect(client, prompts, journal=path, logprobs=1)
    assert [result.text for result in results] == [expected(prompt) for prompt in prompts]
    assert all(len(result.reply.logprobs) == 5 for result in results)
    assert written() == 31
    # Everything is there now; other options are another batch.
    kept = [attrs.evolve(result, reply=attrs.evolve(result.reply, choices=())) for result in results]
    assert await collect(client, prompts, journal=path, logprobs=1) == kept
    assert written() == 31
    assert await collect(client, prompts, journal=path, logprobs=1, tries=9, timeout=99, on_choice=print) == kept
    assert written() == 31
    await collect(client, prompts, journal=path, max_tokens=3)
    assert written() == 61


async def test_a_batch_that_loses_nodes_and_is_broken_off_goes_on_from_its_journal(real_cluster, tmp_path):
    client = await real_cluster.start_client()
    prompts = [f"prompt {number}" for number in range(40)]
    path = tmp_path / "batch.jsonl"
    options = {"journal": path, "max_tokens": 20}
    hops = set()
    async with client.map(prompts, **(OPTIONS | options), concurrency=8, ordered=False) as results:
        for taken in range(1, 25):
            hops |= set((await results.receive()).reply.hops)
            if taken in (5, 15):
                # The one that computes most, in the middle of it.
                real_cluster.kill(max(real_cluster.nodes, key=lambda label: work_of(real_cluster.nodes[label])))
    done = len(path.read_bytes().splitlines())
    assert 24 <= done < 40
    assert hops
    asked = []
    results = await collect(client, prompts, **options, on_choice=asked.append)
    assert [result.text for result in results] == [expected(prompt, 20) for prompt in prompts]
    assert len(asked) == 40 - done


async def test_a_journal_knows_prompts_wherever_they_are_and_how_often(real_cluster, tmp_path):
    client = await real_cluster.start_client()
    path = tmp_path / "batch.jsonl"
    drawn = {"temperature": 1.0, "max_tokens": 8, "journal": path}
    first = [result.text for result in await collect(client, ["a", "b", "b"], **drawn)]
    assert first[1] != first[2], "two draws, and not one twice"
    second = [result.text for result in await collect(client, ["new", "b", "a", "b"], **drawn)]
    assert second[1:] == [first[1], first[0], first[2]]
    assert len(path.read_bytes().splitlines()) == 4


async def test_replies_that_come_together_are_written_together(real_cluster, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    client = await real_cluster.start_client()
    path = tmp_path / "batch.jsonl"
    results = await collect(client, [f"prompt {number}" for number in range(48)], journal=path, concurrency=12)
    assert [result.error for result in results] == [None] * 48
    assert len(path.read_bytes().splitlines()) == 48
    assert 4 <= len(synced) < 48


async def test_prompts_may_come_from_an_async_iterable_without_end(autojump_clock, cluster):
    taken = []

    async def prompts():
        for number in itertools.count():
            await trio.sleep(0.001)
            taken.append(number)
            yield f"prompt {number}"

    client = await cluster.start_client()
    async with aclosing(prompts()) as source, client.map(source, **OPTIONS, concurrency=3) as results:
        for number in range(5):
            assert (await results.receive()).text == expected(f"prompt {number}")
        await trio.sleep(5)
    assert 5 < len(taken) <= 5 + 3 * AHEAD


ODD = ["good", 5, ["a"], b"x", [5], None, [], "good too"]


def check_odd(results):
    assert [result.index for result in results if result.error is None] == [0, 7]
    for result in results[1:-1]:
        assert isinstance(result.error, RequestRefused)
        assert "\n" not in str(result.error)


async def test_what_is_no_prompt_fails_alone(autojump_clock, cluster):
    check_odd(await collect(await cluster.start_client(), ODD))


async def test_what_is_no_prompt_fails_alone_with_a_journal(real_cluster, tmp_path):
    check_odd(await collect(await real_cluster.start_client(), ODD, journal=tmp_path / "journal"))


@pytest.mark.parametrize("options", [{"max_token": 5}, {"strategy": "foo"}, {"messages": []}])
async def test_a_bad_option_is_one_error_at_the_call(autojump_clock, cluster, options):
    client = await cluster.start_client()
    with pytest.raises(LlamaNetError):
        async with client.map(["a"] * 5, **options):
            pytest.fail("it began")


async def test_no_request_in_flight_is_refused(autojump_clock, cluster):
    with pytest.raises(RequestRefused, match="0 requests in flight"):
        await collect(await cluster.start_client(), ["a"], concurrency=0)
