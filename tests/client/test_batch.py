"""Many prompts at once: in order or as they come, journals, failures, fairness, and nothing left behind."""

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


def load(cluster):
    return sum(
        engine.state().running + engine.state().waiting
        for node in cluster.nodes.values()
        for engine in node.host.endpoint.engines.values()
    )


async def collect(client, prompts, **options):
    async with client.map(prompts, **(OPTIONS | options)) as results:
        return [result async for result in results]


@pytest.fixture
async def cluster(autojump_clock, nursery):
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


async def test_a_broken_off_batch_goes_on_from_its_journal(autojump_clock, cluster, tmp_path):
    client = await cluster.start_client()
    prompts = [f"prompt {number}" for number in range(30)]
    path = tmp_path / "batch.jsonl"
    async with client.map(prompts, **OPTIONS, journal=path, concurrency=4, logprobs=1) as results:
        for _ in range(10):
            await results.receive()

    def written():
        return len(path.read_bytes().splitlines())

    done = written()
    assert 10 <= done < 30
    path.write_bytes(path.read_bytes() + b'{"index": 3, "key": "ab')
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


@pytest.mark.parametrize("journal", [None, "journal"])
async def test_what_is_no_prompt_fails_alone(autojump_clock, cluster, tmp_path, journal):
    client = await cluster.start_client()
    prompts = ["good", 5, ["a"], b"x", [5], None, [], "good too"]
    results = await collect(client, prompts, journal=journal and tmp_path / journal)
    assert [result.index for result in results if result.error is None] == [0, 7]
    for result in results[1:-1]:
        assert isinstance(result.error, RequestRefused)
        assert "\n" not in str(result.error)


@pytest.mark.parametrize("options", [{"max_token": 5}, {"strategy": "foo"}, {"messages": []}])
async def test_a_bad_option_is_one_error_at_the_call(autojump_clock, cluster, options):
    client = await cluster.start_client()
    with pytest.raises(LlamaNetError):
        async with client.map(["a"] * 5, **options):
            pytest.fail("it began")


async def test_no_request_in_flight_is_refused(autojump_clock, cluster):
    with pytest.raises(RequestRefused, match="0 requests in flight"):
        await collect(await cluster.start_client(), ["a"], concurrency=0)
