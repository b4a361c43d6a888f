"""Our requests as an OpenAI-compatible server takes them, and its answers as ours. Pure: nothing here touches a socket.

Rules:
- Settings that a request leaves at our defaults are left to the server, but for temperature and top_p: so servers that
  know only OpenAI's names are not told of llama.cpp's, and those that know more get them.
- What the server cannot be asked is refused, and not left out in silence.
- Each piece of the text counts as one token, with its place in the answer as its id: the server tells of no ids. So a
  stream is resumed from its text, which the client sends along (`Generate.resume_text`). Tokens that the server counts
  beyond that come at the end, without text.
- Calls of tools are written into the text as `FORMATS["hermes"]` has them, whatever the server's model does.
- Where a call is required, words are held back until there is one, for some servers ignore `tool_choice`.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import attrs

from llamanet.errors import RequestRefused
from llamanet.wire.inference import (
    MAX_ALTERNATIVES,
    MAX_PIECE_BYTES,
    ChatMessage,
    Embed,
    Failed,
    Generate,
    Sampling,
    TokenChance,
    TokenLogprobs,
)
from llamanet.wire.tools import FORMATS

CALL_FORMAT = "hermes"
VLLM, LLAMA_SERVER, LLAMANET, LLAMA_CPP_PYTHON = "vllm", "llamacpp", "llamanet", "me"
"""Whom models belong to, as these servers tell in their lists (`owned_by`)."""
_PLAIN = ("presence_penalty", "frequency_penalty", "min_tokens", "ignore_eos")
_LLAMA_CPP = (
    "top_k",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
)
_DEFAULTS = Sampling()
_REASONS = {"length": "length"}
"""Others are ends that the model, or its server, chose: "stop"."""
MAX_MESSAGE_CHARS = 1_000
MAX_LINE = 4 * 2**20
"""Bytes of an event of the server's; one with the chances of many tokens is the longest."""


@attrs.frozen
class Call:
    """A request to the server: what is appended to its base URL, and the JSON body."""

    path: str
    body: dict[str, Any]


def generate_call(request: Generate, *, owner: str) -> Call:
    """The streaming request for `request`; `owner` is whom the server's models belong to, as it tells (`VLLM`, ...).

    Raises `RequestRefused` for what no such server can be asked.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    for name in (*_PLAIN, *_LLAMA_CPP):
        if (value := getattr(sampling, name)) != getattr(_DEFAULTS, name):
            body[name] = value
    if sampling.max_tokens is not None:
        body["max_tokens"] = max(1, sampling.max_tokens - len(request.resume))
    if sampling.seed is not None:
        body["seed"] = sampling.seed % 2**31  # servers differ in what they can hold
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.grammar is not None:
        raise RequestRefused(
            "this model is on a server that takes no GBNF grammar", "sampling.grammar", "a JSON schema, or another node"
        )
    if sampling.json_schema is not None:
        body |= _form(json.loads(sampling.json_schema), owner, chat=request.prompt is None)
    if request.resume and request.resume_text is None:
        raise RequestRefused("this model is on a server that goes on from a text only", "resume_text")
    said = request.resume_text or ""
    if request.prompt is not None:
        if sampling.logprobs is not None:
            body["logprobs"] = sampling.logprobs
        return Call("/completions", body | {"prompt": request.prompt + said})
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    turns = request.messages
    if request.continue_final_message:
        said, turns = turns[-1].content + said, turns[:-1]
    messages = [_message(message) for message in turns]
    if said:
        if request.tools:
            raise RequestRefused("this model is on a server that cannot go on with an answer that has tools", "tools")
        if owner == LLAMA_CPP_PYTHON:
            raise RequestRefused("this model is on a server that cannot go on with an answer", "messages", "a prompt")
        messages.append({"role": "assistant", "content": said})
        if owner == VLLM:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": json.loads(tool.parameters) if tool.parameters else {"type": "object"},
                },
            }
            for tool in request.tools
        ]
        body["tool_choice"] = request.tool_choice
        if request.tool_name is not None:
            body["tool_choice"] = {"type": "function", "function": {"name": request.tool_name}}
        if request.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = request.parallel_tool_calls
    return Call("/chat/completions", body | {"messages": messages})


def _form(schema: Any, owner: str, *, chat: bool) -> dict[str, Any]:
    """What makes the server answer by a JSON schema."""
    if chat or owner in (VLLM, LLAMANET):
        named = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if owner == LLAMA_SERVER:
        return {"json_schema": schema}
    # OpenAI's API knows no forms here, and servers leave out what they do not know.
    raise RequestRefused(
        "this model is on a server that takes no form for a prompt", "sampling.json_schema", "messages"
    )


def embed_call(request: Embed) -> Call:
    """The request for `request`."""
    return Call("/embeddings", {"model": request.model, "input": list(request.texts), "encoding_format": "float"})


def _message(message: ChatMessage) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def decode_json(data: bytes) -> Any:
    """The JSON in `data`, or None if it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


class LineTooLong(Exception):
    """The server's events are none."""


@attrs.define
class EventReader:
    """Cuts a body of server-sent events, as it comes in, into what the events hold.

    Only line feeds part lines: U+2028 and others that Python takes for the end of a line stand unescaped in JSON.
    """

    _rest: bytearray = attrs.field(factory=bytearray)

    def read(self, received: bytes) -> Iterator[bytes]:
        """What those events hold that are whole now. Raises `LineTooLong`."""
        self._rest += received
        if b"\n" in received:
            *lines, rest = self._rest.split(b"\n")
            self._rest = rest
            for line in lines:
                if line.startswith(b"data:") and (data := bytes(line[5:].strip())) != b"[DONE]":
                    yield data
        if len(self._rest) > MAX_LINE:
            raise LineTooLong(f"an event of it is too long ({MAX_LINE} bytes at most)")


@attrs.frozen
class Piece:
    """A piece of the answer, which counts as one token."""

    text: str
    logprobs: TokenLogprobs | None = None


@attrs.define
class ChunkReader:
    """Reads the chunks of one stream; what they tell of its end is there after the last one."""

    must_call: bool = False
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    completion_tokens: int | None = None
    _thinks: bool = False
    _calls: int = 0
    _held: list[Piece] = attrs.field(factory=list)
    """Words that are held back, for a call is required and none has come."""

    @property
    def ignored_choice(self) -> bool:
        """Whether a call was required, and the server, which has ended, answered in words or not at all."""
        return self.must_call and (bool(self._held) or self.finish_reason == "stop")

    def read(self, chunk: Any) -> Iterator[Piece]:
        """The pieces of the text in a chunk, a JSON object of the server's. What is not understood is left out."""
        if not isinstance(chunk, dict):
            return
        self._read_usage(chunk.get("usage"))
        for choice in _list(chunk.get("choices")):
            # Only one answer was asked for.
            if not isinstance(choice, dict) or choice.get("index"):
                continue
            delta = told if isinstance(told := choice.get("delta"), dict) else {}
            text = choice.get("text") or delta.get("content") or ""
            yield from self._hold(list(self._read_text(_whole(text), delta, choice.get("logprobs"))))
            for call in _list(delta.get("tool_calls")):
                yield from self._read_call(call)
            if isinstance(reason := choice.get("finish_reason"), str):
                self.finish_reason = _REASONS.get(reason, "stop")
                # What was cut off stays cut off.
                if self._calls and self.finish_reason == "stop":
                    yield Piece("}" + FORMATS[CALL_FORMAT].end)
                    self._calls = 0

    def _read_text(self, text: str, delta: dict[str, Any], logprobs: Any) -> Iterator[Piece]:
        # Reasoning that a server tells apart is what the model writes between these marks.
        if thought := _whole(delta.get("reasoning_content") or delta.get("reasoning")):
            yield Piece(thought if self._thinks else f"<think>\n{thought}")
            self._thinks = True
        if text:
            text = f"\n</think>\n\n{text}" if self._thinks else text
            self._thinks = False
            chances = list(_logprobs(logprobs))
            if len(chances) > 1:
                # As many tokens as the server tells of, with the whole text at the last one.
                yield from (Piece("", chance) for chance in chances[:-1])
            yield Piece(text, chances[-1] if chances else None)

    def _hold(self, pieces: list[Piece]) -> Iterator[Piece]:
        if not self.must_call or self._thinks:
            yield from pieces
            return
        self._held += pieces
        # Servers that do not read their model's calls pass them on as text.
        if FORMATS[CALL_FORMAT].marker in "".join(piece.text for piece in self._held):
            self.must_call = False
            yield from self._held

    def _read_call(self, call: Any) -> Iterator[Piece]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            return
        form = FORMATS[CALL_FORMAT]
        if isinstance(name := function.get("name"), str) and name:
            before = form.marker + form.begin if not self._calls else "}" + form.between
            self._calls += 1
            self.must_call = False
            yield Piece(f'{before}{{"name": {json.dumps(name)}, "arguments": ')
        if arguments := _whole(function.get("arguments")):
            yield Piece(arguments)

    def _read_usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
        self.completion_tokens = _count(usage.get("completion_tokens"), self.completion_tokens)
        if isinstance(details := usage.get("prompt_tokens_details"), dict):
            self.cached_tokens = _count(details.get("cached_tokens"), None) or 0


def refusal_of(request: Generate | Embed, status: int, body: bytes, retry_after: str | None) -> Failed:
    """What the server's error means: `busy` and errors of its own let clients ask elsewhere, mistakes do not."""
    message = " ".join(_error_message(body).split()) or f"the server behind this node answered with status {status}"
    message = message[:MAX_MESSAGE_CHARS].encode(errors="backslashreplace").decode()
    if status in (429, 503):
        try:
            seconds = float(retry_after or 1.0)
        except ValueError:  # a date
            seconds = 1.0
        seconds = min(max(seconds, 0.1), 60.0) if math.isfinite(seconds) else 1.0
        return Failed(id=request.id, code="busy", message=message, retry_after=seconds)
    if status == 404:
        return Failed(id=request.id, code="no_such_model", message=message, field="model")
    if status in (400, 413, 422):
        code = "too_long" if "context" in message or "too long" in message else "bad_request"
        return Failed(id=request.id, code=code, message=message)
    return Failed(id=request.id, code="internal", message=message)


def _error_message(body: bytes) -> str:
    error = decode_json(body)
    error = error.get("error", error) if isinstance(error, dict) else error
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def _logprobs(logprobs: Any) -> Iterator[TokenLogprobs]:
    """Those of a chunk, in the form of chats or in that of plain completions. The ids are unknown: 0."""
    if not isinstance(logprobs, dict):
        return
    for entry in _list(logprobs.get("content")):
        if chance := _chance_of(entry):
            yield _drawn(chance, [_chance_of(other) for other in _list(entry.get("top_logprobs"))])
    tops = _list(logprobs.get("top_logprobs"))
    for place, (token, logprob) in enumerate(
        zip(_list(logprobs.get("tokens")), _list(logprobs.get("token_logprobs")), strict=False)
    ):
        if chance := _chance(token, logprob):
            others = tops[place] if place < len(tops) and isinstance(tops[place], dict) else {}
            yield _drawn(chance, [_chance(other, chance_of) for other, chance_of in others.items()])


def _drawn(chance: TokenChance, top: list[TokenChance | None]) -> TokenLogprobs:
    known = tuple(other for other in top if other is not None)[:MAX_ALTERNATIVES]
    return TokenLogprobs(token=0, piece=chance.piece, logprob=chance.logprob, top=known)


def _chance_of(entry: Any) -> TokenChance | None:
    return _chance(entry.get("token"), entry.get("logprob"), entry.get("bytes")) if isinstance(entry, dict) else None


def _chance(token: Any, logprob: Any, piece: Any = None) -> TokenChance | None:
    if type(logprob) not in (int, float) or not isinstance(token, str):
        return None
    try:
        data = bytes(piece) if isinstance(piece, list) else token.encode(errors="replace")
    except (ValueError, TypeError):
        data = token.encode(errors="replace")
    return TokenChance(token=0, piece=data[:MAX_PIECE_BYTES], logprob=min(0.0, max(-1e6, float(logprob))))


def _whole(text: Any) -> str:
    """`text`, if it is one, with U+FFFD where it holds half of a character of UTF-16, which JSON can."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(text, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(value: Any, otherwise: int | None) -> int | None:
    return value if type(value) is int and value >= 0 else otherwise
