"""Calls of functions, read out of a model's text as it comes. Pure.

Rules:
- What comes out does not depend on the pieces that the text comes in.
- A call's name comes at once, before its arguments, and these in pieces as they are written.
- What is no call is words, however much it looks like one; white space before a call is not.
- No more is held back than what may be the beginning of a call.
"""

import json
import re
import secrets
import string
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

import attrs

from llamanet.wire.tools import CALL, CallFormat, ToolCall

ID_CHARS = 9
"""Of a call's id, letters and digits: Mistral's templates take no others."""
LONGEST = 2_048
"""Characters between the arguments of two calls, or from the marker to the first; no match of a pattern has more."""

_SPACE = r"\s{0,20}"
_NAME = rf'\{{{_SPACE}"name"{_SPACE}:{_SPACE}("(?:[^"\\]|\\.){{1,1000}}"){_SPACE},{_SPACE}'


@attrs.frozen
class ToolCallDelta:
    """A piece of a call. The first one of each call has its id and its name."""

    index: int
    """The call's place among those of the answer, from 0."""
    arguments: str = ""
    """What follows in the JSON text of the arguments."""
    id: str | None = None
    name: str | None = None


class Parsed(NamedTuple):
    """What a piece of text made certain."""

    text: str
    """Words."""
    calls: tuple[ToolCallDelta, ...] = ()


class _Place(Enum):
    WORDS = auto()
    HEAD = auto()
    """Before the arguments of a call."""
    ARGUMENTS = auto()
    TAIL = auto()
    """After the arguments of a call."""
    REST = auto()
    """Words, and no call will come any more."""


def make_call_id() -> str:
    """A new id for a call."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID_CHARS))


class CallReader:
    """The calls and the words in one answer."""

    def __init__(self, form: CallFormat, make_id: Callable[[], str] = make_call_id) -> None:
        self._form = form
        self._make_id = make_id
        self._place = _Place.WORDS
        self._held = ""
        self._depth = 0
        self._quoted = self._escaped = False
        self._calls: list[tuple[str, str, list[str]]] = []
        head = rf'{_NAME}"{form.arguments}"{_SPACE}:{_SPACE}(?=\{{)'
        tail = rf'{_SPACE}(?:,{_SPACE}"id"{_SPACE}:{_SPACE}"[^"]{{0,64}}"{_SPACE})?\}}'
        marker = re.escape(form.marker)
        self._first = re.compile(r"\s*" + (f"(?:{marker})?" if form.bare else marker) + _pattern(form.begin) + head)
        self._next = re.compile(tail + _pattern(form.between) + head)
        self._end = re.compile(tail + _pattern(form.end) + r"\s*")

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Those that have come so far; the arguments of the last may be incomplete."""
        return tuple(ToolCall(id=id, name=name, arguments="".join(arguments)) for id, name, arguments in self._calls)

    @property
    def whole(self) -> bool:
        """Whether there are calls, all with complete arguments."""
        return bool(self._calls) and self._place is not _Place.ARGUMENTS

    def feed(self, text: str) -> Parsed:
        """What `text`, which follows what came before, makes certain."""
        self._held += text
        words: list[str] = []
        deltas: list[ToolCallDelta] = []
        while self._step(words, deltas):
            pass
        return Parsed("".join(words), tuple(deltas))

    def finish(self) -> Parsed:
        """What was held back; no more text will come."""
        held, self._held = self._held, ""
        if self._place is _Place.TAIL:
            if found := self._end.match(held):
                held = held[found.end() :]
            elif "".join(f"}}{self._form.end}".split()).startswith("".join(held.split())):
                held = ""  # The answer was cut off where nothing was left to say.
        return Parsed(held)

    def _step(self, words: list[str], deltas: list[ToolCallDelta]) -> bool:
        """Go on to the next place, if that is certain."""
        if self._place is _Place.WORDS:
            return self._find_call(words)
        if self._place is _Place.HEAD:
            return self._begin_call(self._first, words, deltas)
        if self._place is _Place.TAIL:
            return self._begin_call(self._next, words, deltas)
        if self._place is _Place.ARGUMENTS:
            return self._go_on(deltas)
        words.append(self._take(len(self._held)))
        return False

    def _find_call(self, words: list[str]) -> bool:
        held, marker = self._held, self._form.marker
        if self._form.bare:
            beginnings = (marker, CALL)
            if held.startswith(beginnings):
                self._place = _Place.HEAD
            elif any(beginning.startswith(held) for beginning in beginnings):
                return False
            else:
                self._place = _Place.REST
            return True
        at = held.find(marker)
        if at < 0:
            # Held back: what may be the beginning of the marker, and the white space before it.
            kept = next(n for n in range(min(len(held), len(marker) - 1), -1, -1) if held.endswith(marker[:n]))
            words.append(self._take(len(held[: len(held) - kept].rstrip())))
            return False
        words.append(self._take(len(held[:at].rstrip())))
        self._place = _Place.HEAD
        return True

    def _begin_call(self, pattern: "re.Pattern[str]", words: list[str], deltas: list[ToolCallDelta]) -> bool:
        found = pattern.match(self._held)
        if found is None:
            if len(self._held.lstrip()) <= LONGEST:
                return False
            words.append(self.finish().text)
            self._place = _Place.REST
            return False
        name = _unquoted(found[1])
        self._take(found.end())
        delta = ToolCallDelta(len(self._calls), id=self._make_id(), name=name)
        deltas.append(delta)
        self._calls.append((delta.id or "", name, []))
        self._place = _Place.ARGUMENTS
        return True

    def _go_on(self, deltas: list[ToolCallDelta]) -> bool:
        end = self._end_of_object()
        piece = self._take(len(self._held) if end is None else end)
        if piece:
            self._calls[-1][2].append(piece)
            # Never two of one call at once: OpenAI's own client would lose one.
            name = deltas.pop() if deltas else ToolCallDelta(len(self._calls) - 1)
            deltas.append(attrs.evolve(name, arguments=piece))
        if end is None:
            return False
        self._place = _Place.TAIL
        return True

    def _end_of_object(self) -> int | None:
        """Where the object ends that the held text goes on with; None: not yet."""
        for at, character in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    return at + 1
        return None

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken


def _pattern(text: str) -> str:
    """A regular expression for `text`, with any white space where it has some."""
    return _SPACE.join(map(re.escape, re.split(r"\s+", text)))


def _unquoted(name: str) -> str:
    """The text of a JSON string; a string that is none stands for itself."""
    try:
        text = str(json.loads(name))
        text.encode()
    except ValueError:
        return name[1:-1]
    return text
