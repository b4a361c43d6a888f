"""Requests under way: what counts as a reply, and when silence does."""

import pytest
import trio
from swarms import identity

from llamanet.dht.guard import UNANSWERED_BURST, UNANSWERED_RATE
from llamanet.dht.requests import MAX_RTO_S, MIN_RTO_S, Outcome, Requests, RoundTrips, new_transaction
from llamanet.wire.envelope import Envelope, Network
from llamanet.wire.rpc import Address, Contact, FindNode, Nodes, Ping, Pong, Refused

ALICE, BOB, EVE = identity(1), identity(2), identity(3)
HOME = Address("10.0.0.2", 2)
BOB_CONTACT = Contact(BOB.public_key, HOME)


class Fixture:
    def __init__(self):
        self.sent: list[tuple[bytes, Address]] = []
        self.seen: list[Outcome] = []
        self.outcomes: list[Outcome] = []
        self.reachable = True
        self.requests = Requests(Envelope(ALICE, Network()), self.send, lambda outcome, now: self.seen.append(outcome))

    def send(self, datagram, address):
        self.sent.append((datagram, address))
        return self.reachable

    def ping(self, **options):
        request = Ping(transaction=new_transaction(), client=False)
        self.requests.ask(BOB_CONTACT, request, self.outcomes.append, **options)
        return request.transaction

    def answered(self, reply, sender, address):
        return self.requests.answered(reply, sender, address, trio.current_time())


@pytest.fixture
async def alice(nursery):
    fixture = Fixture()
    nursery.start_soon(fixture.requests.watch)
    return fixture


def pong(transaction):
    return Pong(transaction=transaction, observed=HOME)


async def test_a_reply_is_reported_with_its_round_trip(autojump_clock, alice):
    transaction = alice.ping()
    await trio.sleep(0.125)
    assert alice.answered(pong(transaction), BOB.public_key, HOME)
    [outcome] = alice.outcomes
    assert (outcome.contact, outcome.reply, outcome.rtt) == (BOB_CONTACT, pong(transaction), 0.125)
    assert alice.seen == alice.outcomes
    assert not alice.answered(pong(transaction), BOB.public_key, HOME), "a replay counts no more"


@pytest.mark.parametrize(
    ("reply", "sender", "address"),
    [
        (pong, EVE.public_key, HOME),
        (pong, BOB.public_key, Address("10.0.0.2", 3)),
        (pong, BOB.public_key, Address("10.0.0.3", 2)),
        (lambda transaction: pong(new_transaction()), BOB.public_key, HOME),
        (lambda t: Nodes(transaction=t, observed=HOME, token=bytes(8), contacts=()), BOB.public_key, HOME),
    ],
)
async def test_what_is_no_reply_to_what_was_asked_is_ignored(autojump_clock, alice, reply, sender, address):
    transaction = alice.ping()
    assert not alice.answered(reply(transaction), sender, address)
    assert alice.outcomes == []
    assert alice.answered(pong(transaction), BOB.public_key, HOME)


async def test_a_refusal_is_a_reply_to_anything(autojump_clock, alice):
    transaction = alice.ping()
    assert alice.answered(Refused(transaction=transaction, observed=HOME, reason="no"), BOB.public_key, HOME)


async def test_an_introduction_is_answered_by_whoever_is_there(autojump_clock, alice):
    request = Ping(transaction=new_transaction(), client=False)
    alice.requests.introduce(HOME, request, alice.outcomes.append)
    assert not alice.answered(pong(request.transaction), BOB.public_key, Address("10.0.0.2", 3))
    assert alice.answered(pong(request.transaction), BOB.public_key, HOME)
    assert alice.outcomes[0].contact == BOB_CONTACT


async def test_silence_is_overdue_once_and_a_late_reply_still_counts(autojump_clock, alice):
    transaction = alice.ping(timeout=0.5)
    await trio.sleep(0.49)
    assert alice.outcomes == []
    await trio.sleep(0.02)
    assert [outcome.reply for outcome in alice.outcomes] == [None]
    await trio.sleep(3)
    assert alice.answered(pong(transaction), BOB.public_key, HOME)
    assert [outcome.reply for outcome in alice.outcomes] == [None, pong(transaction)]


async def test_after_five_seconds_it_is_forgotten(autojump_clock, alice):
    transaction = alice.ping()
    await trio.sleep(5.1)
    assert not alice.answered(pong(transaction), BOB.public_key, HOME)
    assert len(alice.outcomes) == 1
    assert alice.requests._under_way == alice.requests._introductions == {}
    assert alice.requests._deadlines == []


async def test_a_timeout_beyond_five_seconds_is_kept(autojump_clock, alice):
    transaction = alice.ping(timeout=8.0)
    await trio.sleep(7.9)
    assert alice.answered(pong(transaction), BOB.public_key, HOME)


async def test_what_cannot_be_sent_is_overdue_at_once(autojump_clock, alice):
    alice.reachable = False
    alice.ping()
    assert [outcome.reply for outcome in alice.outcomes] == [None]
    request = Ping(transaction=new_transaction(), client=False)
    alice.requests.introduce(HOME, request, alice.outcomes.append)
    assert [outcome.contact for outcome in alice.outcomes] == [BOB_CONTACT, None]
    assert [outcome.tried for outcome in alice.outcomes] == [False, False]
    assert alice.requests._introductions == {}


async def test_a_contact_whose_key_is_no_key_is_overdue_at_once(autojump_clock, alice):
    nobody = Contact(bytes(32), HOME)
    alice.requests.ask(nobody, Ping(transaction=new_transaction(), client=False), alice.outcomes.append)
    assert [outcome.reply for outcome in alice.outcomes] == [None]
    assert alice.sent == []


async def test_our_own_introduction_coming_back_tells_our_own_address(autojump_clock, alice):
    request = Ping(transaction=new_transaction(), client=False)
    alice.requests.introduce(HOME, request, alice.outcomes.append)
    datagram, _ = alice.sent[0]
    assert alice.requests.own_introduction(b"something else") is None
    assert alice.requests.own_introduction(datagram) == HOME
    assert alice.requests.own_introduction(datagram) is None
    assert [outcome.contact for outcome in alice.outcomes] == [None]


async def test_find_requests_are_padded_so_that_a_full_reply_is_allowed(autojump_clock, alice):
    request = FindNode(transaction=new_transaction(), client=False, target=bytes(32))
    alice.requests.ask(BOB_CONTACT, request, alice.outcomes.append)
    alice.ping()
    assert [len(datagram) for datagram, _ in alice.sent] == [400, 94]


async def test_lookups_ask_a_subnet_as_long_as_it_answers(autojump_clock, alice):
    def find():
        request = FindNode(transaction=new_transaction(), client=False, target=bytes(32))
        alice.requests.ask(BOB_CONTACT, request, alice.outcomes.append)
        return request.transaction

    for _ in range(200):
        nodes = Nodes(transaction=find(), observed=HOME, token=bytes(8), contacts=())
        assert alice.answered(nodes, BOB.public_key, HOME)
    alice.sent.clear()
    for _ in range(200):
        find()
    assert len(alice.sent) == UNANSWERED_BURST
    assert not alice.outcomes[-1].tried
    alice.ping()
    assert len(alice.sent) == UNANSWERED_BURST + 1, "a PING is no lookup's"
    await trio.sleep(10)
    for _ in range(200):
        find()
    assert len(alice.sent) == UNANSWERED_BURST + 1 + 10 * UNANSWERED_RATE


async def test_deadlines_of_answered_requests_do_not_pile_up(autojump_clock, alice):
    for _ in range(40_000):
        alice.answered(pong(alice.ping()), BOB.public_key, HOME)
        alice.sent.clear()
        alice.outcomes.clear()
        alice.seen.clear()
    assert len(alice.requests._deadlines) <= 4 * 4096 + 1


async def test_an_earlier_deadline_is_noticed(autojump_clock, alice):
    alice.ping(timeout=4.0)
    await trio.sleep(0.1)
    alice.ping(timeout=0.1)
    await trio.sleep(0.11)
    assert len(alice.outcomes) == 1


def test_timeouts_follow_the_peer():
    trips = RoundTrips()
    assert trips.rto(BOB.public_key) == 1.0
    for _ in range(50):
        trips.add(BOB.public_key, 0.4)
    assert 0.4 < trips.rto(BOB.public_key) < 0.5
    assert trips.rto(EVE.public_key) == pytest.approx(trips.rto(BOB.public_key), abs=0.1), "a stranger gets the mean"
    for _ in range(50):
        trips.add(EVE.public_key, 0.0001)
    assert trips.rto(EVE.public_key) == MIN_RTO_S
    trips.add(EVE.public_key, 60.0)
    assert trips.rto(EVE.public_key) == MAX_RTO_S
