"""Messages to a prompt, through the chat template in the model's own metadata.

The template is code that came with a model file, so it runs in Jinja's immutable sandbox. The environment is the one
that template authors test against: transformers' `apply_chat_template`.
"""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llamanet.errors import RequestRefused, UserError
from llamanet.node.tool_prompt import (
    PLAIN,
    PROBE,
    RESULT,
    CallStyle,
    format_in,
    plain_turns,
    probe,
    template_tools,
    template_turns,
)
from llamanet.wire.inference import ChatMessage
from llamanet.wire.tools import Tool

MAX_TEMPLATE_BYTES = 1024 * 1024
RENDER_S = 5.0
"""Of a thread's time, to render one request; templates take milliseconds."""


class ChatTemplate:
    """A model's compiled chat template. `source` None means that the model has none."""

    def __init__(self, source: str | None, *, bos_text: str = "", eos_text: str = "") -> None:
        self._source = source
        self._special = {"bos_token": bos_text, "eos_token": eos_text}
        self._template: jinja2.Template | None = None

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        """The prompt for the answer to `messages`, which may call `tools`.

        Raises `RequestRefused` if there is no template, or the template refuses these messages.
        """
        if not tools and not any(message.tool_calls or message.tool_call_id for message in messages):
            return self._render(messages)
        if self.call_style.native:
            return self._render(messages, tools)
        return self._render(plain_turns(messages, tools, system=self._takes_system))

    @functools.cached_property
    def call_style(self) -> CallStyle:
        """What the template makes of calls, found out by rendering some. Raises `RequestRefused` if there is none."""
        for calls in (2, 1):
            try:
                written = format_in(self._render(probe(calls), [PROBE]), calls)
            except RequestRefused:
                if self._source is None:
                    raise
                continue
            if written is not None:
                return CallStyle(written, native=True, several=calls > 1)
        return CallStyle(PLAIN, native=False, several=True)

    @functools.cached_property
    def _takes_system(self) -> bool:
        messages = [ChatMessage(role="system", content=RESULT), ChatMessage(role="user", content="probe")]
        try:
            return RESULT in self._render(messages)
        except RequestRefused:
            return False

    def _render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        if self._source is None:
            raise RequestRefused(
                "this model has no chat template; send a prompt instead of messages, or have its node take one "
                "(--chat-template)",
                field="messages",
            )
        try:
            if self._template is None:
                self._template = _environment().from_string(self._source)
            with _limited(RENDER_S):
                return self._template.render(
                    messages=template_turns(messages),
                    tools=template_tools(tools) or None,
                    add_generation_prompt=True,
                    **self._special,
                )
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            # What a template does to unexpected messages is its author's choice: any of these can come out.
            raise RequestRefused(f"the model's chat template refuses: {error}", field="messages") from error


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `jinja2.TemplateError` in what runs inside once it has used `seconds` of its thread's time.

    A thread cannot be stopped from outside, so the interpreter's own hook looks at the clock: at each line of the
    template, and at each call. A single operation that takes long is not interrupted.
    """
    over = time.thread_time() + seconds

    def look(frame: FrameType, event: str, argument: object) -> Any:
        if time.thread_time() > over:
            raise jinja2.TemplateError(f"it was not done after {seconds:g} s")
        # Of all else, counting the calls is enough.
        return look if "template" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


def load_chat_template(path: Path) -> str:
    """The Jinja source in a file. Raises `UserError` in one line if it cannot be one."""
    try:
        with path.open("rb") as file:
            source = file.read(MAX_TEMPLATE_BYTES + 1)
        if len(source) > MAX_TEMPLATE_BYTES:
            raise UserError(f"the chat template {path} has more than {MAX_TEMPLATE_BYTES} bytes")
        text = source.decode()
        _environment().from_string(text)
    except OSError as error:
        raise UserError(f"cannot read the chat template {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the chat template {path} is not UTF-8 text") from error
    except (jinja2.TemplateError, RecursionError) as error:
        place = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UserError(f"the chat template {path} is not valid Jinja: {place}{error}") from error
    if not text.strip():
        raise UserError(f"the chat template {path} is empty")
    return text


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own `tojson` escapes for HTML, which no model has seen in training."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
