"""What is answered, as pydantic models: for `/openapi.json` only; the answers are made where they arise."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An error, in OpenAI's form."""

    error: ErrorObject


class Model(BaseModel):
    """A model that some node serves."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    nodes: int = Field(description="That serve it.")
    digests: list[str] = Field(description="SHA-256 of the files by this name.")
    n_ctx: int = Field(description="Tokens a slot; the largest.")
    slots: int
    running: int
    waiting: int


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """The gateway lives."""

    status: Literal["ok"]


class Ready(BaseModel):
    """Requests will be answered."""

    status: Literal["ready"]
    models: int = Field(description="How many are served.")


class Unready(BaseModel):
    """Requests would not be answered."""

    status: Literal["unavailable"]
    reason: str


class PromptTokensDetails(BaseModel):
    """More about the prompt's tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens, counted once however many nodes answered."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Answer(BaseModel):
    """What answers of generated text have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None = Field(description="The beginning of the model file's SHA-256.")


class ChatLogprobs(BaseModel):
    """Log-probabilities, a token each."""

    content: list[dict[str, Any]]
    refusal: None


class ChatMessage(BaseModel):
    """A turn of the assistant."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[dict[str, Any]] = Field([], description="Absent if there are none.")


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Answer):
    """A whole answer to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """A piece of one answer."""

    index: int
    delta: dict[str, Any]
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatCompletionChunk(Answer):
    """The data of one event."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatDelta]
    usage: Usage | None = Field(None, description="With `stream_options.include_usage`; null but in the last chunk.")


class CompletionLogprobs(BaseModel):
    """Log-probabilities, in parallel lists."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text, or a piece of it."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Answer):
    """A whole answer, or, streamed, the data of one event."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Embedding(BaseModel):
    """A vector of length 1."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="base64: 32-bit floating point, little-endian.")


class EmbeddingUsage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the texts' order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
