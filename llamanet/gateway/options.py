"""From a body of OpenAI's API to what the swarm is asked. Pure.

Rules:
- What cannot be done is refused with the field's name, never left out in silence: 400 for what is wrong, 422 for what
  is right by OpenAI's API and not to be had here.
- `n` answers to one prompt differ by their seeds: the given one and those that follow it.
"""

from collections.abc import Iterator
from typing import Any

import attrs

from llamanet.gateway.bodies import ChatBody, CompletionBody, ContentPart, GenerationBody
from llamanet.gateway.openai import INVALID_REQUEST, ApiError
from llamanet.wire.inference import MAX_SEED

AUTO = "auto"
SAMPLING = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop",
    "response_format",
    "top_k",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "penalty_last_n",
    "min_tokens",
    "ignore_eos",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "grammar",
    "json_schema",
)
"""Fields that go to the swarm as they are."""
BOUNDLESS = {"top_k": 0, "penalty_last_n": 65_536, "dry_penalty_last_n": None}
"""What -1, which llama.cpp and vLLM take for "no bound", is to the swarm."""


@attrs.frozen(kw_only=True)
class Question:
    """What the swarm is asked: an answer to each of `prompts`, `n` times."""

    model: str | None
    """None takes any."""
    prompts: tuple[dict[str, Any], ...]
    """Each a `prompt`, or `messages`."""
    n: int
    seed: int | None
    options: dict[str, Any]

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are told."""
        return "logprobs" in self.options

    @property
    def choices(self) -> int:
        """All answers; number `i` is one to prompt `i // n`."""
        return len(self.prompts) * self.n

    def choice(self, index: int) -> dict[str, Any]:
        """The arguments of `swarm.stream` for one of them."""
        prompt, again = divmod(index, self.n)
        asked = {**self.options, "model": self.model, **self.prompts[prompt]}
        if self.seed is not None:
            asked["seed"] = (self.seed + again) % (MAX_SEED + 1)
        return asked


def chat_question(body: ChatBody) -> Question:
    """What a conversation asks. Raises `ApiError`."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", code="invalid_value", param="top_logprobs")
    if set(body.modalities or ()) - {"text"}:
        raise unsupported("The swarm's models answer in text", "modalities")
    if body.functions:
        raise unsupported("Functions are given as tools here", "functions")
    if body.function_call not in (None, "none", "auto"):
        raise unsupported("Which function is to be called is said by tool_choice here", "function_call")
    options = _sampling(body)
    if body.max_completion_tokens is not None:
        options["max_tokens"] = _limit(body.max_completion_tokens, "max_completion_tokens")
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    for name in ("tools", "tool_choice", "parallel_tool_calls"):
        if (value := getattr(body, name)) is not None:
            options[name] = value
    messages = list(_turns(body))
    goes_on = body.continue_final_message
    if goes_on is None:
        goes_on = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    options["continue_final_message"] = goes_on
    return _question(body, ({"messages": messages},), options)


def completion_question(body: CompletionBody) -> Question:
    """What texts to be continued ask. Raises `ApiError`."""
    prompts = texts(body.prompt, "prompt")
    if body.suffix:
        raise unsupported("Text before a suffix cannot be filled in here", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        if body.best_of < (body.n or 1):
            raise ApiError(400, f"best_of must be at least n, {body.n or 1}", code="invalid_value", param="best_of")
        raise unsupported("The best of several answers is not chosen here; ask for n of them, with logprobs", "best_of")
    if body.echo and body.logprobs is not None:
        raise unsupported("The log-probabilities of a prompt are not told; ask without echo", "echo")
    if len(prompts) * (body.n or 1) > 4 * 32:
        raise ApiError(400, "At most 128 answers to one request", code="invalid_value", param="n")
    options = _sampling(body)
    if body.logprobs is not None:
        options["logprobs"] = body.logprobs
    return _question(body, tuple({"prompt": prompt} for prompt in prompts), options)


def texts(given: str | list[str] | list[int] | list[list[int]], field: str) -> list[str]:
    """The texts in `field`. Raises `ApiError` if they are token ids."""
    if isinstance(given, str):
        return [given]
    found = [text for text in given if isinstance(text, str)]
    if len(found) != len(given) or not found:
        raise unsupported("Token ids are not taken, for each model has its own; send text", field)
    return found


def unsupported(message: str, field: str) -> ApiError:
    """A refusal of what OpenAI's API has, and the swarm has not."""
    return ApiError(422, message, INVALID_REQUEST, "unsupported_parameter", field)


def _question(body: GenerationBody, prompts: tuple[dict[str, Any], ...], options: dict[str, Any]) -> Question:
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", code="invalid_value", param="stream_options")
    return Question(
        model=asked_model(body.model),
        prompts=prompts,
        n=body.n or 1,
        seed=body.seed,
        options=options,
    )


def asked_model(name: str | None) -> str | None:
    """The model's name; None for any."""
    return None if name in (None, "", AUTO) else name


def _sampling(body: GenerationBody) -> dict[str, Any]:
    options = {name: value for name in SAMPLING if (value := getattr(body, name)) is not None}
    if body.repeat_last_n is not None:
        options["penalty_last_n"] = body.repeat_last_n
    options |= {name: value for name, value in BOUNDLESS.items() if options.get(name) == -1}
    if body.max_tokens is not None:
        options["max_tokens"] = _limit(body.max_tokens, "max_tokens")
    return options


def _limit(tokens: int, field: str) -> int | None:
    if tokens == 0:
        raise ApiError(400, f"{field} must be at least 1; -1 sets no limit", code="invalid_value", param=field)
    return None if tokens < 0 else tokens


def _turns(body: ChatBody) -> Iterator[dict[str, Any]]:
    for number, message in enumerate(body.messages):
        turn: dict[str, Any] = {
            # Only OpenAI's own models tell a developer from a system.
            "role": "system" if message.role == "developer" else message.role,
            "content": "",
        }
        if isinstance(message.content, str):
            turn["content"] = message.content
        elif message.content is not None:
            parts = enumerate(message.content)
            turn["content"] = "\n".join(_text(part, f"messages[{number}].content[{place}]") for place, part in parts)
        elif not message.tool_calls and message.role != "assistant":
            raise ApiError(400, "A message without content", code="invalid_value", param=f"messages[{number}].content")
        for name in ("tool_calls", "tool_call_id"):  # No template of a chat knows speakers by their names.
            if (value := getattr(message, name)) is not None:
                turn[name] = value
        yield turn


def _text(part: ContentPart, field: str) -> str:
    if part.type == "text" and part.text is not None:
        return part.text
    if part.type == "refusal" and part.refusal is not None:
        return part.refusal
    if part.type in ("text", "refusal"):
        raise ApiError(400, f"{field} has no {part.type}", code="invalid_value", param=field)
    raise unsupported(f"The swarm's models read text only, and no {part.type[:64]}", field)
