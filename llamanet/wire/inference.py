"""The messages between a client and a node's websocket endpoint.

One connection carries many requests; every message but `Failed` about the connection itself names its request by `id`,
which the client chooses. The same maps travel as msgpack (`llamanet.v1.msgpack`) or as JSON (`llamanet.v1.json`).

    client -> node:  Generate, Embed, Cancel, Status
    node -> client:  Accepted, then Tokens..., then Finished; or Failed at any point; Embeddings; StatusReply

A generation is a function of the token ids so far: text is made from them alone, and with a seed the draw at each
position depends on (seed, position) alone. So `Generate.resume` (the ids that were already delivered by another node)
continues a stream exactly where it was.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs

from llamanet.errors import BadMessage
from llamanet.wire.codec import (
    boolean,
    encoded_list,
    encoded_optional,
    from_map_untrusted,
    hex_bytes,
    integer,
    list_of,
    list_of_integers,
    map_of,
    number,
    one_of,
    optional,
    pair_of,
    text,
    to_map,
    up_to_hex_bytes,
    wire_field,
)
from llamanet.wire.plain import Plain, pack_msgpack, unpack_json_untrusted, unpack_msgpack_untrusted
from llamanet.wire.state import MAX_MODEL_NAME, ModelState
from llamanet.wire.tools import MAX_CALLS, MAX_TOOLS, Tool, ToolCall, name_decoder

SUBPROTOCOL_MSGPACK = "llamanet.v1.msgpack"
SUBPROTOCOL_JSON = "llamanet.v1.json"
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_PROMPT_CHARS = 2_000_000
MAX_CHAT_MESSAGES = 2_000
MAX_TOKENS = 1_000_000
MAX_TOKEN_ID = 2**31 - 1
MAX_STOPS = 16
MAX_SEED = 2**63 - 1
MAX_BIASES = 1_024
MAX_BREAKERS = 16
MAX_ALTERNATIVES = 20
"""Beside each token, at most so many of those that it was drawn from."""
MAX_GRAMMAR_CHARS = 65_536
MAX_PIECE_BYTES = 1_024
MAX_TEXTS = 32
"""Embedded by one request: so many vectors of 8,192 numbers fit into a message."""
MAX_VECTOR_BYTES = 4 * 16_384
CAPABILITY_EMBEDDINGS = "embeddings"
"""In `ServiceFacts.capabilities` of a node that answers `Embed`."""
CAPABILITY_TEXT_RESUME = "resume-text"
"""Of a node whose token ids are only places in the answer: it goes on from `Generate.resume_text`."""
CAPABILITY_JSON = "json"
"""Of a node that holds answers to JSON schemas, and calls of tools to theirs."""
CAPABILITY_GRAMMAR = "grammar"
"""Likewise of one that follows GBNF grammars."""
CAPABILITY_LIVE_STATE = "live-state"
"""Of a node that knows `Generate.live_state`."""

_request_id = integer(0, 2**53 - 1)
_token_ids = list_of_integers(0, MAX_TOKEN_ID, MAX_TOKENS)


@attrs.frozen(kw_only=True)
class ChatMessage:
    """One turn of a conversation, as chat templates know it."""

    role: str = wire_field(text(64, least=1))
    content: str = wire_field(text(MAX_PROMPT_CHARS))
    tool_calls: tuple[ToolCall, ...] = wire_field(
        list_of(map_of(ToolCall), MAX_CALLS), encoded_list(to_map), default=()
    )
    """What the model called in this turn."""
    tool_call_id: str | None = wire_field(optional(text(256, least=1)), default=None)
    """The call that this turn holds the result of."""


@attrs.frozen(kw_only=True)
class Sampling:
    """How the next token is drawn. The names and the defaults are llama.cpp's, the ranges are what it accepts.

    `temperature` 0 is greedy. `seed` None lets the client draw one, so that a resumed stream stays the same stream.
    A penalty, DRY's too, looks at the prompt and at what was generated.
    """

    temperature: float = wire_field(number(0, 10), default=0.8)
    top_k: int = wire_field(integer(0, 1_000_000), default=40)
    top_p: float = wire_field(number(0, 1), default=0.95)
    min_p: float = wire_field(number(0, 1), default=0.05)
    typical_p: float = wire_field(number(0, 1), default=1.0)
    repeat_penalty: float = wire_field(number(0.01, 10), default=1.0)
    presence_penalty: float = wire_field(number(-10, 10), default=0.0)
    frequency_penalty: float = wire_field(number(-10, 10), default=0.0)
    penalty_last_n: int = wire_field(integer(0, 65_536), default=64)
    seed: int | None = wire_field(optional(integer(0, MAX_SEED)), default=None)
    max_tokens: int | None = wire_field(optional(integer(1, MAX_TOKENS)), default=None)
    """None: until the model ends, or the context is full."""
    stop: tuple[str, ...] = wire_field(list_of(text(256, least=1), MAX_STOPS), list, default=())
    min_tokens: int = wire_field(integer(0, MAX_TOKENS), default=0)
    """The model cannot end before it has generated so many tokens; a stop string can."""
    ignore_eos: bool = wire_field(boolean, default=False)
    """The model cannot end at all."""
    logit_bias: tuple[tuple[int, float], ...] = wire_field(
        list_of(pair_of(integer(0, MAX_TOKEN_ID), number(-100, 100)), MAX_BIASES), encoded_list(list), default=()
    )
    """Added to the logits of these token ids, before everything else."""
    dry_multiplier: float = wire_field(number(0, 100), default=0.0)
    """How strongly the token that would prolong a repetition is penalised; 0: not at all."""
    dry_base: float = wire_field(number(1, 100), default=1.75)
    dry_allowed_length: int = wire_field(integer(0, 65_536), default=2)
    dry_penalty_last_n: int | None = wire_field(optional(integer(0, 65_536)), default=None)
    """How far back repetitions are looked for; None: everywhere."""
    dry_sequence_breakers: tuple[str, ...] = wire_field(
        list_of(text(64, least=1), MAX_BREAKERS), list, default=("\n", ":", '"', "*")
    )
    """A repetition does not reach past these."""
    logprobs: int | None = wire_field(optional(integer(0, MAX_ALTERNATIVES)), default=None)
    """Tell each token's log-probability, and that of so many of the likeliest tokens in its place; None: do not."""
    grammar: str | None = wire_field(optional(text(MAX_GRAMMAR_CHARS, least=1)), default=None)
    """GBNF that the text must follow, from its rule `root` on."""
    json_schema: str | None = wire_field(optional(text(MAX_GRAMMAR_CHARS, least=1)), default=None)
    """A JSON schema, as JSON, that the text must follow. Not together with `grammar`."""


@attrs.frozen(kw_only=True)
class Usage:
    """Tokens counted once for a request, however many nodes answered it."""

    prompt_tokens: int = wire_field(integer(0, 2**53))
    completion_tokens: int = wire_field(integer(0, 2**53))
    cached_tokens: int = wire_field(integer(0, 2**53), default=0)
    """How many of the prompt's tokens the node found in its cache."""


@attrs.frozen(kw_only=True)
class Timings:
    """Where a node spent a request's time, in seconds."""

    queue_s: float = wire_field(number(0, 1e9), default=0.0)
    prefill_s: float = wire_field(number(0, 1e9), default=0.0)
    decode_s: float = wire_field(number(0, 1e9), default=0.0)


GOES_ON = "only after a turn of the assistant without calls"


def can_go_on(messages: Sequence[ChatMessage]) -> bool:
    """Whether the last of `messages` is a turn of the assistant that more can be written to."""
    return bool(messages) and messages[-1].role == "assistant" and not messages[-1].tool_calls


@attrs.frozen(kw_only=True)
class Generate:
    """Continue `prompt`, or answer `messages` (exactly one of the two).

    `model` None takes the node's first. `digest`, if given, must be the SHA-256 of the node's model file.
    `resume` holds the token ids of this same generation that were delivered already; they count as completion tokens.
    """

    id: int = wire_field(_request_id)
    model: str | None = wire_field(optional(text(MAX_MODEL_NAME)), default=None)
    prompt: str | None = wire_field(optional(text(MAX_PROMPT_CHARS)), default=None)
    messages: tuple[ChatMessage, ...] = wire_field(
        list_of(map_of(ChatMessage), MAX_CHAT_MESSAGES), encoded_list(to_map), default=()
    )
    resume: tuple[int, ...] = wire_field(_token_ids, list, default=())
    resume_text: str | None = wire_field(optional(text(MAX_PROMPT_CHARS)), default=None)
    """The text of `resume`, for nodes with `CAPABILITY_TEXT_RESUME`; others do not look at it."""
    digest: bytes | None = wire_field(optional(hex_bytes(32)), encoded_optional(bytes.hex), default=None)
    sampling: Sampling = wire_field(map_of(Sampling), to_map, factory=Sampling)
    tools: tuple[Tool, ...] = wire_field(list_of(map_of(Tool), MAX_TOOLS), encoded_list(to_map), default=())
    """Functions that the answer may call; only with `messages`."""
    tool_choice: str = wire_field(one_of("auto", "required"), default="auto")
    """Whether the model may answer in words too, or must call."""
    tool_name: str | None = wire_field(optional(name_decoder), default=None)
    """The one function that must be called, once."""
    parallel_tool_calls: bool | None = wire_field(optional(boolean), default=None)
    """Whether one answer may have several calls; None: if the model's template knows of tools."""
    continue_final_message: bool = wire_field(boolean, default=False)
    """Go on with the last of `messages`, a turn of the assistant, instead of answering it; only what is new is told."""
    live_state: bool = wire_field(boolean, default=False)
    """Tell the model's state with `Accepted` and `Finished`; only to nodes with `CAPABILITY_LIVE_STATE`."""


@attrs.frozen(kw_only=True)
class Embed:
    """Turn each of `texts` into a vector; answered by `Embeddings`. `model` and `digest` as in `Generate`."""

    id: int = wire_field(_request_id)
    texts: tuple[str, ...] = wire_field(list_of(text(MAX_PROMPT_CHARS), MAX_TEXTS), list)
    model: str | None = wire_field(optional(text(MAX_MODEL_NAME)), default=None)
    digest: bytes | None = wire_field(optional(hex_bytes(32)), encoded_optional(bytes.hex), default=None)


@attrs.frozen(kw_only=True)
class Cancel:
    """Stop request `id` within one engine step. Answered by nothing; a `Finished` may already be on its way."""

    id: int = wire_field(_request_id)


@attrs.frozen(kw_only=True)
class Status:
    """Ask for the node's state; answered by `StatusReply`."""

    id: int = wire_field(_request_id)


@attrs.frozen(kw_only=True)
class Accepted:
    """The node took the request and knows its prompt's length."""

    id: int = wire_field(_request_id)
    node_id: str = wire_field(text(64))
    prompt_tokens: int = wire_field(integer(0, 2**53))
    cached_tokens: int = wire_field(integer(0, 2**53), default=0)
    tool_format: str | None = wire_field(optional(text(32)), default=None)
    """How calls are written in the text, one of `llamanet.wire.tools.FORMATS`; None if no tools are asked for."""
    state: ModelState | None = wire_field(optional(map_of(ModelState)), encoded_optional(to_map), default=None)
    """The model's, this request included; None if it was not asked for."""


@attrs.frozen(kw_only=True)
class TokenChance:
    """How likely a token was in its place, before anything in `Sampling` changed that."""

    token: int = wire_field(integer(0, MAX_TOKEN_ID))
    piece: bytes = wire_field(up_to_hex_bytes(MAX_PIECE_BYTES), bytes.hex)
    """What it adds to the text; maybe a part of a character, and nothing for a special token."""
    logprob: float = wire_field(number(-1e6, 0))
    """Natural logarithm."""


@attrs.frozen(kw_only=True)
class TokenLogprobs(TokenChance):
    """A token that was drawn, and the likeliest ones in its place, the likeliest first."""

    top: tuple[TokenChance, ...] = wire_field(
        list_of(map_of(TokenChance), MAX_ALTERNATIVES), encoded_list(to_map), default=()
    )


@attrs.frozen(kw_only=True)
class Tokens:
    """The next tokens and the text that they complete.

    `text` may lag behind `token_ids` (a character half done, a stop string half matched); it is always what the ids
    delivered so far make certain. More than one id comes when the reader lags.
    """

    id: int = wire_field(_request_id)
    text: str = wire_field(text(MAX_PROMPT_CHARS))
    token_ids: tuple[int, ...] = wire_field(_token_ids, list)
    logprobs: tuple[TokenLogprobs, ...] = wire_field(
        list_of(map_of(TokenLogprobs), MAX_TOKENS), encoded_list(to_map), default=()
    )
    """One for each id, if the request asks for them."""


@attrs.frozen(kw_only=True)
class Embeddings:
    """The vectors of an `Embed`, one a text, in its order, each of length 1.

    A vector travels as its numbers in 32-bit floating point, little-endian, one after the other.
    """

    id: int = wire_field(_request_id)
    node_id: str = wire_field(text(64))
    vectors: tuple[bytes, ...] = wire_field(
        list_of(up_to_hex_bytes(MAX_VECTOR_BYTES), MAX_TEXTS), encoded_list(bytes.hex)
    )
    prompt_tokens: int = wire_field(integer(0, 2**53))


@attrs.frozen(kw_only=True)
class Finished:
    """The end: `reason` is "stop" (the model's end, or a stop string), "length" (`max_tokens`) or "context".

    "context" says that this node's context is full: a node with a larger one could go on.
    """

    id: int = wire_field(_request_id)
    reason: str = wire_field(one_of("stop", "length", "context"))
    usage: Usage = wire_field(map_of(Usage), to_map)
    timings: Timings = wire_field(map_of(Timings), to_map, factory=Timings)
    state: ModelState | None = wire_field(optional(map_of(ModelState)), encoded_optional(to_map), default=None)
    """The model's, this request left out; None if it was not asked for."""


@attrs.frozen(kw_only=True)
class Failed:
    """The request (or, without `id`, the connection) is over.

    `code`: "busy" (with `retry_after`, seconds), "draining", "no_such_model", "wrong_digest", "bad_request" and
    "too_long" (with `field` and `limit`), "slow_reader", "internal".
    """

    code: str = wire_field(text(32))
    message: str = wire_field(text(4_000))
    id: int | None = wire_field(optional(_request_id), default=None)
    field: str | None = wire_field(optional(text(200)), default=None)
    limit: str | None = wire_field(optional(text(2_000)), default=None)
    retry_after: float | None = wire_field(optional(number(0, 1e6)), default=None)


@attrs.frozen(kw_only=True)
class ModelStatus:
    """One model of a node, as `Status` tells it.

    Rates and times are recent averages, in tokens a second and seconds; `ttft_s` is an estimate for a short prompt now.
    Tokens are counted since the model was loaded, but for `memory_tokens`.
    """

    name: str = wire_field(text(MAX_MODEL_NAME))
    digest: bytes = wire_field(hex_bytes(32), bytes.hex)
    n_ctx: int = wire_field(integer(0, 2**53))
    slots: int = wire_field(integer(0, 2**31))
    running: int = wire_field(integer(0, 2**31))
    waiting: int = wire_field(integer(0, 2**31))
    tokens_per_second: float = wire_field(number(0, 1e9))
    ttft_s: float = wire_field(number(0, 1e9))
    prefill_tokens_per_second: float = wire_field(number(0, 1e9), default=0.0)
    queue_s: float = wire_field(number(0, 1e9), default=0.0)
    """From a request's arrival until it has a slot."""
    first_s: float = wire_field(number(0, 1e9), default=0.0)
    """From a request's arrival to its first token, as measured."""
    gap_s: float = wire_field(number(0, 1e9), default=0.0)
    """Between two tokens of a stream."""
    batch_tokens: float = wire_field(number(0, 1e9), default=0.0)
    """Computed in one step."""
    prompt_tokens: int = wire_field(integer(0, 2**53), default=0)
    cached_tokens: int = wire_field(integer(0, 2**53), default=0)
    """Those of `prompt_tokens` that were not computed anew."""
    completion_tokens: int = wire_field(integer(0, 2**53), default=0)
    memory_tokens: int = wire_field(integer(0, 2**53), default=0)
    """Remembered now, in live and idle slots; at most `slots` times `n_ctx`."""
    embedded_tokens: int = wire_field(integer(0, 2**53), default=0)
    """Of texts that were embedded."""


@attrs.frozen(kw_only=True)
class StatusReply:
    """A node's state."""

    id: int = wire_field(_request_id)
    node_id: str = wire_field(text(64))
    version: str = wire_field(text(64))
    draining: bool = wire_field(boolean)
    models: tuple[ModelStatus, ...] = wire_field(list_of(map_of(ModelStatus), 256), encoded_list(to_map))


ClientMessage: TypeAlias = Generate | Embed | Cancel | Status
NodeMessage: TypeAlias = Accepted | Tokens | Embeddings | Finished | Failed | StatusReply

CLIENT_MESSAGES: dict[str, type[Any]] = {"generate": Generate, "embed": Embed, "cancel": Cancel, "status": Status}
NODE_MESSAGES: dict[str, type[Any]] = {
    "accepted": Accepted,
    "tokens": Tokens,
    "embeddings": Embeddings,
    "finished": Finished,
    "failed": Failed,
    "status": StatusReply,
}
# Not one merged map, for "status" is a message in both directions.
_names = {cls: name for name, cls in (*CLIENT_MESSAGES.items(), *NODE_MESSAGES.items())}
_TYPE = frozenset({"type"})


def encode_message(message: ClientMessage | NodeMessage, *, as_json: bool = False) -> bytes | str:
    """One websocket message: bytes for the msgpack subprotocol, text for the JSON one."""
    plain = {"type": _names[type(message)], **to_map(message)}
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")) if as_json else pack_msgpack(plain)


def decode_client_message_untrusted(data: bytes | str) -> ClientMessage:
    """What a client sent, in either encoding. Raises `BadMessage`."""
    message: ClientMessage = _decode_untrusted(data, CLIENT_MESSAGES)
    if isinstance(message, Generate) and (message.prompt is None) == (not message.messages):
        raise BadMessage("give exactly one of the two", "prompt or messages")
    if isinstance(message, Generate) and message.tools and message.prompt is not None:
        raise BadMessage("a prompt takes none", "tools", limit="only with messages")
    if isinstance(message, Generate) and message.continue_final_message and not can_go_on(message.messages):
        raise BadMessage("there is nothing to go on with", "continue_final_message", limit=GOES_ON)
    if isinstance(message, Embed) and not message.texts:
        raise BadMessage("there is no text", "texts", limit=f"1 to {MAX_TEXTS} texts")
    return message


def decode_node_message_untrusted(data: bytes | str) -> NodeMessage:
    """What a node sent, in either encoding. Raises `BadMessage`."""
    message: NodeMessage = _decode_untrusted(data, NODE_MESSAGES)
    return message


def request_id_of_untrusted(data: bytes | str) -> int | None:
    """The id in a message that did not decode, so that its refusal can name it; None if there is none."""
    try:
        return _request_id(_unpack_untrusted(data).get("id"))
    except BadMessage:
        return None


def _decode_untrusted(data: bytes | str, classes: dict[str, type[Any]]) -> Any:
    plain = _unpack_untrusted(data)
    name = plain.get("type")
    if type(name) is not str or name not in classes:
        raise BadMessage("unknown message", "type", limit=", ".join(classes))
    return from_map_untrusted(classes[name], plain, ignoring=_TYPE)


def _unpack_untrusted(data: bytes | str) -> dict[str, Plain]:
    if len(data) > MAX_MESSAGE_BYTES:
        raise BadMessage(f"a message of {len(data)} bytes", limit=f"{MAX_MESSAGE_BYTES} bytes")
    plain = unpack_json_untrusted(data) if isinstance(data, str) else unpack_msgpack_untrusted(data)
    if type(plain) is not dict:
        raise BadMessage("not a map")
    return plain
