import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llamanet.node.detokenize import TextStream
from llamanet.node.neighbours import Move
from llamanet.node.pacing import TILE, Pace
from llamanet.node.scheduler import Scheduler
from llamanet.node.sequence import Sequence
from llamanet.wire.inference import Generate


def sequence(serial: int, prompt: int, resume: tuple[int, ...] = ()) -> Sequence:
    return Sequence(
        serial=serial,
        request=Generate(id=serial, prompt="", resume=resume),
        tokens=[1000 * serial + place for place in range(prompt)],
        prompt_tokens=prompt,
        limit=10_000,
        seed=0,
        text=TextStream(),
        arrived=0.0,
    )


def make(*, slots: int, n_batch: int) -> Scheduler:
    return Scheduler(slots=slots, n_ctx=64, n_batch=n_batch, pace=Pace(0.15, n_batch))


def admit(scheduler: Scheduler) -> list[Sequence]:
    admitted = []
    while found := scheduler.admit():
        placement, sequence = found
        assert sequence.slot == placement.slot
        admitted.append(sequence)
    return admitted


def sizes(scheduler: Scheduler) -> list[tuple[int, int, bool]]:
    return [(part.serial, len(chunk.tokens), chunk.draws) for part, chunk in scheduler.plan().parts]


def test_slots_go_to_the_oldest() -> None:
    scheduler = make(slots=2, n_batch=8)
    first, second, third = (sequence(serial, 3) for serial in range(3))
    for waiting in (first, second, third):
        scheduler.add(waiting)
    assert [(s.slot, s.serial) for s in admit(scheduler)] == [(0, 0), (1, 1)]
    assert scheduler.admit() is None
    scheduler.remove(first)
    assert [(s.slot, s.serial) for s in admit(scheduler)] == [(0, 2)]
    assert sorted(scheduler.running) == [0, 1]


@pytest.mark.parametrize(
    ("begun", "order"),
    [
        ((3, 4), [3, 0, 4, 1, 2]),
        ((1,), [1, 0, 2, 3, 4]),
        ((0, 1), [0, 1, 2, 3, 4]),
        ((0, 2, 3, 4), [0, 2, 1, 3, 4]),
        ((0, 1, 2, 3, 4), [0, 1, 2, 3, 4]),
    ],
)
def test_streams_that_began_elsewhere_come_first_but_not_twice_in_a_row(
    begun: tuple[int, ...], order: list[int]
) -> None:
    scheduler = make(slots=1, n_batch=8)
    for serial in range(5):
        scheduler.add(sequence(serial, 3, resume=(7,) if serial in begun else ()))
    admitted = []
    while found := admit(scheduler):
        admitted += [each.serial for each in found]
        scheduler.remove(found[0])
    assert admitted == order


def test_who_says_to_have_begun_takes_no_more_than_every_second_slot_from_others() -> None:
    scheduler = make(slots=1, n_batch=8)
    scheduler.add(sequence(0, 3))
    scheduler.add(sequence(1, 3))
    admitted = []
    for serial in range(2, 8):
        scheduler.add(sequence(serial, 3, resume=(7,)))
        [found] = admit(scheduler)
        admitted.append(found.serial)
        scheduler.remove(found)
    assert admitted[:4] == [2, 0, 3, 1]


def test_streams_come_before_prompts_and_prompts_fill_the_batch() -> None:
    scheduler = make(slots=3, n_batch=8)
    stream, long, short = sequence(0, 4), sequence(1, 20), sequence(2, 2)
    for each in (stream, long, short):
        scheduler.add(each)
    admit(scheduler)
    stream.computed = 3
    assert sizes(scheduler) == [(0, 1, True), (1, 5, False), (2, 2, True)]
    long.computed = 18
    assert sizes(scheduler) == [(0, 1, True), (1, 2, True), (2, 2, True)]


def test_a_chunk_goes_on_where_the_last_one_ended() -> None:
    scheduler = make(slots=1, n_batch=4)
    prompt = sequence(0, 6)
    scheduler.add(prompt)
    admit(scheduler)
    prompt.computed = 4
    (_, chunk), *_ = scheduler.plan().parts
    assert (chunk.slot, chunk.start, list(chunk.tokens), chunk.draws) == (0, 4, [4, 5], True)


def test_the_oldest_prompt_gets_half_and_the_shortest_goes_first_in_the_rest() -> None:
    scheduler = make(slots=4, n_batch=20)
    for serial, prompt in enumerate((100, 50, 4, 7)):
        scheduler.add(sequence(serial, prompt))
    admit(scheduler)
    assert sorted(sizes(scheduler)) == [(0, 10, False), (2, 4, True), (3, 6, False)]


def paced(tokens: int, *, streams: int) -> Scheduler:
    """Prompts of 1,000, 400 and 300 tokens in a scheduler whose steps may hold so many tokens of them."""
    pace = Pace(0.15, 512)
    while pace.prompt_tokens(streaming=streams > 0) != tokens:
        pace.step(prompt_tokens=tokens, seconds=0.15 if streams else 0.3)
    scheduler = Scheduler(slots=8, n_ctx=2048, n_batch=512, pace=pace)
    for serial, prompt in enumerate((*(4,) * streams, 1000, 400, 300)):
        scheduler.add(sequence(serial, prompt))
    for each in admit(scheduler)[:streams]:
        each.computed = 3
    return scheduler


def prompts(scheduler: Scheduler, streams: int) -> list[int]:
    """How many tokens of each prompt the next step holds."""
    given = {serial: size for serial, size, _ in sizes(scheduler)}
    return [given.get(streams + number, 0) for number in range(3)]


def test_prompts_take_turns_with_a_step_of_less_than_two_tiles() -> None:
    # The first token of a prompt is computed with those of the streams, and what it has more fills the tile.
    scheduler = paced(TILE, streams=2)
    assert [prompts(scheduler, 2) for _ in range(4)] == [[TILE + 1, 0, 0], [0, 0, TILE + 1]] * 2
    scheduler = paced(2 * TILE, streams=2)
    assert [prompts(scheduler, 2) for _ in range(2)] == [[TILE + 1, 0, TILE + 1]] * 2
    assert prompts(paced(32, streams=2), 2) == [16, 0, 16]


def test_alone_each_prompt_gets_what_one_may_have() -> None:
    assert prompts(paced(TILE, streams=0), 0) == [TILE, TILE, TILE]
    assert prompts(paced(3 * TILE, streams=0), 0) == [3 * TILE, 512 - 2 * 3 * TILE, 3 * TILE]


def test_a_short_prompt_leaves_the_rest_of_a_tile_to_the_next() -> None:
    scheduler = paced(TILE, streams=1)
    short = sequence(9, 10)
    scheduler.add(short)
    admit(scheduler)
    scheduler.plan()
    assert prompts(scheduler, 1) == [0, 0, 54]


def test_while_anyone_streams_prompts_keep_the_pace() -> None:
    scheduler = make(slots=2, n_batch=512)
    stream, prompt = sequence(0, 4), sequence(1, 1000)
    scheduler.add(stream)
    scheduler.add(prompt)
    admit(scheduler)
    stream.computed = 3
    assert sizes(scheduler) == [(0, 1, True), (1, 32, False)]
    stream.paused_at = 1.0
    assert sizes(scheduler) == [(1, TILE, False)]


def test_what_a_sequence_computed_is_there_for_the_next() -> None:
    scheduler = make(slots=2, n_batch=8)
    first, other = sequence(0, 6), sequence(1, 3)
    scheduler.add(first)
    scheduler.add(other)
    admit(scheduler)
    first.computed = 4
    assert scheduler.cached([*first.tokens, 7]) == 4
    scheduler.remove(first)
    again = sequence(2, 0)
    again.tokens += [*first.tokens, 7]
    scheduler.add(again)
    assert [(s.slot, s.computed) for s in admit(scheduler)] == [(0, 4)]


def test_a_paused_sequence_is_left_out_and_keeps_its_slot() -> None:
    scheduler = make(slots=1, n_batch=4)
    paused, waiting = sequence(0, 2), sequence(1, 2)
    scheduler.add(paused)
    scheduler.add(waiting)
    admit(scheduler)
    paused.paused_at = 1.0
    assert sizes(scheduler) == []
    assert scheduler.admit() is None
    assert list(scheduler.running.values()) == [paused]


def alike(serial: int, common: int, prompt: int) -> Sequence:
    made = sequence(serial, prompt)
    made.tokens[:common] = range(common)
    return made


def burst(*, n_ctx: int = 1000, slots: int = 4) -> Scheduler:
    return Scheduler(slots=slots, n_ctx=n_ctx, n_batch=100, pace=Pace(0.15, 100))


def test_of_prompts_that_begin_alike_one_is_computed_and_the_others_wait_for_the_common_part() -> None:
    scheduler = burst()
    first, second, other = alike(0, 200, 250), alike(1, 200, 220), sequence(2, 30)
    for each in (first, second, other):
        scheduler.add(each)
    assert admit(scheduler) == [first, other], "whoever waits for others does not hold up the rest"
    first.computed = 199
    assert admit(scheduler) == []
    first.computed = 230
    assert admit(scheduler) == [second]
    assert second.computed == 200


def test_a_few_tokens_in_common_are_not_waited_for() -> None:
    scheduler = burst()
    first, second = alike(0, 63, 250), alike(1, 63, 220)
    scheduler.add(first)
    scheduler.add(second)
    assert admit(scheduler) == [first, second]


def test_what_memory_holds_already_is_not_waited_for() -> None:
    scheduler = burst()
    before = alike(0, 200, 200)
    scheduler.add(before)
    admit(scheduler)
    before.computed = 200
    scheduler.remove(before)
    first, second = alike(1, 200, 250), alike(2, 200, 220)
    scheduler.add(first)
    scheduler.add(second)
    assert admit(scheduler) == [first, second]
    assert (first.computed, second.computed) == (200, 200)


@pytest.mark.parametrize("fate", ["gone", "paused"])
def test_nobody_waits_for_a_prompt_that_does_not_get_on(fate: str) -> None:
    scheduler = burst()
    first, second = alike(0, 200, 250), alike(1, 200, 220)
    scheduler.add(first)
    scheduler.add(second)
    assert admit(scheduler) == [first]
    first.computed = 100
    if fate == "gone":
        scheduler.remove(first)
    else:
        first.paused_at = 1.0
    assert admit(scheduler) == [second]
    assert second.computed == 100


def test_a_gap_between_slots_is_closed() -> None:
    scheduler = make(slots=4, n_batch=8)
    first, second, third = sequences = [sequence(serial, 3) for serial in range(3)]
    for each in sequences:
        scheduler.add(each)
    admit(scheduler)
    for each in sequences:
        each.computed = 2
    assert scheduler.move() is None
    scheduler.remove(second)
    assert scheduler.move() == Move(0, 3)
    assert (first.slot, third.slot) == (3, 2)
    assert list(scheduler.running.items()) == [(3, first), (2, third)], "the order of admission stays"
    assert [chunk.slot for chunk in scheduler.plan().chunks] == [2, 3]
    assert scheduler.cached([*first.tokens, 7]) == 2
    assert scheduler.memory_tokens == 6
    assert scheduler.move() is None


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of arrivals, steps, pauses and departures, against what must hold in all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make(slots=3, n_batch=7)
        self.alive: list[Sequence] = []
        self.serial = 0

    @rule(prompt=st.integers(1, 30))
    def arrive(self, prompt: int) -> None:
        self.serial += 1
        self.alive.append(sequence(self.serial, prompt))
        self.scheduler.add(self.alive[-1])

    @rule()
    def step(self) -> None:
        waiting = list(self.scheduler.waiting)
        admitted = admit(self.scheduler)
        assert admitted == waiting[: len(admitted)]
        prompts = [s for s in self.scheduler.running.values() if s.pending > 1 and s.paused_at is None]
        if move := self.scheduler.move():
            assert move.slot not in self.scheduler.running
        plan = self.scheduler.plan()
        assert plan.tokens <= 7
        if prompts:
            given = {part.serial: len(chunk.tokens) for part, chunk in plan.parts}
            least = min(prompts[0].pending, (7 - sum(part not in prompts for part, _ in plan.parts)) // 2)
            assert given.get(prompts[0].serial, 0) >= max(1, least), "the oldest prompt gets on"
        slots = [chunk.slot for chunk in plan.chunks]
        assert slots == sorted(set(slots))
        for part, chunk in plan.parts:
            assert part.paused_at is None
            assert chunk.start == part.computed
            assert list(chunk.tokens) == part.tokens[chunk.start : chunk.start + len(chunk.tokens)]
            part.computed += len(chunk.tokens)
            assert chunk.draws == (part.computed == len(part.tokens))
            if chunk.draws:
                part.tokens.append(0)
        drawing = {part.serial for part, chunk in plan.parts if chunk.draws}
        streams = {s.serial for s in self.scheduler.running.values() if s.generated > 1 and s.paused_at is None}
        assert streams <= drawing, "every stream draws in every step"
        active = any(s.paused_at is None for s in self.scheduler.running.values())
        assert bool(plan.parts) == active

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.alive))
        self.alive.remove(gone)
        self.scheduler.remove(gone)

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(list(self.scheduler.running.values())))
        chosen.paused_at = None if chosen.paused_at else 1.0

    @invariant()
    def nobody_is_lost(self) -> None:
        running = list(self.scheduler.running.values())
        assert {s.serial for s in [*running, *self.scheduler.waiting]} == {s.serial for s in self.alive}
        assert len(running) <= 3
        assert all(self.scheduler.running[s.slot] is s for s in running if s.slot is not None)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
