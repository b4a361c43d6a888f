"""What a caller may ask of the draw: how it becomes a request, what is refused and why, and what comes back."""

import json

import pytest

from llamanet.client.client import make_request
from llamanet.errors import RequestRefused
from llamanet.testing.backend import scripted_logprobs, scripted_text, scripted_tokens
from llamanet.testing.cluster import Cluster

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}
GBNF = 'root ::= "yes" | "no"'
COUNT = 8


def sampling_of(**options):
    return make_request("hello", None, None, options).sampling


def test_a_bias_may_be_a_mapping():
    pairs = ((5, -100.0), (7, 2.0))
    assert sampling_of(logit_bias={5: -100, "7": 2}).logit_bias == pairs
    assert sampling_of(logit_bias=[[5, -100], [7, 2]]).logit_bias == pairs


def test_breakers_may_be_a_tuple():
    assert sampling_of(dry_sequence_breakers=("x", "y")).dry_sequence_breakers == ("x", "y")


@pytest.mark.parametrize(
    ("form", "grammar", "schema"),
    [
        ({"type": "text"}, None, None),
        ({"type": "json_object"}, None, {"type": "object"}),
        ({"type": "json_object", "schema": SCHEMA}, None, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, None, SCHEMA),
        ({"type": "grammar", "grammar": GBNF}, GBNF, None),
    ],
)
def test_response_formats(form, grammar, schema):
    sampling = sampling_of(response_format=form)
    assert sampling.grammar == grammar
    assert (sampling.json_schema and json.loads(sampling.json_schema)) == schema


def test_a_schema_may_be_given_as_it_is():
    assert json.loads(sampling_of(json_schema=SCHEMA).json_schema) == SCHEMA


@pytest.mark.parametrize(
    ("options", "field", "limit"),
    [
        ({"response_format": "json"}, "response_format", "json_object"),
        ({"response_format": {"type": "yaml"}}, "response_format", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "grammar", "grammar": 1}}, "response_format", "grammar"),
        ({"response_format": {"type": "json_object"}, "grammar": GBNF}, "response_format", None),
        ({"json_schema": {"a": b""}}, "sampling.json_schema", None),
        ({"logit_bias": {"a": 1}}, "sampling.logit_bias[0]", "a whole number from 0 to 2147483647"),
        ({"logit_bias": {1: 101}}, "sampling.logit_bias[0]", "a number from -100 to 100"),
        ({"logit_bias": {-1: 1}}, "sampling.logit_bias[0]", "a whole number from 0 to 2147483647"),
        ({"logprobs": 21}, "sampling.logprobs", "a whole number from 0 to 20"),
        ({"min_tokens": -1}, "sampling.min_tokens", "a whole number from 0 to 1000000"),
        ({"ignore_eos": 1}, "sampling.ignore_eos", "true or false"),
        ({"dry_base": 0.5}, "sampling.dry_base", "a number from 1 to 100"),
        ({"dry_sequence_breakers": ["x"] * 17}, "sampling.dry_sequence_breakers", "a list of at most 16"),
        ({"grammar": ""}, "sampling.grammar", "text of 1 to 65536 characters"),
    ],
)
def test_what_no_node_would_take_is_refused_with_field_and_limit(options, field, limit):
    with pytest.raises(RequestRefused) as caught:
        sampling_of(**options)
    assert caught.value.field == field
    assert limit is None or limit in caught.value.limit


@pytest.fixture
async def cluster(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(2, step_time=0.02)
    return cluster


@pytest.mark.parametrize("at", range(1, COUNT))
@pytest.mark.parametrize("top", [0, 3])
async def test_log_probabilities_come_once_for_each_token_whatever_becomes_of_the_node(
    autojump_clock, cluster, at, top
):
    client = await cluster.start_client()
    chunks = []
    async with client.stream("hello", temperature=0, max_tokens=COUNT, logprobs=top) as stream:
        async for chunk in stream:
            chunks.append(chunk)
            if len(stream.token_ids) == at and not stream.hops:
                cluster.kill(stream.node_id)
    reply = stream.reply()
    assert len(reply.hops) == 1
    assert reply.logprobs == tuple(scripted_logprobs(token, top) for token in scripted_tokens("hello", COUNT))
    assert sum((chunk.logprobs for chunk in chunks), ()) == reply.logprobs
    assert reply.text == scripted_text(scripted_tokens("hello", COUNT))


async def test_without_being_asked_no_node_tells_them(autojump_clock, cluster):
    reply = await (await cluster.start_client()).generate("hello", temperature=0, max_tokens=3)
    assert reply.logprobs == ()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"grammar": "no rules here"}, "sampling.grammar"),
        ({"grammar": GBNF, "json_schema": "{}"}, "sampling.json_schema"),
        ({"grammar": GBNF, "min_tokens": 1}, "sampling.min_tokens"),
        ({"json_schema": "{}", "ignore_eos": True}, "sampling.ignore_eos"),
        ({"json_schema": '{"type": "nonsense"}'}, "sampling.json_schema"),
        ({"min_tokens": 5, "max_tokens": 4}, "sampling.min_tokens"),
    ],
)
async def test_what_a_node_refuses_comes_with_its_field(autojump_clock, cluster, options, field):
    with pytest.raises(RequestRefused) as caught:
        await (await cluster.start_client()).generate("hello", **options)
    assert caught.value.field == field
    assert str(caught.value)


async def test_the_end_can_be_put_off(autojump_clock, nursery):
    cluster = Cluster(nursery)
    await cluster.start_nodes(1, answer_tokens=3)
    client = await cluster.start_client()
    options = {"temperature": 0, "max_tokens": 9}
    assert (await client.generate("hello", **options)).tokens_generated == 4
    assert (await client.generate("hello", min_tokens=6, **options)).tokens_generated == 7
    assert (await client.generate("hello", ignore_eos=True, **options)).finish_reason == "length"
