"""Calls of tools in the forms of OpenAI's API. Pure.

`tools`, `tool_choice`, `parallel_tool_calls` and `response_format` of a body, and its messages with `tool_calls` or
`tool_call_id`, go to `swarm.stream` as they are. What comes back in `Chunk.tool_calls` and `Reply.tool_calls` becomes
`delta.tool_calls` and `message.tool_calls` here; `Chunk.text` and `Reply.text` hold no calls any more, and
`finish_reason` says `tool_calls`.
"""

from collections.abc import Iterable
from typing import Any

from llamanet.client.tool_calls import ToolCallDelta
from llamanet.wire.tools import ToolCall


def call_deltas(deltas: Iterable[ToolCallDelta]) -> list[dict[str, Any]]:
    """Entries of `choices[].delta.tool_calls`."""
    entries: list[dict[str, Any]] = []
    for delta in deltas:
        entry: dict[str, Any] = {"index": delta.index, "function": {"arguments": delta.arguments}}
        if delta.id is not None:
            entry |= {"id": delta.id, "type": "function"}
            entry["function"]["name"] = delta.name
        entries.append(entry)
    return entries


def whole_calls(calls: Iterable[ToolCall]) -> list[dict[str, Any]]:
    """Entries of `choices[].message.tool_calls`."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
