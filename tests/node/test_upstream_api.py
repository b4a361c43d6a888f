"""What a server that is already there is asked, and what its answers mean."""

import json

import attrs
import pytest

from llamanet.client.client import make_request
from llamanet.client.tool_calls import CallReader
from llamanet.errors import RequestRefused
from llamanet.node.upstream_api import (
    CALL_FORMAT,
    LLAMA_CPP_PYTHON,
    LLAMA_SERVER,
    LLAMANET,
    VLLM,
    ChunkReader,
    Piece,
    embed_call,
    generate_call,
    refusal_of,
)
from llamanet.wire.inference import Embed, Generate
from llamanet.wire.tools import FORMATS

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}


def request(prompt=None, messages=None, resume=(), resume_text=None, **options):
    made = make_request(prompt, messages, "m", options)
    return attrs.evolve(made, resume=resume, resume_text=resume_text)


def text_of(*chunks):
    reader = ChunkReader()
    pieces = [piece for chunk in chunks for piece in reader.read(chunk)]
    return "".join(piece.text for piece in pieces), pieces, reader


def delta(**delta):
    return {"choices": [{"index": 0, "delta": delta}]}


def test_a_plain_request_says_nothing_that_openais_api_does_not_know():
    call = generate_call(request(messages=[{"role": "user", "content": "hi"}], max_tokens=5, seed=7), owner="")
    assert call.path == "/chat/completions"
    assert call.body == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.8,
        "top_p": 0.95,
        "max_tokens": 5,
        "seed": 7,
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_what_was_set_is_passed_on():
    made = request(
        "Once", top_k=5, min_p=0.1, repeat_penalty=1.1, stop=["x"], logit_bias={3: -1.0}, logprobs=2, presence_penalty=1
    )
    body = generate_call(made, owner="").body
    assert (body["prompt"], body["top_k"], body["min_p"], body["repeat_penalty"]) == ("Once", 5, 0.1, 1.1)
    assert (body["stop"], body["logit_bias"], body["logprobs"], body["presence_penalty"]) == (["x"], {"3": -1.0}, 2, 1)


def test_a_schema_and_tools_are_passed_on():
    made = request(
        messages=[{"role": "user", "content": "hi"}],
        json_schema={"type": "object"},
        tools=[WEATHER],
        tool_choice="required",
    )
    body = generate_call(made, owner="").body
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["tools"] == [WEATHER]
    assert body["tool_choice"] == "required"


def test_a_grammar_is_refused():
    with pytest.raises(RequestRefused, match="GBNF"):
        generate_call(request("a", grammar='root ::= "x"'), owner="")


@pytest.mark.parametrize("owner", ["", VLLM])
def test_a_stream_goes_on_from_its_text(owner):
    chat = generate_call(
        request(messages=[{"role": "user", "content": "hi"}], resume=(0, 1), resume_text="Well,", max_tokens=10),
        owner=owner,
    )
    assert chat.body["messages"][-1] == {"role": "assistant", "content": "Well,"}
    assert chat.body["max_tokens"] == 8
    assert chat.body.get("continue_final_message", False) is (owner == VLLM)
    plain = generate_call(request("Once", resume=(0,), resume_text=" upon"), owner=owner)
    assert plain.body["prompt"] == "Once upon"


def test_a_turn_that_has_begun_goes_on():
    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well,"}]
    asked = request(messages=begun, continue_final_message=True)
    assert generate_call(asked, owner="").body["messages"] == begun
    assert generate_call(asked, owner=VLLM).body["continue_final_message"] is True
    resumed = attrs.evolve(asked, resume=(0,), resume_text=" so")
    assert generate_call(resumed, owner="").body["messages"][-1]["content"] == "Well, so"


def test_ids_without_their_text_are_refused():
    with pytest.raises(RequestRefused, match="from a text"):
        generate_call(request("Once", resume=(5, 6)), owner="")


def test_texts_to_embed():
    assert embed_call(Embed(id=1, texts=("a", "b"), model="m")).body["input"] == ["a", "b"]


def test_text_reason_and_usage_are_read():
    text, pieces, reader = text_of(
        delta(role="assistant"),
        delta(content="Hel"),
        delta(content="lo"),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
        {
            "choices": [],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
        },
    )
    assert (text, len(pieces), reader.finish_reason) == ("Hello", 2, "length")
    assert (reader.prompt_tokens, reader.completion_tokens, reader.cached_tokens) == (9, 2, 4)


def test_plain_completions_are_read_with_their_logprobs():
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-0.5, 0.1], "top_logprobs": [{"a": -0.5, "c": -1.0}, None]}
    text, pieces, _ = text_of({"choices": [{"text": "ab", "logprobs": logprobs}]})
    assert text == "ab"
    assert [piece.logprobs.logprob for piece in pieces] == [-0.5, 0.0]
    assert [other.piece for other in pieces[0].logprobs.top] == [b"a", b"c"]


def test_reasoning_is_written_as_models_write_it():
    text, _, _ = text_of(delta(reasoning_content="hm"), delta(reasoning_content="m"), delta(content="Yes"))
    assert text == "<think>\nhmm\n</think>\n\nYes"


@pytest.mark.parametrize("calls", [1, 2])
def test_calls_are_written_so_that_a_client_reads_them(calls):
    chunks = []
    for index in range(calls):
        start = {"index": index, "id": f"c{index}", "function": {"name": "weather", "arguments": ""}}
        chunks.append(delta(tool_calls=[start]))
        chunks += [
            delta(tool_calls=[{"index": index, "function": {"arguments": part}}]) for part in ('{"town"', ': "Bonn"}')
        ]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    text, _, reader = text_of(*chunks)
    calls_read = CallReader(FORMATS[CALL_FORMAT])
    calls_read.feed(text)
    calls_read.finish()
    assert [(call.name, json.loads(call.arguments)) for call in calls_read.calls] == [
        ("weather", {"town": "Bonn"})
    ] * calls
    assert reader.finish_reason == "stop"


def required(*chunks):
    reader = ChunkReader(must_call=True)
    return "".join(piece.text for chunk in chunks for piece in reader.read(chunk)), reader


STOP = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


def test_words_are_held_back_where_a_call_is_required():
    call = delta(tool_calls=[{"index": 0, "function": {"name": "weather", "arguments": "{}"}}])
    text, reader = required(delta(reasoning_content="hm"), delta(content="I call:"), call, STOP)
    assert text == '<think>\nhm<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    assert not reader.ignored_choice
    text, reader = required(delta(content="<tool_"), delta(content="call>{"), delta(content="}"), STOP)
    assert text == "<tool_call>{}"
    assert not reader.ignored_choice


@pytest.mark.parametrize("said", [["Sun", "ny"], []])
def test_a_server_that_ignores_that_a_call_is_required(said):
    text, reader = required(*(delta(content=word) for word in said), STOP)
    assert text == ""
    assert reader.ignored_choice


def test_thoughts_that_were_cut_off_ignore_nothing():
    cut = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    assert not required(delta(reasoning_content="hm"), cut)[1].ignored_choice


@pytest.mark.parametrize(
    "chunk",
    [
        None,
        [],
        {"choices": None},
        {"choices": [None]},
        {"choices": [{"delta": []}]},
        {"choices": [{"delta": {"content": 5, "tool_calls": [None, {"function": 1}]}}]},
        {"choices": [{"delta": {}, "logprobs": {"content": [{"token": 1}]}, "finish_reason": 7}], "usage": 3},
        {"choices": [{"text": "", "logprobs": {"content": [{"token": "a", "logprob": "b", "bytes": [300]}]}}]},
    ],
)
def test_what_is_not_understood_is_left_out(chunk):
    assert list(ChunkReader().read(chunk)) in ([], [Piece("")])


@pytest.mark.parametrize(
    ("status", "body", "retry", "code"),
    [
        (429, '{"error": {"message": "slow down"}}', "3", "busy"),
        (503, "loading", None, "busy"),
        (404, '{"error": "no model x"}', None, "no_such_model"),
        (400, '{"error": {"message": "bad top_k"}}', None, "bad_request"),
        (400, '{"message": "exceeds the context"}', None, "too_long"),
        (500, "<html>", None, "internal"),
        (200, "\ud800", None, "internal"),
    ],
)
def test_what_its_errors_mean(status, body, retry, code):
    failed = refusal_of(Generate(id=3, prompt="x"), status, body.encode(errors="surrogatepass"), retry)
    assert (failed.id, failed.code) == (3, code)
    assert failed.message
    if code == "busy":
        assert failed.retry_after == float(retry or 1)


def test_a_form_is_asked_for_as_the_server_takes_it_or_refused():
    schema = {"type": "integer"}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    prompt = request("A number:", json_schema=schema)
    chat = request(messages=[{"role": "user", "content": "A number."}], json_schema=schema)
    for owner in (VLLM, LLAMANET):
        assert generate_call(prompt, owner=owner).body["response_format"] == form
    body = generate_call(prompt, owner=LLAMA_SERVER).body
    assert (body["json_schema"], "response_format" in body) == (schema, False)
    for owner in ("", "library", LLAMA_CPP_PYTHON):
        assert generate_call(chat, owner=owner).body["response_format"] == form
        with pytest.raises(RequestRefused, match="no form"):
            generate_call(prompt, owner=owner)


def test_a_server_that_answers_instead_of_going_on_is_not_asked_to():
    asked = request(messages=[{"role": "user", "content": "hi"}], resume=(0,), resume_text="We")
    with pytest.raises(RequestRefused, match="cannot go on"):
        generate_call(asked, owner=LLAMA_CPP_PYTHON)
