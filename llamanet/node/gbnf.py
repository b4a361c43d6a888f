"""Reads GBNF as llama.cpp does, to tell what is wrong with it, and where. Pure.

llama.cpp writes what it dislikes to the terminal. Rules:
- Whatever passes here is a grammar for llama.cpp (its `src/llama-grammar.cpp`); tokens as `<[1]>` or `<name>` are not
  taken, for a client knows no model's tokens.
- The elements and the depth of parentheses have a bound each. What would take llama.cpp too long to follow is found by
  `node/gbnf_stacks.py`.
"""

import re
import string
from collections.abc import Iterator
from typing import TypeAlias

import attrs

MAX_ELEMENTS = 500_000
"""What a grammar may grow to by its repetitions, its own characters counted; llama.cpp takes 8 bytes for each."""
MAX_NESTING = 1_000
"""Of parentheses."""
MAX_REPEATS = 2_000
"""Rules that one repetition makes, as in llama.cpp."""

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_REPEAT = re.compile(r"\{[ \t]*(\d{1,9})[ \t]*(,)?[ \t]*(\d{1,9})?[ \t]*\}")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX = {"x": 2, "u": 4, "U": 8}
_LAST = 0x10FFFF


@attrs.define
class GrammarError(ValueError):
    """The grammar cannot be used."""

    reason: str
    limit: str | None = None

    def __str__(self) -> str:
        return self.reason


@attrs.frozen
class Characters:
    """One character out of `ranges`, bounds included, or none of them."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def __contains__(self, character: int) -> bool:
        return any(low <= character <= high for low, high in self.ranges) != self.negated

    def some(self) -> Iterator[int]:
        """A few characters, between which others make no difference here."""
        for low, high in self.ranges:
            yield from (low - 1, high + 1) if self.negated else (low, high)


ANY = Characters(((0, _LAST),))
Element: TypeAlias = int | Characters
"""A rule's number, from 1 on, or a character."""
Rule: TypeAlias = list[list[Element]]
"""The alternatives."""


class Grammar:
    """The rules of a grammar by number, as llama.cpp makes them; each repetition and each parenthesis is one."""

    def __init__(self, text: str) -> None:
        """Raises `GrammarError` for what llama.cpp cannot read, or what is beyond the bounds."""
        self.rules: dict[int, Rule] = {}
        self._text = text
        self._at = 0
        self._numbers: dict[str, int] = {}
        self._count = 0
        self._elements = 0
        self._grow(len(text))
        self._skip(_SPACE_AND_LINES)
        while self._at < len(text):
            self._read_rule()
        for name, number in self._numbers.items():
            if number not in self.rules:
                raise GrammarError(f"the grammar has no rule {name!r}")
        if "root" not in self._numbers:
            raise GrammarError("the grammar has no rule root")
        self.root = self._numbers["root"]

    def _read_rule(self) -> None:
        number = self._number(self._name())
        self._skip(_SPACE)
        if not self._text.startswith("::=", self._at):
            raise self._wrong("'::=' is missing")
        self._at += 3
        self._skip(_SPACE_AND_LINES)
        # Open parentheses: the number and the alternatives of each, and how many rules there were before it.
        open_rules: list[tuple[int, Rule, int]] = [(number, [[]], 0)]
        # Where in the last alternative what a repetition repeats begins, and how many rules it takes.
        last: int | None = None
        weight = 1
        while self._at < len(self._text):
            rule, sequence = open_rules[-1][1], open_rules[-1][1][-1]
            start = len(sequence)
            character = self._text[self._at]
            if character in '"[.':
                sequence += self._literal(character)
                last, weight = start, 1
            elif character in "*+?{":
                least, most = self._repetition(character)
                if last is None or last == len(sequence):
                    raise self._wrong("there is nothing to repeat")
                weight *= most or least or 1
                if weight > MAX_REPEATS:
                    raise GrammarError("the grammar's repetitions are too many", f"at most {MAX_REPEATS} in each other")
                self._repeat(sequence, last, least, most)
            elif character == "(":
                if len(open_rules) > MAX_NESTING:
                    raise GrammarError("the grammar's parentheses are nested too deep", f"at most {MAX_NESTING}")
                self._at += 1
                self._skip(_SPACE_AND_LINES)
                open_rules.append((self._number(None), [[]], self._count - 1))
                last = None
                continue
            elif character == ")" and len(open_rules) > 1:
                self._at += 1
                inner, alternatives, before = open_rules.pop()
                self.rules[inner] = alternatives
                sequence = open_rules[-1][1][-1]
                last, weight = len(sequence), max(1, self._count - before)
                sequence.append(inner)
            elif character == "|":
                self._at += 1
                rule.append([])
                self._skip(_SPACE_AND_LINES)
                last = None
                continue
            elif _NAME.match(self._text, self._at):
                sequence.append(self._number(self._name()))
                last, weight = start, 1
            else:
                break
            self._skip(_SPACE if len(open_rules) == 1 else _SPACE_AND_LINES)
            self._grow(_size(open_rules[-1][1][-1][start:]))
        if len(open_rules) > 1:
            raise self._wrong("')' is missing")
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            raise self._wrong("the end of the line is missing")
        self.rules[number] = open_rules[0][1]
        self._skip(_SPACE_AND_LINES)

    def _literal(self, opening: str) -> list[Element]:
        self._at += 1
        if opening == ".":
            return [ANY]
        if opening == '"':
            characters: list[Element] = []
            while (character := self._character(end='"')) is not None:
                characters.append(Characters(((character, character),)))
            return characters
        negated = self._text.startswith("^", self._at)
        self._at += negated
        ranges = []
        while (low := self._character(end="]")) is not None:
            high: int | None = low
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                high = self._character(end="")
            ranges.append((low, low if high is None else high))
        # llama.cpp makes nothing of [], and of [^].
        return [Characters(tuple(ranges), negated)] if ranges else []

    def _character(self, end: str) -> int | None:
        """The next character of a literal; None at its `end`, which is passed."""
        if self._at >= len(self._text):
            raise self._wrong("a literal does not end")
        character = self._text[self._at]
        if character == end:
            self._at += 1
            return None
        if character != "\\":
            self._at += 1
            return ord(character)
        escape = self._text[self._at + 1 : self._at + 2]
        if escape in _HEX:
            digits = self._text[self._at + 2 : self._at + 2 + _HEX[escape]]
            if len(digits) < _HEX[escape] or not set(digits) <= set(string.hexdigits):
                raise self._wrong(f"{_HEX[escape]} hexadecimal digits are missing")
            self._at += 2 + len(digits)
            return int(digits, 16)
        if escape not in _ESCAPES or not escape:
            raise self._wrong(f"there is no escape \\{escape}")
        self._at += 2
        return ord(_ESCAPES[escape])

    def _repetition(self, character: str) -> tuple[int, int | None]:
        """The least and the most times; None: any number."""
        if character != "{":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        found = _REPEAT.match(self._text, self._at)
        if not found:
            raise self._wrong("a repetition is not {n}, {n,} or {n,m}")
        self._at = found.end()
        least = int(found[1])
        most = int(found[3]) if found[3] else None if found[2] else least
        if max(least, most or 0) > MAX_REPEATS:
            raise GrammarError(f"the grammar repeats something {max(least, most or 0)} times", f"at most {MAX_REPEATS}")
        if most is not None and most < least:
            raise self._wrong("a repetition's bounds are in the wrong order")
        return least, most

    def _repeat(self, sequence: list[Element], start: int, least: int, most: int | None) -> None:
        repeated = sequence[start:]
        self._grow(_size(repeated) * (least + (1 if most is None else most - least)))
        del sequence[start:]
        sequence += repeated * least
        rest: int | None = None
        for _ in range(1 if most is None else most - least):
            number = self._number(None)
            following = number if most is None else rest
            self.rules[number] = [[*repeated, *([] if following is None else [following])], []]
            rest = number
        if rest is not None:
            sequence.append(rest)

    def _grow(self, elements: int) -> None:
        self._elements += elements
        if self._elements > MAX_ELEMENTS:
            raise GrammarError(f"the grammar makes more than {MAX_ELEMENTS} elements", f"at most {MAX_ELEMENTS}")

    def _number(self, name: str | None) -> int:
        """The number of a rule; None: a new one without a name."""
        if name is None or name not in self._numbers:
            self._count += 1
            if name is None:
                return self._count
            self._numbers[name] = self._count
        return self._numbers[name]

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if not found:
            raise self._wrong("a rule's name is missing")
        self._at = found.end()
        return found[0]

    def _skip(self, space: "re.Pattern[str]") -> None:
        self._at = space.match(self._text, self._at).end()  # type: ignore[union-attr]

    def _wrong(self, what: str) -> GrammarError:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - (self._text.rfind("\n", 0, self._at) + 1) + 1
        return GrammarError(f"line {line}, column {column} of the grammar: {what}")


def _size(elements: list[Element]) -> int:
    """In elements of llama.cpp's, which has two for a range."""
    return sum(1 if isinstance(element, int) else 2 * len(element.ranges) for element in elements)
