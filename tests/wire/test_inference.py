"""The websocket's messages: the same in both encodings, bounded, and strict about names."""

import json

import pytest
import wire_strategies as strategies
from hypothesis import given
from hypothesis import strategies as st

from llamanet.errors import BadMessage
from llamanet.wire import inference
from llamanet.wire.inference import (
    MAX_MESSAGE_BYTES,
    decode_client_message_untrusted,
    decode_node_message_untrusted,
    encode_message,
    request_id_of_untrusted,
)
from llamanet.wire.plain import pack_msgpack, unpack_msgpack_untrusted

ID = ([0, 2**53 - 1], [-1, 2**53, 1.0, "1", None, True])
COUNT = ([0, 2**53], [-1, 2**53 + 1, 1.0, None])
NUMBER = ([0, 1e9], [-0.1, 1.1e9, "1", None])
DIGEST = (["0" * 64, "aF" * 32], ["0" * 63, "0" * 65, "g" * 64, 1])
IDS = ([[], [0, 2**31 - 1]], [[-1], [2**31], [True], [1.0], ["1"], None, {}])
USAGE = {"prompt_tokens": 1, "completion_tokens": 2}
MODEL = {
    "name": "m", "digest": "0" * 64, "n_ctx": 1,
    "slots": 1, "running": 1, "waiting": 1, "tokens_per_second": 1, "ttft_s": 1,
}  # fmt: skip
CHANCE = {"token": 1, "piece": "20", "logprob": -0.5}
CLIENT = {
    "generate": {"id": 1, "prompt": "Hi"},
    "embed": {"id": 1, "texts": ["Hi"]},
    "cancel": {"id": 1},
    "status": {"id": 1},
}
NODE = {
    "accepted": {"id": 1, "node_id": "n", "prompt_tokens": 1},
    "tokens": {"id": 1, "text": "a", "token_ids": [1]},
    "embeddings": {"id": 1, "node_id": "n", "vectors": ["0000803f"], "prompt_tokens": 1},
    "finished": {"id": 1, "reason": "stop", "usage": USAGE},
    "failed": {"code": "busy", "message": "full"},
    "status": {"id": 1, "node_id": "n", "version": "1", "draining": False, "models": [MODEL]},
}
BOUNDS = [
    (CLIENT, "generate", "id", *ID),
    (CLIENT, "generate", "model", [None, "é" * 96], ["x" * 97, 1]),
    (CLIENT, "generate", "prompt", ["", "x" * 2_000_000], ["x" * 2_000_001, 1]),
    (CLIENT, "generate", "resume", *IDS),
    (CLIENT, "generate", "digest", *DIGEST),
    (CLIENT, "generate", "sampling.temperature", [0, 10], [-0.1, 10.1, None, "1", True]),
    (CLIENT, "generate", "sampling.top_k", [0, 1_000_000], [-1, 1_000_001, 1.0]),
    *[(CLIENT, "generate", f"sampling.{name}", [0, 1], [-0.1, 1.1]) for name in ("top_p", "min_p", "typical_p")],
    (CLIENT, "generate", "sampling.repeat_penalty", [0.01, 10], [0, 10.1]),
    (CLIENT, "generate", "sampling.presence_penalty", [-10, 10], [-10.1, 10.1]),
    (CLIENT, "generate", "sampling.frequency_penalty", [-10, 10], [-10.1, 10.1]),
    (CLIENT, "generate", "sampling.penalty_last_n", [0, 65_536], [-1, 65_537]),
    (CLIENT, "generate", "sampling.seed", [None, 0, 2**63 - 1], [-1, 2**63, 1.0]),
    (CLIENT, "generate", "sampling.max_tokens", [None, 1, 1_000_000], [0, 1_000_001]),
    (CLIENT, "generate", "sampling.stop", [[], ["x" * 256] * 16], [["x"] * 17, [""], ["x" * 257], "x"]),
    (CLIENT, "generate", "sampling.min_tokens", [0, 1_000_000], [-1, 1_000_001, None]),
    (CLIENT, "generate", "sampling.ignore_eos", [True, False], [1, None]),
    (CLIENT, "generate", "sampling.logit_bias", [[], [[0, -100]] * 1_024], [[[0, 0]] * 1_025, {"0": 1}, [[1]], None]),
    (
        CLIENT,
        "generate",
        "sampling.logit_bias",
        [[[2**31 - 1, 100]]],
        [[[-1, 0]], [[0, 100.1]], [[2**31, 0]], [[1, 1, 1]]],
    ),
    (CLIENT, "generate", "sampling.dry_multiplier", [0, 100], [-0.1, 100.1]),
    (CLIENT, "generate", "sampling.dry_base", [1, 100], [0.9, 100.1]),
    (CLIENT, "generate", "sampling.dry_allowed_length", [0, 65_536], [-1, 65_537]),
    (CLIENT, "generate", "sampling.dry_penalty_last_n", [None, 0, 65_536], [-1, 65_537]),
    (CLIENT, "generate", "sampling.dry_sequence_breakers", [[], ["x" * 64] * 16], [["x"] * 17, [""], ["x" * 65]]),
    (CLIENT, "generate", "sampling.logprobs", [None, 0, 20], [-1, 21, True]),
    *[
        (CLIENT, "generate", f"sampling.{name}", [None, "x" * 65_536], ["", "x" * 65_537, {}])
        for name in ("grammar", "json_schema")
    ],
    (CLIENT, "generate", "sampling.tempreture", [], [1]),
    (CLIENT, "generate", "extra", [], [1]),
    (CLIENT, "embed", "id", *ID),
    (CLIENT, "embed", "texts", [["x" * 1000] * 32, [""]], [[], ["x"] * 33, ["x" * 2_000_001], "x", None, [1]]),
    (CLIENT, "embed", "model", [None, "é" * 96], ["x" * 97, 1]),
    (CLIENT, "embed", "digest", *DIGEST),
    (CLIENT, "embed", "sampling", [], [{}]),
    (NODE, "embeddings", "id", *ID),
    (NODE, "embeddings", "node_id", ["x" * 64], ["x" * 65]),
    (
        NODE,
        "embeddings",
        "vectors",
        [[], ["aF" * 65_536] * 2, ["00"] * 32],
        [["00"] * 33, ["aF" * 65_537], ["0"], None],
    ),
    (NODE, "embeddings", "prompt_tokens", *COUNT),
    (CLIENT, "cancel", "id", *ID),
    (CLIENT, "status", "id", *ID),
    (NODE, "accepted", "id", *ID),
    (NODE, "accepted", "node_id", ["", "x" * 64], ["x" * 65, None]),
    (NODE, "accepted", "prompt_tokens", *COUNT),
    (NODE, "accepted", "cached_tokens", *COUNT),
    (NODE, "tokens", "id", *ID),
    (NODE, "tokens", "text", ["", "é🦙"], [None, 1]),
    (NODE, "tokens", "token_ids", *IDS),
    (NODE, "tokens", "logprobs", [[], [CHANCE | {"top": [CHANCE] * 20}]], [None, [CHANCE | {"top": [CHANCE] * 21}]]),
    (NODE, "tokens", "logprobs.0.token", [0, 2**31 - 1], [-1, 2**31]),
    (NODE, "tokens", "logprobs.0.piece", ["", "aF" * 1_024], ["a", "gg", "aF" * 1_025, "a a ", None]),
    (NODE, "tokens", "logprobs.0.logprob", [0, -1e6], [0.1, -1.1e6, None]),
    (NODE, "finished", "id", *ID),
    (NODE, "finished", "reason", ["stop", "length", "context"], ["cancelled", "", None]),
    *[(NODE, "finished", f"usage.{name}", *COUNT) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")],
    *[(NODE, "finished", f"timings.{name}", *NUMBER) for name in ("queue_s", "prefill_s", "decode_s")],
    (NODE, "failed", "code", ["", "x" * 32], ["x" * 33, None]),
    (NODE, "failed", "message", ["x" * 4_000], ["x" * 4_001]),
    (NODE, "failed", "id", [None, *ID[0]], [-1, 2**53]),
    (NODE, "failed", "field", [None, "x" * 200], ["x" * 201]),
    (NODE, "failed", "limit", [None, "x" * 2_000], ["x" * 2_001]),
    (NODE, "failed", "retry_after", [None, 0, 1e6], [-0.1, 1.1e6]),
    (NODE, "status", "id", *ID),
    (NODE, "status", "node_id", ["x" * 64], ["x" * 65]),
    (NODE, "status", "version", ["x" * 64], ["x" * 65]),
    (NODE, "status", "draining", [True, False], [1, None]),
    (NODE, "status", "models", [[], [MODEL] * 256], [[MODEL] * 257, None, [1]]),
    (NODE, "status", "models.0.name", ["x" * 96], ["x" * 97, None]),
    (NODE, "status", "models.0.digest", *DIGEST),
    (NODE, "status", "models.0.n_ctx", *COUNT),
    *[(NODE, "status", f"models.0.{n}", [0, 2**31], [-1, 2**31 + 1]) for n in ("slots", "running", "waiting")],
    *[(NODE, "status", f"models.0.{n}", *NUMBER) for n in ("tokens_per_second", "ttft_s", "queue_s", "gap_s")],
    *[(NODE, "status", f"models.0.{n}", *NUMBER) for n in ("prefill_tokens_per_second", "first_s", "batch_tokens")],
    *[
        (NODE, "status", f"models.0.{n}_tokens", *COUNT)
        for n in ("prompt", "cached", "completion", "memory", "embedded")
    ],
]


def decoder_of(messages):
    return decode_client_message_untrusted if messages is CLIENT else decode_node_message_untrusted


def with_value(plain: dict, path: str, value) -> dict:
    plain = json.loads(json.dumps(plain))
    place = plain
    *outer, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in outer:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    place[last] = value
    return plain


@pytest.mark.parametrize(("messages", "name", "path", "inside", "outside"), BOUNDS)
def test_bounds(messages, name, path, inside, outside):
    decode = decoder_of(messages)
    plain = {"type": name, **messages[name]}
    if path.startswith("usage"):
        plain["usage"] = USAGE
    if path.startswith("logprobs."):
        plain["logprobs"] = [CHANCE]
    shown = path.replace(".0.", "[0].")
    for value in inside:
        changed = with_value(plain, path, value)
        assert decode(pack_msgpack(changed)) == decode(json.dumps(changed))
    for value in outside:
        changed = with_value(plain, path, value)
        for data in (pack_msgpack(changed), json.dumps(changed)):
            with pytest.raises(BadMessage) as caught:
                decode(data)
            assert caught.value.field.startswith(shown.removesuffix(".tempreture"))
            assert len(str(caught.value).encode()) < 600


@given(strategies.client_messages, st.booleans())
def test_client_messages_come_back(message, as_json):
    assert decode_client_message_untrusted(encode_message(message, as_json=as_json)) == message


@given(strategies.node_messages, st.booleans())
def test_node_messages_come_back(message, as_json):
    assert decode_node_message_untrusted(encode_message(message, as_json=as_json)) == message


@given(strategies.client_messages | strategies.node_messages)
def test_both_encodings_carry_the_same_map(message):
    text = encode_message(message, as_json=True)
    assert isinstance(text, str)
    assert json.loads(text) == unpack_msgpack_untrusted(encode_message(message))


@pytest.mark.parametrize(("messages", "name"), [(m, n) for m in (CLIENT, NODE) for n in m])
def test_required_fields(messages, name):
    plain = {"type": name, **messages[name]}
    assert decoder_of(messages)(json.dumps(plain))
    for field in messages[name]:
        with pytest.raises(BadMessage):
            decoder_of(messages)(json.dumps({key: value for key, value in plain.items() if key != field}))


@pytest.mark.parametrize(
    "fields", [{}, {"messages": []}, {"prompt": "", "messages": [{"role": "user", "content": ""}]}]
)
def test_exactly_one_of_prompt_and_messages(fields):
    with pytest.raises(BadMessage) as caught:
        decode_client_message_untrusted(json.dumps({"type": "generate", "id": 1, **fields}))
    assert caught.value.field == "prompt or messages"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "One, two,"},
        {"messages": [{"role": "user", "content": "One, two,"}]},
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1", "name": "f", "arguments": ""}]}]},
    ],
)
def test_only_a_turn_of_the_assistant_goes_on(fields):
    with pytest.raises(BadMessage) as caught:
        decode_client_message_untrusted(
            json.dumps({"type": "generate", "id": 1, "continue_final_message": True, **fields})
        )
    assert caught.value.field == "continue_final_message"


def test_a_turn_is_named_by_its_place():
    chat = [{"role": "user", "content": "a"}, {"role": "", "content": "b"}]
    with pytest.raises(BadMessage) as caught:
        decode_client_message_untrusted(json.dumps({"type": "generate", "id": 1, "messages": chat}))
    assert (caught.value.field, caught.value.limit) == ("messages[1].role", "text of 1 to 64 characters")


@pytest.mark.parametrize(
    "plain", [None, 1, [], "x", {}, {"type": None}, {"type": 1}, {"type": "tokens"}, {"type": ["generate"]}]
)
def test_what_is_no_message(plain):
    for data in (json.dumps(plain), pack_msgpack(plain)):
        with pytest.raises(BadMessage):
            decode_client_message_untrusted(data)


def test_each_side_refuses_the_others_messages():
    with pytest.raises(BadMessage, match="generate, embed, cancel, status"):
        decode_client_message_untrusted(encode_message(inference.Tokens(id=1, text="", token_ids=())))
    with pytest.raises(BadMessage, match="accepted"):
        decode_node_message_untrusted(encode_message(inference.Cancel(id=1)))


def test_messages_are_bounded_in_size():
    for data in (bytes(MAX_MESSAGE_BYTES + 1), " " * (MAX_MESSAGE_BYTES + 1)):
        with pytest.raises(BadMessage, match=str(MAX_MESSAGE_BYTES)):
            decode_client_message_untrusted(data)
        assert request_id_of_untrusted(data) is None


@pytest.mark.parametrize(
    ("data", "request_id"),
    [
        ('{"type":"generate","id":7,"nonsense":1}', 7),
        (pack_msgpack({"id": 7}), 7),
        ('{"id":"7"}', None),
        ('{"id":-1}', None),
        ("[7]", None),
        ("{", None),
        (b"", None),
        (b"\x07", None),
    ],
)
def test_the_id_of_a_message_that_did_not_decode(data, request_id):
    assert request_id_of_untrusted(data) == request_id
