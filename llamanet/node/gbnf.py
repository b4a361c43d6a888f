"""Reads GBNF as llama.cpp does, to tell what is wrong with it, and what would never end. Pure.

llama.cpp writes what it dislikes to the terminal, and follows a grammar with a set of stacks, one for each way to
read the text so far, which it has no bound for: a left recursion that it overlooks, a choice between equal beginnings
at each of thirty rules, or a nesting that can close in two ways takes it minutes or for ever. Rules:
- Whatever passes here is a grammar for llama.cpp (its `src/llama-grammar.cpp`); tokens as `<[1]>` or `<name>` are not
  taken, for a client knows no model's tokens.
- The elements, the depth of parentheses, and the stacks have a bound each. Of the stacks those at the start are
  counted, and those along a few texts of `PROBES` characters: the ones that keep the most, from the root on, and from
  each rule that holds itself. These are probes, not a proof: the sampler watches the time (`node/llama_sampler.py`).
"""

import re
import string
from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

import attrs

MAX_ELEMENTS = 500_000
"""What a grammar may grow to by its repetitions, its own characters counted; llama.cpp takes 8 bytes for each."""
MAX_NESTING = 1_000
"""Of parentheses."""
MAX_REPEATS = 2_000
"""Rules that one repetition makes, as in llama.cpp."""
MAX_STACKS = 2_000
"""llama.cpp compares each with each: so many take it some 10 ms a character."""
PROBES = 40
_MAX_PROBED = 300_000
"""Steps of single stacks in all probes."""

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
Place: TypeAlias = tuple[int, int, int]
"""Of an element: its rule, its alternative, and its number in there."""
Stack: TypeAlias = tuple[Place, ...]
"""What is still to come, the last first."""


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
        self._probed = 0
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

    def check_stacks(self) -> None:
        """Raises `GrammarError` for left recursion, and for more ways to read a text than llama.cpp can follow."""
        self._check_beginnings(self._nullable())
        self._probe(self.root, None)
        for number in sorted(self._embedding()):
            firsts = self._expand([((number, place, 0),) for place in range(len(self.rules[number]))])
            for repeated in self._characters(Counter(self._element(stack[-1]) for stack in firsts if stack)):
                self._probe(number, repeated)

    def _probe(self, start: int, repeated: int | None) -> None:
        """Follow a text of the rule `start`: of `repeated` as long as that can follow, else of what keeps the most."""
        stacks = self._expand([((start, place, 0),) for place in range(len(self.rules[start]))])
        for _ in range(PROBES):
            tops = Counter(self._element(stack[-1]) for stack in stacks if stack)
            self._probed += len(stacks)
            if repeated is not None and _count(tops, repeated):
                chosen = repeated
            elif characters := self._characters(tops):
                self._probed += len(characters) * len(tops)
                chosen = max(characters, key=lambda character: _count(tops, character))
            else:
                return
            if self._probed > _MAX_PROBED:
                if start == self.root:
                    return
                raise GrammarError("the grammar's rules use each other in too many ways", "fewer rules in each other")
            stacks = self._expand([self._after(stack) for stack in stacks if stack and self._takes(stack, chosen)])

    def _characters(self, tops: "Counter[Element]") -> list[int]:
        """Characters that the most stacks begin with."""
        return sorted({some for top, _ in tops.most_common(32) if isinstance(top, Characters) for some in top.some()})

    def _embedding(self) -> set[int]:
        """The rules that hold themselves with something after it, so that how deep they are in must be remembered."""
        uses = {
            number: {element for alternative in rule for element in alternative if isinstance(element, int)}
            for number, rule in self.rules.items()
        }
        used_by: dict[int, set[int]] = {number: set() for number in uses}
        for number, used in uses.items():
            for each in used:
                used_by[each].add(number)
        # Without those that lead to no circle, and those that no circle leads to, only circles are left.
        left = _strip(_strip(set(uses), uses, used_by), used_by, uses)
        return {
            number for number in left if any(left.intersection(alternative[:-1]) for alternative in self.rules[number])
        }

    def _element(self, place: Place) -> Element:
        rule, alternative, index = place
        return self.rules[rule][alternative][index]

    def _takes(self, stack: Stack, character: int) -> bool:
        top = self._element(stack[-1])
        return isinstance(top, Characters) and character in top

    def _after(self, stack: Stack) -> Stack:
        """The stack without its top, and with what follows it."""
        rule, alternative, index = stack[-1]
        follows = index + 1 < len(self.rules[rule][alternative])
        return (*stack[:-1], (rule, alternative, index + 1)) if follows else stack[:-1]

    def _expand(self, stacks: list[Stack]) -> set[Stack]:
        """The stacks with a character on top that these lead to, and maybe the empty one."""
        found: set[Stack] = set()
        seen = set()
        todo = [stack if not stack or self.rules[stack[-1][0]][stack[-1][1]] else stack[:-1] for stack in stacks]
        while todo:
            stack = todo.pop()
            if stack in seen:
                continue
            seen.add(stack)
            if len(seen) > 2 * MAX_STACKS:
                raise _AMBIGUOUS
            top = self._element(stack[-1]) if stack else ANY
            if isinstance(top, Characters):
                found.add(stack)
                continue
            rest = self._after(stack)
            for number, alternative in enumerate(self.rules[top]):
                todo.append((*rest, (top, number, 0)) if alternative else rest)
        if len(found) > MAX_STACKS:
            raise _AMBIGUOUS
        return found

    def _nullable(self) -> set[int]:
        """The rules that a text of no characters follows."""
        users: dict[int, list[tuple[int, list[int]]]] = {}
        found = {number for number, rule in self.rules.items() if [] in rule}
        for number, rule in self.rules.items():
            for alternative in rule:
                if alternative and all(isinstance(element, int) for element in alternative):
                    missing = [len(alternative)]
                    for element in alternative:
                        users.setdefault(element, []).append((number, missing))  # type: ignore[arg-type]
        todo = list(found)
        while todo:
            for user, missing in users.get(todo.pop(), ()):
                missing[0] -= 1
                if not missing[0] and user not in found:
                    found.add(user)
                    todo.append(user)
        return found

    def _check_beginnings(self, nullable: set[int]) -> None:
        """Count, for each rule, the ways to its first characters."""
        begins = {}
        for number, rule in self.rules.items():
            begins[number] = [first for alternative in rule for first in _firsts(alternative, nullable)]
        ways: dict[int, int] = {}
        open_rules: set[int] = set()
        for start in self.rules:
            todo = [start]
            while todo:
                number = todo[-1]
                if number in ways:
                    todo.pop()
                    continue
                missing = [first for first in begins[number] if first and first not in ways]
                if open_rules.intersection(missing):
                    raise GrammarError("the grammar has a left recursion: a rule can begin with itself", "none")
                if missing:
                    open_rules.add(number)
                    todo += missing
                    continue
                open_rules.discard(number)
                ways[number] = sum(ways[first] if first else 1 for first in begins[number])
                if ways[number] > MAX_STACKS:
                    raise _AMBIGUOUS

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


_AMBIGUOUS = GrammarError(
    f"the grammar leaves more than {MAX_STACKS} ways to read a text", f"at most {MAX_STACKS}; fewer equal beginnings"
)


def _strip(rules: set[int], towards: dict[int, set[int]], back: dict[int, set[int]]) -> set[int]:
    """The `rules` from which a circle can be reached by going `towards` others; `back` is the way back."""
    left = set(rules)
    missing = {number: len(towards[number] & rules) for number in rules}
    todo = [number for number in rules if not missing[number]]
    while todo:
        number = todo.pop()
        left.discard(number)
        for other in back[number] & rules:
            missing[other] -= 1
            if not missing[other]:
                todo.append(other)
    return left


def _size(elements: list[Element]) -> int:
    """In elements of llama.cpp's, which has two for a range."""
    return sum(1 if isinstance(element, int) else 2 * len(element.ranges) for element in elements)


def _firsts(alternative: list[Element], nullable: set[int]) -> Iterator[int]:
    """The rules that an alternative can begin with; 0 for a character, and for nothing at all."""
    for element in alternative:
        if not isinstance(element, int):
            break
        yield element
        if element not in nullable:
            return
    yield 0


def _count(tops: "Counter[Element]", character: int) -> int:
    return sum(count for top, count in tops.items() if isinstance(top, Characters) and character in top)
