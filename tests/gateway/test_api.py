"""OpenAI's API over scripted nodes: what is asked of the swarm, and in which form its answers are told."""

import base64
import struct

import pytest
import trio
from asgi import app_for, ask
from reader import chat, complete, post

from llamanet.gateway.events import RequestAnswered, RequestEnded, RequestStarted
from llamanet.gateway.options import BOUNDLESS
from llamanet.testing.backend import scripted_logprobs, scripted_text, scripted_tokens, scripted_vector
from llamanet.testing.cluster import Cluster

GREEDY = {"temperature": 0}


def chat_text(count, prompt="<user> hello <assistant>", **options):
    return scripted_text(scripted_tokens(prompt, count, **options))


@pytest.fixture
async def cluster(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, step_time=0.01, answer_tokens=30)
    return cluster


@pytest.fixture
async def app(cluster):
    app, _ = app_for(await cluster.start_client())
    return app


async def test_a_chat(autojump_clock, app):
    got = await chat(app, max_tokens=12, **GREEDY)
    answer = got.json()
    assert got.status == 200
    assert got.headers["content-type"] == "application/json"
    assert (got.headers["x-llamanet-node"], got.headers["x-llamanet-hops"]) == ("node-0", "0")
    assert got.headers["x-request-id"].startswith("req_")
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "alpha")
    assert answer["system_fingerprint"] == "fp_" + 12 * "0"
    [choice] = answer["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": chat_text(12), "refusal": None},
        "logprobs": None,
        "finish_reason": "length",
    }
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 12,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_streamed_chat(autojump_clock, app):
    got = await chat(app, max_tokens=12, stream=True, **GREEDY)
    assert got.headers["content-type"] == "text/event-stream"
    assert got.headers["x-llamanet-node"] == "node-0"
    assert got.text.endswith("data: [DONE]\n\n")
    first, *_, last = got.events
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [event["choices"][0]["finish_reason"] for event in got.events if event["choices"][0]["finish_reason"]] == [
        "length"
    ]
    assert last["choices"][0]["delta"] == {}
    assert got.said == chat_text(12)
    assert len({event["id"] for event in got.events}) == 1
    assert all("usage" not in event for event in got.events)


async def test_a_stream_tells_its_usage_if_asked(autojump_clock, app):
    got = await chat(app, max_tokens=5, stream=True, stream_options={"include_usage": True}, **GREEDY)
    *others, last = got.events
    assert all(event["usage"] is None for event in others)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5


async def test_the_end_of_the_model_and_stop_strings(autojump_clock, app):
    whole = (await chat(app, **GREEDY)).json()["choices"][0]
    assert (whole["finish_reason"], whole["message"]["content"]) == ("stop", chat_text(30))
    word = chat_text(5).split()[4]
    before = chat_text(30).split(f" {word}")[0]
    for stop in (f" {word}", ["never", f" {word}"]):
        cut = (await chat(app, stop=stop, **GREEDY)).json()["choices"][0]
        assert (cut["finish_reason"], cut["message"]["content"]) == ("stop", before)
    streamed = await chat(app, stop=f" {word}", stream=True, **GREEDY)
    assert streamed.said == before


async def test_limits_by_all_their_names(autojump_clock, app):
    for name in ("max_tokens", "max_completion_tokens"):
        assert (await chat(app, **{name: 3}, **GREEDY)).json()["usage"]["completion_tokens"] == 3
    both = await chat(app, max_tokens=9, max_completion_tokens=3, **GREEDY)
    assert both.json()["usage"]["completion_tokens"] == 3
    # With the end token, as nodes count it.
    assert (await chat(app, max_tokens=-1, **GREEDY)).json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("given", "status"), [(2.0, 200), (2.5, 400), (1e300, 400), ("2", 400), (True, 400)])
async def test_a_whole_number_may_be_written_with_a_point(autojump_clock, app, given, status):
    got = await chat(app, max_tokens=given, **GREEDY)
    assert got.status == status
    if status == 200:
        assert got.json()["usage"]["completion_tokens"] == 2
    else:
        assert got.error["param"] == "max_tokens"


async def test_no_bound_is_minus_one_too(autojump_clock, cluster):
    app, gateway = app_for(await cluster.start_client())
    asked, stream = [], gateway.swarm.stream

    def noted(**options):
        asked.append(options)
        return stream(**options)

    gateway.swarm.stream = noted
    got = await chat(app, max_tokens=2, top_k=-1, repeat_last_n=-1, dry_penalty_last_n=-1)
    assert got.status == 200
    assert {name: asked[0][name] for name in BOUNDLESS} == BOUNDLESS


async def test_a_seed_draws_the_same_answer(autojump_clock, app):
    texts = [
        (await chat(app, seed=seed, max_tokens=9)).json()["choices"][0]["message"]["content"] for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] == chat_text(9, seed=7, temperature=0.8)
    negative = await chat(app, seed=-1, max_tokens=9)
    assert negative.json()["choices"][0]["message"]["content"] == chat_text(9, seed=2**63 - 1, temperature=0.8)


async def test_several_answers(autojump_clock, app):
    got = (await chat(app, n=3, seed=5, max_tokens=9)).json()
    assert [choice["index"] for choice in got["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in got["choices"]]
    assert texts == [chat_text(9, seed=seed, temperature=0.8) for seed in (5, 6, 7)]
    # A prompt counts once.
    assert (got["usage"]["prompt_tokens"], got["usage"]["completion_tokens"]) == (3, 27)

    streamed = await chat(app, n=3, seed=5, max_tokens=9, stream=True, stream_options={"include_usage": True})
    *events, last = streamed.events
    # In order, for so OpenAI's own client gathers them, whichever node speaks first.
    assert [event["choices"][0]["index"] for event in events[:3]] == [0, 1, 2]
    for index, text in enumerate(texts):
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["length"]
    assert last["usage"]["completion_tokens"] == 27
    assert streamed.text.count("[DONE]") == 1


async def test_log_probabilities_of_a_chat(autojump_clock, app):
    tokens = scripted_tokens("<user> hello <assistant>", 10)
    got = (await chat(app, max_tokens=10, logprobs=True, top_logprobs=2, **GREEDY)).json()
    told = got["choices"][0]["logprobs"]["content"]
    for token, entry in zip(tokens, told, strict=True):
        expected = scripted_logprobs(token, 2)
        assert (bytes(entry["bytes"]), entry["logprob"]) == (expected.piece, expected.logprob)
        assert entry["token"] == expected.piece.decode(errors="replace")
        assert [bytes(other["bytes"]) for other in entry["top_logprobs"]] == [other.piece for other in expected.top]
    bare = (await chat(app, max_tokens=3, logprobs=True, **GREEDY)).json()["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in bare] == [[], [], []]
    streamed = await chat(app, max_tokens=10, logprobs=True, top_logprobs=2, stream=True, **GREEDY)
    pieces = [event["choices"][0]["logprobs"] for event in streamed.events]
    assert [entry for piece in pieces if piece for entry in piece["content"]] == told


async def test_completions(autojump_clock, app):
    got = (await complete(app, max_tokens=9, **GREEDY)).json()
    assert (got["object"], got["id"][:5]) == ("text_completion", "cmpl-")
    assert got["choices"] == [{"index": 0, "text": chat_text(9, "hello"), "logprobs": None, "finish_reason": "length"}]
    streamed = await complete(app, max_tokens=9, stream=True, **GREEDY)
    assert streamed.said == chat_text(9, "hello")
    assert streamed.events[-1]["choices"][0]["finish_reason"] == "length"


async def test_completions_of_several_prompts(autojump_clock, app):
    got = (await complete(app, ["a b", "c"], n=2, max_tokens=4, echo=True, **GREEDY)).json()
    texts = ["a b" + chat_text(4, "a b"), "c" + chat_text(4, "c")]
    assert [(choice["index"], choice["text"]) for choice in got["choices"]] == [
        (0, texts[0]),
        (1, texts[0]),
        (2, texts[1]),
        (3, texts[1]),
    ]
    assert got["usage"]["prompt_tokens"] == 3
    assert got["usage"]["completion_tokens"] == 16
    streamed = await complete(app, "a b", max_tokens=4, echo=True, stream=True, **GREEDY)
    assert streamed.said == texts[0]


async def test_log_probabilities_of_a_completion(autojump_clock, app):
    tokens = scripted_tokens("hello", 11)
    got = (await complete(app, max_tokens=11, logprobs=1, **GREEDY)).json()["choices"][0]
    told = got["logprobs"]
    pieces = [scripted_logprobs(token, 1).piece for token in tokens]
    # The ninth and the tenth token are the halves of a character.
    assert told["tokens"][8:10] == ["bytes:\\x20\\x63\\x61\\x66\\xc3", "bytes:\\xa9"]
    assert told["tokens"][:8] == [piece.decode() for piece in pieces[:8]]
    assert told["text_offset"][:3] == [0, len(told["tokens"][0]), len(told["tokens"][0] + told["tokens"][1])]
    assert told["top_logprobs"][0] == {told["tokens"][0]: told["token_logprobs"][0]}
    streamed = await complete(app, max_tokens=11, logprobs=1, stream=True, **GREEDY)
    parts = [event["choices"][0]["logprobs"] for event in streamed.events]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [entry for part in parts for entry in part[name]] == told[name]


async def test_embeddings(autojump_clock, app):
    got = await post(app, "/v1/embeddings", {"model": "alpha", "input": ["a b", "c"]})
    assert [tuple(entry["embedding"]) for entry in got.json()["data"]] == [scripted_vector("a b"), scripted_vector("c")]
    assert got.json()["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert got.headers["x-llamanet-node"] == "node-0"
    encoded = await post(app, "/v1/embeddings", {"input": "c", "encoding_format": "base64", "dimensions": 4})
    [entry] = encoded.json()["data"]
    assert struct.unpack("<4f", base64.b64decode(entry["embedding"])) == scripted_vector("c")


async def test_roles_and_parts_reach_the_template(autojump_clock, app):
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "go", "name": "bob"},
    ]
    got = (await chat(app, messages=messages, max_tokens=5, **GREEDY)).json()
    prompt = "<system> be kind <user> one\ntwo <assistant>  <user> go <assistant>"
    assert got["choices"][0]["message"]["content"] == chat_text(5, prompt)


BEGUN = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": " well"}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "<user> hello <assistant> well"),
        ({"continue_final_message": True}, "<user> hello <assistant> well"),
        ({"continue_final_message": False}, "<user> hello <assistant>  well <assistant>"),
    ],
)
async def test_a_turn_that_has_begun_goes_on(autojump_clock, app, fields, prompt, stream):
    got = await chat(app, messages=BEGUN, max_tokens=9, stream=stream, **GREEDY, **fields)
    said = got.said if stream else got.json()["choices"][0]["message"]["content"]
    assert said == chat_text(9, prompt, **GREEDY)


async def test_a_turn_that_calls_is_no_beginning(autojump_clock, app):
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    got = await chat(app, messages=[BEGUN[0], called], max_tokens=9)
    assert got.status == 200
    refused = await chat(app, messages=[BEGUN[0], called], continue_final_message=True)
    assert (refused.status, refused.error["param"]) == (400, "continue_final_message")


async def test_any_model_will_do(autojump_clock, app):
    for model in ("auto", "", None):
        assert (await chat(app, model=model, max_tokens=2)).json()["model"] == "alpha"


async def test_unknown_fields_are_ignored_and_logged(autojump_clock, app, caplog):
    with caplog.at_level("DEBUG", "llamanet.gateway"):
        got = await chat(app, max_tokens=2, store=True, reasoning_effort="low")
    assert got.status == 200
    assert "reasoning_effort, store" in caplog.text


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, 400, "temperature", "valid number"),
        ({"n": 0}, 400, "n", "greater"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "without content"),
        ({"messages": [{"content": "x"}]}, 400, "messages[0].role", "required"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content", "valid"),
        ({"max_tokens": 0}, 400, "max_tokens", "at least 1"),
        ({"top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
        ({"logit_bias": {"hello": 1}}, 400, "logit_bias.hello", "pattern"),
        ({"stop": 5}, 400, "stop", "valid string"),
        ({"response_format": {"type": "xml"}}, 400, "response_format", "not known"),
        ({"grammar": "no rule"}, 400, "grammar", "rule root"),
        ({"modalities": ["text", "audio"]}, 422, "modalities", "text"),
        ({"functions": [{"name": "weather"}]}, 422, "functions", "tools"),
        ({"top_k": -2}, 400, "top_k", "greater"),
        ({"function_call": {"name": "weather"}}, 422, "function_call", "tool_choice"),
        ({"continue_final_message": True}, 400, "continue_final_message", "after a turn of the assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            422,
            "messages[0].content[0]",
            "image_url",
        ),
        ({"messages": [{"role": "user", "content": "word " * 3_000}]}, 400, "messages", "3002 tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_wrong_chats(autojump_clock, app, fields, status, param, words, stream):
    got = await chat(app, stream=stream, **fields)
    assert (got.status, got.error["param"]) == (status, param)
    assert got.error["type"] == "invalid_request_error"
    assert words in got.error["message"]


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("/v1/completions", {"prompt": [1, 2]}, 422, "prompt"),
        ("/v1/completions", {"prompt": [[1, 2]]}, 422, "prompt"),
        ("/v1/completions", {"prompt": []}, 422, "prompt"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, 422, "suffix"),
        ("/v1/completions", {"prompt": "a", "best_of": 2}, 422, "best_of"),
        ("/v1/completions", {"prompt": "a", "best_of": 1, "n": 2}, 400, "best_of"),
        ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1}, 422, "echo"),
        ("/v1/completions", {"prompt": ["a"] * 30, "n": 9}, 400, "n"),
        ("/v1/completions", {}, 400, "prompt"),
        ("/v1/completions", {"prompt": "a", "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ("/v1/embeddings", {"input": [1, 2]}, 422, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 2}, 400, "dimensions"),
        ("/v1/embeddings", {"input": ["a", "word " * 3_000]}, 400, "input[1]"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    ],
)
async def test_other_wrong_requests(autojump_clock, app, path, fields, status, param):
    got = await post(app, path, fields)
    assert (got.status, got.error["param"]) == (status, param)


async def test_what_is_no_json(autojump_clock, app):
    got = await post(app, "/v1/completions", b'{"prompt": ')
    assert (got.status, got.error["code"]) == (400, "invalid_json")
    for body in (b"[]", b"null", b'"prompt"'):
        assert (await post(app, "/v1/completions", body)).status == 400


async def test_a_prompt_that_is_too_long_is_told_as_clients_know_it(autojump_clock, app):
    got = await complete(app, "word " * 3_000)
    assert (got.status, got.error["code"], got.error["param"]) == (400, "context_length_exceeded", "prompt")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_model(autojump_clock, app, stream):
    got = await chat(app, model="beta", stream=stream)
    assert (got.status, got.error["code"], got.error["param"]) == (404, "model_not_found", "model")
    assert "it serves alpha" in got.error["message"]


async def test_no_node_is_left(autojump_clock, app, cluster):
    await chat(app, max_tokens=2)
    cluster.kill("node-0")
    got = await chat(app, max_tokens=2)
    assert (got.status, got.error["type"]) == (503, "service_unavailable_error")
    assert int(got.headers["retry-after"]) > 0


async def test_all_are_busy(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_node("busy", step_time=1.0, slots=1, max_waiting=0)
    await trio.sleep(3)
    app, _ = app_for(await cluster.start_client())
    async with trio.open_nursery() as inner:
        inner.start_soon(chat, app)
        await trio.sleep(3)
        got = await chat(app)
        assert (got.status, got.error["code"]) == (429, "swarm_busy")
        assert int(got.headers["retry-after"]) > 0
        inner.cancel_scope.cancel()


async def test_the_models(autojump_clock, app):
    got = (await ask(app, "GET", "/v1/models")).json()
    assert got["object"] == "list"
    [model] = got["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("alpha", "model", "llamanet")
    assert (model["nodes"], model["digests"], model["n_ctx"]) == (1, [64 * "0"], 2048)
    assert (await ask(app, "GET", "/v1/models/")).json() == got
    assert (await ask(app, "GET", "/v1/models/alpha")).json() == model
    assert (await ask(app, "GET", "/v1/models/beta")).code == "model_not_found"


async def test_other_paths_and_methods(autojump_clock, app):
    assert (await ask(app, "GET", "/v1/nothing")).code == "unknown_url"
    got = await ask(app, "GET", "/v1/chat/completions")
    assert (got.status, got.code, got.headers["allow"]) == (405, "method_not_supported", "POST")
    assert (await ask(app, "HEAD", "/v1/models")).status == 200


async def test_a_page_of_another_site_cannot_make_the_swarm_work(autojump_clock, cluster):
    app, _ = app_for(await cluster.start_client(), cors_origin=("https://chat.example",))
    async with trio.open_nursery():
        got = await ask(
            app, "POST", "/v1/completions", b'{"prompt": "a"}', origin="https://chat.example", content_type="text/plain"
        )
    assert got.status == 415


async def test_what_happens_is_told(autojump_clock, cluster):
    app, gateway = app_for(await cluster.start_client())
    told = []
    gateway.events.listeners.append(told.append)
    await chat(app, n=2, max_tokens=4)
    started, answered, ended = told
    assert isinstance(started, RequestStarted)
    assert isinstance(answered, RequestAnswered)
    assert answered.node_id == "node-0"
    assert isinstance(ended, RequestEnded)
    assert (ended.status, ended.tokens, ended.prompt_tokens, ended.model) == (200, 8, 3, "alpha")
    told.clear()
    await chat(app, model="beta")
    assert [event.status for event in told if isinstance(event, RequestEnded)] == [404]
