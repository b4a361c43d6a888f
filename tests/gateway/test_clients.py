"""Clients that people have, unmocked, against a real node with the real model."""

import asyncio
import json
import re
import urllib.request

import openai
import pytest
from pydantic import BaseModel

from llamanet.testing.processes import start_swarm

HELLO = [{"role": "user", "content": "Name a colour."}]
SERVES = re.compile(r"The gateway serves (http://\S+)")

pytestmark = [
    # Third parties' own affairs.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]


@pytest.fixture(scope="module")
def url(model):
    with start_swarm(1, "--model-path", str(model), "--n-threads", "1", "--http-port", "0") as [node]:
        entry = node.wait_for(lambda entry: SERVES.match(entry["message"]) is not None, 20)
        yield SERVES.match(entry["message"])[1]


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_answers_and_streams_the_same(client):
    asked = {"model": "auto", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 12)
    streamed = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(streamed)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert last.usage.completion_tokens == 12


def test_openai_completes_with_log_probabilities(client):
    got = client.completions.create(model="auto", prompt="The sky is", max_tokens=6, temperature=0, logprobs=3)
    [choice] = got.choices
    assert "".join(choice.logprobs.tokens) == choice.text
    assert all(value <= 0 for value in choice.logprobs.token_logprobs)
    assert [max(top, key=top.get) for top in choice.logprobs.top_logprobs] == choice.logprobs.tokens


def test_openai_gathers_several_streamed_answers(client):
    for seed in range(3):
        asked = {"messages": HELLO, "n": 3, "seed": seed, "extra_body": {"grammar": 'root ::= "yes" | "no"'}}
        with client.chat.completions.stream(model="auto", **asked) as stream:
            choices = stream.get_final_completion().choices
        assert [choice.index for choice in choices] == [0, 1, 2]
        assert {choice.message.content for choice in choices} <= {"yes", "no"}


def test_openai_goes_on_with_a_turn_that_has_begun(client):
    asked = {"model": "auto", "temperature": 0}
    whole = client.chat.completions.create(**asked, messages=HELLO, max_tokens=12).choices[0].message.content
    begun = {"role": "assistant", "content": whole[: len(whole) // 2].rpartition(" ")[0]}
    rest = client.chat.completions.create(**asked, messages=[*HELLO, begun], max_tokens=12).choices[0].message.content
    assert (begun["content"] + rest).startswith(whole)


def test_openai_parses_into_a_model(client):
    class Colour(BaseModel):
        name: str
        is_warm: bool

    got = client.beta.chat.completions.parse(
        model="auto", messages=HELLO, response_format=Colour, temperature=0, max_tokens=200, seed=1
    )
    assert isinstance(got.choices[0].message.parsed, Colour)


def test_openai_stops_and_biases(client):
    got = client.completions.create(
        model="auto", prompt="1, 2, 3, 4,", stop=" 7", max_tokens=40, temperature=0, extra_body={"top_k": 5}
    )
    assert got.choices[0].finish_reason == "stop"
    assert "7" not in got.choices[0].text
    grammar = client.completions.create(
        model="auto", prompt="Yes or no?", max_tokens=8, extra_body={"grammar": 'root ::= "yes" | "no"'}
    )
    assert grammar.choices[0].text in ("yes", "no")


def test_openai_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody-has-this", messages=HELLO)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="auto", messages=HELLO, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="auto", prompt="word " * 3_000, stream=True)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.UnprocessableEntityError):
        client.completions.create(model="auto", prompt=[1, 2, 3])


def test_openai_lists_models(client):
    [model] = client.models.list().data
    assert model.id == client.models.retrieve(model.id).id == "SmolLM2-135M-Instruct.Q4_1"
    assert (model.nodes, len(model.digests)) == (1, 1)


def test_openai_asynchronously(url):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(model="auto", messages=HELLO, max_tokens=8, stream=True)
            return [chunk async for chunk in stream]

    assert asyncio.run(ask())[-1].choices[0].finish_reason == "length"


def test_langchain(url):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="auto", temperature=0, max_tokens=10)
    whole = chat.invoke("Name a colour.").content
    assert whole
    assert "".join(chunk.content for chunk in chat.stream("Name a colour.")) == whole


def test_litellm(url, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    asked = {"model": "openai/auto", "messages": HELLO, "max_tokens": 10, "temperature": 0}
    asked |= {"api_base": f"{url}/v1", "api_key": "none"}
    whole = litellm.completion(**asked).choices[0].message.content
    assert whole
    streamed = litellm.completion(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole


def test_the_document_names_every_endpoint(url):
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        document = json.load(answer)
    assert set(document["paths"]) >= {"/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"}
    assert set(document["paths"]["/v1/completions"]["post"]["responses"]) >= {"200", "400", "404", "422", "429", "503"}
