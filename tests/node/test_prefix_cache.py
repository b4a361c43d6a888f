from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llamanet.node.prefix_cache import Placement, PrefixCache, common_prefix
from llamanet.testing.backend import ScriptedBackend

SLOTS = 3


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_a_common_prefix_is_common_and_the_longest(a: list[int], b: list[int]) -> None:
    length = common_prefix(a, b)
    assert a[:length] == b[:length]
    assert min(len(a), len(b)) == length or a[length] != b[length]


def filled(*memories: list[int], n_ctx: int = 64) -> PrefixCache:
    """Slots that remember `memories`, the first the longest unused."""
    cache = PrefixCache(slots=len(memories), n_ctx=n_ctx)
    for _ in memories:
        cache.take([0], {})
    for slot, memory in enumerate(memories):
        cache.release(slot, memory)
    assert {slot: list(memory) for slot, memory in cache.idle.items()} == dict(enumerate(memories))
    return cache


def test_without_a_match_the_least_recently_used_slot_is_taken_empty_ones_first() -> None:
    cache = filled([1, 2], [3, 4], [])
    assert [cache.take([9, 9], {}).slot for _ in range(3)] == [2, 0, 1]


def test_requests_that_come_together_get_neighbouring_slots() -> None:
    cache = PrefixCache(slots=4, n_ctx=64)
    for turn in range(6):
        slots = [cache.take([10 * turn + request, 0], {}).slot for request in range(2)]
        assert slots == ([0, 1] if turn % 2 == 0 else [2, 3])
        for slot in reversed(slots):
            cache.release(slot, [10 * turn + slot])


def test_a_follow_up_goes_on_where_its_conversation_is() -> None:
    cache = filled([8, 8], [1, 2, 3], [9])
    assert cache.take([1, 2, 3, 4], {}) == Placement(1, 1, 3)


def test_the_last_token_is_computed_always() -> None:
    cache = filled([1, 2, 3])
    assert cache.longest([1, 2, 3], {}) == 2
    assert cache.take([1, 2, 3], {}) == Placement(0, 0, 2)


def test_a_shared_beginning_is_copied_and_the_conversation_kept() -> None:
    conversation = [1, 2, 3, 4, 5, 6, 7]
    cache = filled([8, 8], conversation)
    assert cache.take([1, 2, 3, 9], {}) == Placement(0, 1, 3)
    assert cache.idle == {1: conversation}


def test_the_only_idle_slot_is_cut_rather_than_computed_anew() -> None:
    cache = filled([1, 2, 3, 4, 5, 6, 7])
    assert cache.take([1, 2, 9], {}) == Placement(0, 0, 2)


def test_a_live_slot_lends_its_prefix() -> None:
    cache = filled([], [])
    cache.take([1, 2, 3], {})
    live = {0: [1, 2, 3]}
    assert cache.longest([1, 2, 3, 4], live) == 3
    assert cache.take([1, 2, 3, 4], live) == Placement(1, 0, 3)


def test_a_prefix_that_costs_more_to_copy_than_to_compute_is_not_copied() -> None:
    cache = filled([], [], n_ctx=2048)
    cache.take([1, 2, 3], {})
    assert cache.take([1, 2, 3, 4], {0: [1, 2, 3]}) == Placement(1, 1, 0)


class MemoryMachine(RuleBasedStateMachine):
    """Any order of arrivals, computing and departures on a memory that really holds the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(slots=SLOTS, n_ctx=64)
        self.memory = {slot: [] for slot in range(SLOTS)}
        self.live: dict[int, list[int]] = {}
        """The prompt of each live slot."""

    def live_memory(self) -> dict[int, list[int]]:
        return {slot: list(self.memory[slot]) for slot in self.live}

    @precondition(lambda self: len(self.live) < SLOTS)
    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def arrive(self, prompt: list[int]) -> None:
        before = {slot: list(memory) for slot, memory in self.memory.items()}
        idle = list(self.cache.idle)
        best = max(common_prefix(prompt[:-1], memory) for memory in before.values())
        assert self.cache.longest(prompt, self.live_memory()) == best
        placed = self.cache.take(prompt, self.live_memory())
        assert placed.slot not in self.live
        assert placed.reused == best
        if placed.source != placed.slot:
            self.memory[placed.slot] = list(before[placed.source])
            others = [slot for slot in idle if slot != placed.source]
            assert placed.slot == others[0], "the least recently used one"
        del self.memory[placed.slot][placed.reused :]
        assert self.memory[placed.slot] == prompt[: placed.reused]
        self.live[placed.slot] = prompt

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.live)))
        done = len(self.memory[slot])
        self.memory[slot] += self.live[slot][done : done + data.draw(st.integers(1, 6))]

    @precondition(lambda self: self.live)
    @rule(data=st.data(), lost=st.booleans())
    def leave(self, data: st.DataObject, lost: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[slot]
        if lost:
            self.memory[slot] = []
        self.cache.release(slot, list(self.memory[slot]))

    @invariant()
    def idle_slots_remember_what_is_there(self) -> None:
        assert {slot: list(tokens) for slot, tokens in self.cache.idle.items()} == {
            slot: memory for slot, memory in self.memory.items() if slot not in self.live
        }


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_a_sliding_window_refuses_a_cut_whose_window_is_gone() -> None:
    backend = ScriptedBackend(window=4)
    backend._memory[0] = list(range(20))
    backend._oldest[0] = 16
    assert not backend.forget(0, 18)
    assert backend.forget(0, 20)
    backend.copy(0, 1)
    assert not backend.forget(1, 19)
    assert backend.forget(1, 0)


def test_memory_that_cannot_be_cut_is_reused_whole_or_not_at_all() -> None:
    cache = PrefixCache(slots=2, n_ctx=64, cuts=False)
    first = cache.take([1, 2, 3], {})
    cache.release(first.slot, [1, 2, 3, 4])
    assert cache.longest([1, 2, 3, 9, 9], {}) == 0
    assert cache.take([1, 2, 3, 9, 9], {}) == Placement(1, 1, 0)
    cache.release(1, [1, 2, 3, 9, 9])
    assert cache.longest([1, 2, 3, 4], {}) == 0, "the last token is computed"
    assert cache.take([1, 2, 3, 4, 5], {}) == Placement(0, 0, 4)
