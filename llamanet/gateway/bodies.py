"""The bodies of requests, as pydantic models: what is checked, and what `/openapi.json` tells, are the same.

Rules:
- The fields are OpenAI's, and beside them those that the engine has more, by llama.cpp's names.
- Types are not converted: "1" is no number. But 1.0 is a whole one, as in JSON Schema (2020-12, section 4.2.3); clients
  whose every number is a float write it so. null is the same as a field that is not there.
- A field that nobody here knows is let through, and ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from llamanet.wire.inference import (
    MAX_ALTERNATIVES,
    MAX_BIASES,
    MAX_BREAKERS,
    MAX_CHAT_MESSAGES,
    MAX_GRAMMAR_CHARS,
    MAX_SEED,
    MAX_STOPS,
    MAX_TOKENS,
)
from llamanet.wire.state import MAX_MODEL_NAME

MAX_CHOICES = 32
"""Answers to one request."""
MAX_INPUTS = 2_048
"""Texts of one request for embeddings, as OpenAI's."""
MAX_DIMENSIONS = 16_384


def _exact(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_exact)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, hide_input_in_errors=True)

    model: str | None = Field(
        None,
        max_length=MAX_MODEL_NAME,
        description='The name of a model that the swarm serves; "auto" takes any.',
    )
    user: str | None = Field(None, description="Ignored.")


class StreamOptions(BaseModel):
    """What a stream tells beside the answer."""

    model_config = ConfigDict(strict=True, extra="allow")

    include_usage: bool | None = Field(None, description="End with a chunk that counts the tokens.")


class GenerationBody(Body):
    """How an answer is drawn; what is not given is as llama.cpp has it."""

    max_tokens: Whole | None = Field(
        None, ge=-1, le=MAX_TOKENS, description="-1 or nothing: until the model ends, or the context is full."
    )
    n: Whole | None = Field(
        None, ge=1, le=MAX_CHOICES, description="So many answers; with a seed, from successive ones."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Whole | None = Field(None, ge=-(2**63), le=MAX_SEED)
    temperature: float | None = Field(None, ge=0, le=10, description="0 draws the likeliest token always.")
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-10, le=10)
    frequency_penalty: float | None = Field(None, ge=-10, le=10)
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern="^[0-9]{1,10}$")], Annotated[float, Field(ge=-100, le=100)]] | None,
        Field(max_length=MAX_BIASES, description="By token id."),
    ] = None
    response_format: dict[str, Any] | None = Field(
        None,
        description='As OpenAI\'s: {"type": "text"}, "json_object" or "json_schema"; and {"type": "grammar", "grammar"'
        ": GBNF}.",
    )
    top_k: Whole | None = Field(None, ge=-1, le=1_000_000, description="0 or -1: off.")
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, ge=0.01, le=10)
    penalty_last_n: Whole | None = Field(None, ge=-1, le=65_536, description="-1: all tokens.")
    repeat_last_n: Whole | None = Field(None, ge=-1, le=65_536, description="llama.cpp's name for `penalty_last_n`.")
    min_tokens: Whole | None = Field(None, ge=0, le=MAX_TOKENS)
    ignore_eos: bool | None = None
    dry_multiplier: float | None = Field(None, ge=0, le=100)
    dry_base: float | None = Field(None, ge=1, le=100)
    dry_allowed_length: Whole | None = Field(None, ge=0, le=65_536)
    dry_penalty_last_n: Whole | None = Field(None, ge=-1, le=65_536, description="-1: all tokens.")
    dry_sequence_breakers: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=MAX_BREAKERS)] | None
    ) = None
    grammar: str | None = Field(None, min_length=1, max_length=MAX_GRAMMAR_CHARS, description="GBNF.")
    json_schema: dict[str, Any] | None = Field(None, description="A schema that the answer must follow.")


class ContentPart(BaseModel):
    """A piece of a message's content; the swarm's models read text only."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str
    text: str | None = None
    refusal: str | None = None


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str = Field(min_length=1, max_length=64)
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatBody(GenerationBody):
    """A conversation to be answered."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_CHAT_MESSAGES)
    max_completion_tokens: Whole | None = Field(None, ge=-1, le=MAX_TOKENS, description="Goes before `max_tokens`.")
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=MAX_ALTERNATIVES, description="Needs `logprobs`.")
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    continue_final_message: bool | None = Field(
        None,
        description="Whether to go on with the last message, a turn of the assistant, instead of answering it. As with"
        " llama-server that is done unless it is false; as with vLLM only what is new is told.",
    )
    functions: list[dict[str, Any]] | None = Field(None, description="Refused, unless it is empty: give `tools`.")
    function_call: str | dict[str, Any] | None = Field(None, description="Refused but for none: give `tool_choice`.")
    modalities: list[str] | None = Field(None, description='["text"] only.')


class CompletionBody(GenerationBody):
    """A text to be continued, or several."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)] | list[int] | list[list[int]] = (
        Field(description="Texts; token ids are refused, for each model has its own.")
    )
    logprobs: Whole | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
    echo: bool | None = Field(None, description="Tell the prompt before its continuation; not with `logprobs`.")
    best_of: Whole | None = Field(None, ge=1, le=MAX_CHOICES, description="No more than `n`.")
    suffix: str | None = Field(None, description="Refused, unless it is empty.")


class EmbeddingBody(Body):
    """Texts to be embedded."""

    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[list[int]], Field(min_length=1)]
    ) = Field(description="Texts; token ids are refused, for each model has its own.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Whole | None = Field(None, ge=1, le=MAX_DIMENSIONS, description="Only those that the model has.")
