"""Whether llama.cpp could follow a grammar in bounded time. Pure.

It follows a grammar with a set of stacks, one for each way to read the text so far, which it has no bound for; and
where it rules out tokens it follows each way through a token apart, without noticing that two have met. So a left
recursion that it overlooks, a choice between equal beginnings at each of thirty rules, a nesting that can close in two
ways, or thirty optional letters in a row take it minutes or for ever. Rules:
- The stacks have a bound at the start and along a few texts of `PROBES` characters: the ones that keep the most, from
  the root on, and from each rule that holds itself.
- The ways through one token have a bound, along `TOKEN` characters from each place where a token may begin.
- These are probes, not a proof: the sampler watches the time (`node/llama_sampler.py`).
"""

from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

from llamanet.node.gbnf import ANY, Characters, Element, Grammar, GrammarError

MAX_STACKS = 2_000
"""llama.cpp compares each with each: so many take it some 10 ms a character."""
MAX_WAYS = 100_000
"""Through one token. Measured with a vocabulary of 49,152: so many take llama.cpp some 30 ms."""
TOKEN = 8
"""Characters of a token that many ways lead through."""
PROBES = 40
_CONTEXT = 8
"""Of the rules that a place is in, those that are followed when it ends."""
_MAX_PROBED = 300_000
"""Steps of single stacks in all probes."""

Place: TypeAlias = tuple[int, int, int]
"""Of an element: its rule, its alternative, and its number in there."""
Stack: TypeAlias = tuple[Place, ...]
"""What is still to come, the last first."""


def check_stacks(grammar: Grammar) -> None:
    """Raises `GrammarError` for left recursion, and for more ways to read a text than llama.cpp can follow."""
    _Stacks(grammar).check()


class _Stacks:
    def __init__(self, grammar: Grammar) -> None:
        self.rules = grammar.rules
        self.root = grammar.root
        self._probed = 0
        self._counted = 0

    def check(self) -> None:
        """Raises `GrammarError` for left recursion, and for more ways to read a text than llama.cpp can follow."""
        self._check_beginnings(self._nullable())
        self._count_ways()
        self._probe(self.root, None)
        for number in sorted(self._embedding()):
            firsts = self._expand([((number, place, 0),) for place in range(len(self.rules[number]))])
            for repeated in self._characters(Counter(self._element(stack[-1]) for stack in firsts if stack)):
                self._probe(number, repeated)

    def _count_ways(self) -> None:
        """Go through a token from the root, and from each character that a rule follows, whatever rules it is in."""
        within: dict[int, Stack] = {self.root: ()}
        todo = [self.root]
        while todo:
            number = todo.pop()
            for place, alternative in enumerate(self.rules[number]):
                for index, element in enumerate(alternative):
                    if isinstance(element, Characters):
                        continue
                    stack = (*within[number][-_CONTEXT:], (number, place, index))
                    begins = isinstance(alternative[index - 1], Characters) if index else number == self.root
                    if begins:
                        self._count_ways_from(stack)
                    if element not in within:
                        within[element] = self._after(stack)
                        todo.append(element)

    def _count_ways_from(self, start: Stack) -> None:
        ways: Counter[Stack] = Counter(self._expand([start]))
        if self._counted > _MAX_PROBED:
            raise _ENTANGLED
        total = 0
        for _ in range(TOKEN):
            tops: Counter[Element] = Counter()
            for stack, count in ways.items():
                if stack:
                    tops[self._element(stack[-1])] += count
            characters = self._characters(tops)
            if not characters:
                return
            chosen = max(characters, key=lambda character: _count(tops, character))
            if _count(tops, chosen) < 2:
                return
            following: Counter[Stack] = Counter()
            for stack, count in ways.items():
                if stack and self._takes(stack, chosen):
                    after = self._expand([self._after(stack)])
                    for each in after:
                        following[each] += count
                    total += count * len(after)
                    if total > MAX_WAYS:
                        raise _WINDING
            ways = following

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
                raise _ENTANGLED
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
        self._counted += len(seen)
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


_AMBIGUOUS = GrammarError(
    f"the grammar leaves more than {MAX_STACKS} ways to read a text", f"at most {MAX_STACKS}; fewer equal beginnings"
)

_WINDING = GrammarError(
    f"the grammar leaves more than {MAX_WAYS} ways to read one token",
    "fewer optional parts in a row that can begin alike",
)
_ENTANGLED = GrammarError("the grammar's rules use each other in too many ways", "fewer rules in each other")


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
