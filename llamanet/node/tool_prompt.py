"""Tools, calls and their results in a prompt: for a template that knows them, and in plain turns for one that does not.

Pure. In plain turns a model is told of the tools in a system message, and results come from the user; the words and the
markers are those of Hermes 2 Pro, which many models were trained on.
"""

import json
import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import attrs

from llamanet.wire.inference import ChatMessage
from llamanet.wire.tools import FORMATS, CallFormat, Tool, ToolCall

PLAIN = "hermes"
"""The format of calls in plain turns."""
PROBE = Tool(
    name="probe_name",
    description="Probe description.",
    parameters='{"type": "object", "properties": {"probe_key": {"type": "string"}}}',
)
RESULT = "probe result"
_ID = re.compile(r"[a-zA-Z0-9]{9}")
"""What Mistral's templates take."""
_CALL_END = r'(,\s*"id"\s*:\s*"\w+"\s*)?\}'
_TOLD = """\
# Tools

You may call functions to answer the user. They are listed here as JSON, each with the JSON schema of its arguments:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as JSON between <tool_call> and </tool_call>:
<tool_call>
{{"name": "the function's name", "arguments": {{"the argument's name": "its value"}}}}
</tool_call>
What the function returns is told between <tool_response> and </tool_response>."""


@attrs.frozen
class CallStyle:
    """What a template makes of calls."""

    name: str
    """One of `FORMATS`."""
    native: bool
    """The template itself writes tools, calls and results; else they come to it in plain turns."""
    several: bool
    """It takes more than one call in a turn. Unasked, only a model with a `native` template makes them: others often go
    on calling until they have no tokens left."""

    @property
    def form(self) -> CallFormat:
        """How the model writes calls."""
        return FORMATS[self.name]


def probe(calls: int) -> list[ChatMessage]:
    """A conversation with so many calls of `PROBE` and their results."""
    made = tuple(
        ToolCall(id=f"probe000{number}", name=PROBE.name, arguments=f'{{"probe_key": "value {number}"}}')
        for number in range(calls)
    )
    results = [ChatMessage(role="tool", content=RESULT, tool_call_id=call.id) for call in made]
    return [
        ChatMessage(role="user", content="probe"),
        ChatMessage(role="assistant", content="", tool_calls=made),
        *results,
    ]


def format_in(text: str, calls: int) -> str | None:
    """The format that calls have in `text`, which a template made of `probe(calls)`; None if it is none we know."""
    if PROBE.description not in text or text.count(RESULT) < calls:
        return None
    for name, form in FORMATS.items():
        made = [_pattern(_written(form, call)[:-1]) + _CALL_END for call in probe(calls)[1].tool_calls]
        marker = "" if form.bare else form.marker
        if re.search(_pattern(marker + form.begin) + _pattern(form.between).join(made) + _pattern(form.end), text):
            return name
    return None


def template_turns(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as templates know them, those of transformers."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": _short(call.id),
                    "type": "function",
                    "function": {"name": call.name, "arguments": _arguments(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = _short(message.tool_call_id)
            if message.tool_call_id in names:
                turn["name"] = names[message.tool_call_id]
        turns.append(turn)
    return turns


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as templates know them; their parameters must be JSON."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": json.loads(tool.parameters or '{"type": "object", "properties": {}}'),
            },
        }
        for tool in tools
    ]


def plain_turns(messages: Sequence[ChatMessage], tools: Sequence[Tool], *, system: bool) -> list[ChatMessage]:
    """Messages of system, user and assistant only; without a role for the `system`, the user tells of the tools."""
    turns: list[ChatMessage] = []
    results = False
    for message in messages:
        role, content = message.role, message.content
        if message.tool_calls:
            form = FORMATS[PLAIN]
            calls = form.between.join(_written(form, call) for call in message.tool_calls)
            content = "\n".join(filter(None, [content, form.marker + form.begin + calls + form.end]))
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
            if results:
                content = f"{turns.pop().content}\n{content}"
        results = message.role == "tool"
        turns.append(ChatMessage(role=role, content=content))
    if not tools:
        return turns
    told = _TOLD.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in template_tools(tools)))
    role = "system" if system else "user"
    if turns and turns[0].role == role:
        first = f"{turns[0].content}\n\n{told}" if system else f"{told}\n\n{turns[0].content}"
        return [ChatMessage(role=role, content=first), *turns[1:]]
    return [ChatMessage(role=role, content=told), *turns]


def _written(form: CallFormat, call: ToolCall) -> str:
    arguments = json.dumps(_arguments(call.arguments), ensure_ascii=False)
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "{form.arguments}": {arguments}}}'


def _arguments(text: str) -> Any:
    """Arguments as templates want them; a model may have been cut off in them."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _pattern(text: str) -> str:
    """A regular expression for `text`, whatever white space a template writes in it, and around it."""
    parts = [re.escape(part) for part in re.split(r"\s+|(?<=[{}\[\],:])|(?=[{}\[\],:])", text) if part]
    return r"\s*".join(["", *parts, ""])


def _short(id: str) -> str:
    return id if _ID.fullmatch(id) else blake2b(id.encode(), digest_size=5).hexdigest()[:9]
