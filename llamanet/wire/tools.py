"""Functions that a model may call: what a client and a node say of them, and how calls are written in a model's text.

A node tells with `Accepted.tool_format` how calls are written in the answer that follows, and holds the model to it by
a grammar; the client reads them out of the text. So the text stays what the token ids make it, on whatever node.
"""

import attrs

from llamanet.wire.codec import optional, text, wire_field

MAX_TOOLS = 128
MAX_CALLS = 128
"""In one turn."""
MAX_TOOL_NAME = 128
MAX_ARGUMENTS_CHARS = 2_000_000
MAX_SCHEMA_CHARS = 65_536

name_decoder = text(MAX_TOOL_NAME, least=1)


@attrs.frozen(kw_only=True)
class Tool:
    """A function that may be called."""

    name: str = wire_field(name_decoder)
    description: str = wire_field(text(MAX_SCHEMA_CHARS), default="")
    parameters: str | None = wire_field(optional(text(MAX_SCHEMA_CHARS, least=1)), default=None)
    """The JSON schema of the object that holds its arguments, as JSON; None: it has none."""


@attrs.frozen(kw_only=True)
class ToolCall:
    """A call that a model made in an earlier turn, or makes now."""

    id: str = wire_field(text(256, least=1))
    """Chosen by the client; the turn with the result names it."""
    name: str = wire_field(name_decoder)
    arguments: str = wire_field(text(MAX_ARGUMENTS_CHARS))
    """A JSON object, as JSON; what a model was cut off in may be a part of one."""


@attrs.frozen(kw_only=True)
class CallFormat:
    """How calls are written: `marker`, `begin`, the calls with `between` after each but the last, `end`.

    A call is `{"name": "...", "arguments": {...}}`. Where a text here has white space, there may be none, or more.
    """

    marker: str
    begin: str
    between: str
    end: str
    arguments: str = "arguments"
    """The key of the arguments."""
    bare: bool = False
    """Calls are the whole answer, and may come without the marker; else there may be other text before them."""


FORMATS = {
    "hermes": CallFormat(
        marker="<tool_call>", begin="\n", between="\n</tool_call>\n<tool_call>\n", end="\n</tool_call>"
    ),
    "mistral": CallFormat(marker="[TOOL_CALLS]", begin=" [", between=", ", end="]"),
    "llama3": CallFormat(
        marker="<|python_tag|>", begin="", between="; ", end="", arguments="parameters", bare=True
    ),
}  # fmt: skip
"""By the name that `Accepted.tool_format` has.

Sources: the chat templates of Hermes 2 Pro and Qwen 2.5, of Mistral Nemo, and of Llama 3.1.
"""
CALL = '{"name":'
"""The beginning of each call."""
