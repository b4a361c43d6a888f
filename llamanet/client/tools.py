"""Tools and calls in the form that OpenAI's API gave them, as fields of a request. Pure.

A form is only taken apart here: its values are checked where all of a request's values are (`client/client.py`).
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from llamanet.errors import RequestRefused
from llamanet.wire.codec import to_map
from llamanet.wire.inference import ChatMessage
from llamanet.wire.plain import Plain

_TOOL_LIMIT = '{"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}} each'
_CALL_LIMIT = '{"id": "...", "type": "function", "function": {"name": "...", "arguments": "{...}"}} each'
_CHOICE_LIMIT = '"auto", "none", "required" or {"type": "function", "function": {"name": "..."}}'


def tool_fields(
    tools: Iterable[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None, parallel: bool | None
) -> dict[str, Plain]:
    """Fields of `Generate` for `tools`, `tool_choice` and `parallel_tool_calls`.

    None of them for the choice "none": what is not offered is not called. Raises `RequestRefused`.
    """
    offered = [_tool(tool) for tool in tools or ()]
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        raise RequestRefused(f"tool_choice {choice[:100]!r} is not known", "tool_choice", _CHOICE_LIMIT)
    if not offered:
        if choice in (None, "auto", "none"):
            return {}
        raise RequestRefused("tool_choice without tools=", "tool_choice", '"auto" or "none"')
    if choice == "none":
        return {}
    fields: dict[str, Plain] = {"tools": offered}
    if choice is not None:
        fields["tool_choice"] = choice if isinstance(choice, str) else "required"
        if isinstance(choice, Mapping):
            fields["tool_name"] = _chosen(choice, [tool["name"] for tool in offered])
    if parallel is not None:
        fields["parallel_tool_calls"] = parallel
    return fields


def turn_fields(turn: ChatMessage | Mapping[str, Any]) -> dict[str, Plain]:
    """Fields of `ChatMessage` for one turn of a conversation. Raises `RequestRefused`, `TypeError` or `ValueError`."""
    if isinstance(turn, ChatMessage):
        return to_map(turn)
    fields = dict(turn)
    if (calls := fields.pop("tool_calls", None)) is not None:
        if not isinstance(calls, list | tuple):
            raise RequestRefused(f"{repr(calls)[:100]} is no list of calls", "messages.tool_calls", _CALL_LIMIT)
        fields["tool_calls"] = [_call(call) for call in calls]
        if fields.get("content") is None:
            fields["content"] = ""
    if fields.get("role") == "tool":
        fields.pop("name", None)  # Of the function, which the call's id tells.
    return fields


def _tool(tool: Mapping[str, Any]) -> dict[str, Plain]:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping):
        raise RequestRefused(f"{repr(tool)[:100]} is no tool", "tools", _TOOL_LIMIT)
    fields: dict[str, Plain] = {"name": function.get("name")}
    if function.get("description") is not None:
        fields["description"] = function["description"]
    if function.get("parameters") is not None:
        try:
            fields["parameters"] = json.dumps(function["parameters"], ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestRefused(f"the parameters cannot be written as JSON: {error}", "tools") from error
    return fields


def _call(call: Any) -> dict[str, Plain]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise RequestRefused(f"{repr(call)[:100]} is no call", "messages.tool_calls", _CALL_LIMIT)
    return {"id": call.get("id"), "name": function.get("name"), "arguments": function.get("arguments")}


def _chosen(choice: Mapping[str, Any], names: list[Any]) -> str:
    function = choice.get("function") if choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise RequestRefused(f"tool_choice {repr(choice)[:100]} is not known", "tool_choice", _CHOICE_LIMIT)
    if name not in names:
        raise RequestRefused(f"there is no tool {name[:100]!r} to choose", "tool_choice", ", ".join(map(str, names)))
    return name
