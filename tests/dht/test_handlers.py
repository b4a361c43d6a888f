import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swarms import EPOCH, contact, identity, key, seeded

from llamanet.dht.distance import distance
from llamanet.dht.guard import TOKEN_ROTATION_S, WriteTokens
from llamanet.dht.handlers import Handlers
from llamanet.dht.routing import RoutingTable
from llamanet.dht.storage import RecordStore
from llamanet.errors import BadMessage
from llamanet.wire.envelope import MAX_PAYLOAD_BYTES, Network
from llamanet.wire.record import encode_record, sign_record
from llamanet.wire.rpc import (
    Address,
    Contact,
    FindNode,
    FindValue,
    ModelState,
    Nodes,
    Ping,
    Pong,
    Refused,
    Store,
    Stored,
    Values,
    encode_rpc,
)

ME = identity(1)
NETWORK = Network()
TRANSACTION = b"01234567"
ASKER = contact(7)


def state(name):
    return ModelState(
        name=name,
        running=1,
        waiting=2,
        slots=4,
        tokens_per_second=50.0,
        prefill_tokens_per_second=500.0,
        ttft_s=0.1,
        n_ctx=2048,
    )


@pytest.fixture
def handlers():
    states = tuple(state(f"model-{number:02}") for number in range(40))

    def live_state(model):
        return False, tuple(s for s in states if model in (None, s.name))

    return Handlers(
        own_id=ME.node_id,
        network=NETWORK,
        table=RoutingTable(ME.node_id, k=16),
        store=RecordStore(),
        tokens=WriteTokens(bytes(32)),
        rng=seeded(1),
        k=16,
        version="1.2.3",
        live_state=live_state,
    )


def ask(handlers, request, asker=ASKER, *, now=0.0, wall_now=EPOCH, room=MAX_PAYLOAD_BYTES):
    return handlers.answer(request, asker, now=now, wall_now=wall_now, room=room)


def find_node(target):
    return FindNode(transaction=TRANSACTION, client=False, target=target)


def find_value(target, cursor=None):
    return FindValue(transaction=TRANSACTION, client=False, key=target, cursor=cursor)


def signed(publisher=2, name="k", sequence=1, *, issued=EPOCH, lifetime=300, value=b"v" * 200):
    return sign_record(
        identity(publisher),
        NETWORK,
        key=key(name),
        sequence=sequence,
        issued_at=int(issued),
        lifetime=lifetime,
        value=value,
    )


def store(handlers, record, asker=ASKER, *, token=None, **when):
    if token is None:
        token = ask(handlers, find_node(record.key), asker, **when).token
    return ask(
        handlers,
        Store(transaction=TRANSACTION, client=False, token=token, record=encode_record(record)),
        asker,
        **when,
    )


def test_a_ping_tells_the_asked_model_and_the_address_it_came_from(handlers):
    pong = ask(handlers, Ping(transaction=TRANSACTION, client=True, model="model-07"))
    assert isinstance(pong, Pong)
    assert [model.name for model in pong.models] == ["model-07"]
    assert (pong.transaction, pong.observed, pong.version) == (TRANSACTION, contact(7).address, "1.2.3")


def test_a_ping_for_no_model_tells_as_many_as_fit(handlers):
    pong = ask(handlers, Ping(transaction=TRANSACTION, client=True))
    assert 10 < len(pong.models) < 40


def test_find_node_tells_the_nearest_without_the_asker(handlers):
    contacts = [contact(number) for number in range(1, 12)]
    for peer in contacts:
        handlers.table.answered(peer, 0.0)
    target = key("t")
    told = ask(handlers, find_node(target), contact(7)).contacts
    contacts.remove(contact(7))
    assert list(told) == sorted(contacts, key=lambda peer: distance(peer.node_id, target))


def test_contacts_that_failed_are_not_told(handlers):
    handlers.table.answered(contact(1), 0.0)
    handlers.table.answered(contact(2), 0.0)
    handlers.table.failed(contact(1), 1.0)
    assert ask(handlers, find_node(key("t"))).contacts == (contact(2),)


def test_private_contacts_are_not_told_to_the_public(handlers):
    handlers.table.answered(contact(1, host="127.0.0.1"), 0.0)
    handlers.table.answered(contact(2, host="10.0.0.1"), 0.0)
    handlers.table.answered(contact(3, host="8.8.8.8"), 0.0)
    assert ask(handlers, find_node(key("t")), contact(9, host="9.9.9.9")).contacts == (contact(3, host="8.8.8.8"),)


def test_a_record_comes_back_as_it_was_stored(handlers):
    record = signed()
    assert isinstance(store(handlers, record), Stored)
    values = ask(handlers, find_value(record.key))
    assert isinstance(values, Values)
    assert (values.records, values.total, values.next_cursor) == ((encode_record(record),), 1, None)


def test_paging_through_a_key(handlers):
    records = {encode_record(signed(number)) for number in range(2, 20)}
    for encoded in range(2, 20):
        store(handlers, signed(encoded))
    told, cursor = set(), None
    for _ in range(20):
        values = ask(handlers, find_value(key("k"), cursor))
        assert values.total == 18
        told.update(values.records)
        cursor = values.next_cursor
        assert cursor is not None
    assert told == records


def test_records_leave_room_for_the_nearest_contacts(handlers):
    for number in range(1, 17):
        handlers.table.answered(contact(number), 0.0)
    for number in range(2, 20):
        store(handlers, signed(number))
    values = ask(handlers, find_value(key("k")))
    assert len(values.records) >= 2
    assert len(values.contacts) >= 4


@pytest.mark.parametrize("token", [bytes(8), None])
def test_a_token_of_another_address_key_or_time_is_refused(handlers, token):
    record = signed()
    if token is None:
        token = ask(handlers, find_node(record.key), contact(8)).token
    reply = store(handlers, record, contact(7), token=token)
    assert isinstance(reply, Refused)
    assert reply.reason == "token"
    other_port = Contact(contact(7).public_key, Address(contact(7).address.host, 9))
    assert isinstance(
        store(handlers, record, other_port, token=ask(handlers, find_node(record.key), contact(7)).token), Refused
    )
    other_key = ask(handlers, find_node(key("other")), contact(7)).token
    assert isinstance(store(handlers, record, contact(7), token=other_key), Refused)
    good = ask(handlers, find_value(record.key), contact(7), now=10.0).token
    assert isinstance(store(handlers, record, token=good, now=10.0 + 2 * TOKEN_ROTATION_S), Refused)
    assert isinstance(store(handlers, record, token=good, now=10.0 + TOKEN_ROTATION_S), Stored)


@pytest.mark.parametrize(
    "spoil",
    [
        {"value": b"other"},
        {"sequence": 99},
        {"lifetime": 301},
        {"public_key": identity(3).public_key},
        {"signature": bytes(64)},
    ],
)
def test_a_record_that_its_publisher_did_not_sign_is_dropped(handlers, spoil):
    with pytest.raises(BadMessage):
        store(handlers, attrs.evolve(signed(), **spoil))
    assert len(handlers.store) == 0


def test_a_record_of_another_swarm_is_dropped(handlers):
    handlers.network = Network("another")
    with pytest.raises(BadMessage):
        store(handlers, signed())


@pytest.mark.parametrize(("issued", "wall_now"), [(EPOCH + 61, EPOCH), (EPOCH, EPOCH + 300)])
def test_a_record_from_the_future_or_the_past_is_refused(handlers, issued, wall_now):
    reply = store(handlers, signed(issued=issued), wall_now=wall_now)
    assert isinstance(reply, Refused)
    assert reply.reason == "time"


def test_a_rollback_is_refused_and_told_what_is_newer(handlers):
    newer = signed(sequence=5)
    store(handlers, newer)
    reply = store(handlers, signed(sequence=4))
    assert isinstance(reply, Refused)
    assert reply.newer == encode_record(newer)
    assert ask(handlers, find_value(key("k"))).records == (encode_record(newer),)


def test_a_withdrawal_is_served_so_that_readers_hear_of_it(handlers):
    store(handlers, signed(sequence=1))
    withdrawal = signed(sequence=2, lifetime=0, value=b"")
    assert isinstance(store(handlers, withdrawal), Stored)
    assert ask(handlers, find_value(key("k"))).records == (encode_record(withdrawal),)


def test_a_key_far_from_us_is_refused(handlers):
    target = key("k")
    nearer = [contact(n) for n in range(1, 400)]
    nearer = [peer for peer in nearer if distance(peer.node_id, target) < distance(ME.node_id, target)]
    for peer in nearer[:15]:
        handlers.table.answered(peer, 0.0)
    assert isinstance(store(handlers, signed()), Stored)
    for peer in nearer[15:]:
        handlers.table.answered(peer, 0.0)
    reply = store(handlers, signed(sequence=2))
    assert isinstance(reply, Refused)
    assert reply.reason == "far"


@settings(max_examples=200, deadline=None)
@given(
    room=st.integers(150, MAX_PAYLOAD_BYTES),
    contacts=st.integers(0, 30),
    publishers=st.integers(0, 10),
    v6=st.booleans(),
    value=st.integers(0, 230),
    model=st.sampled_from([None, "model-01", "absent"]),
)
def test_no_reply_is_longer_than_its_room(room, contacts, publishers, v6, value, model):
    def host(number):
        return f"fd00::{number:x}:1:2:3" if v6 else None

    long_name = state("m" * 96)
    handlers = Handlers(
        own_id=ME.node_id,
        network=NETWORK,
        table=RoutingTable(ME.node_id, k=16),
        store=RecordStore(),
        tokens=WriteTokens(bytes(32)),
        rng=seeded(1),
        k=16,
        version="9" * 32,
        live_state=lambda model: (True, (long_name,) * 20),
    )
    for number in range(contacts):
        handlers.table.answered(contact(number, host=host(number)), 0.0)
    asker = Contact(contact(99).public_key, Address("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535))
    for number in range(2, 2 + publishers):
        store(handlers, signed(number, value=bytes(value)), asker)
    for request in (
        Ping(transaction=TRANSACTION, client=False, model=model),
        find_node(key("k")),
        find_value(key("k")),
        find_value(key("k"), 2**31),
    ):
        reply = ask(handlers, request, asker, room=room)
        assert len(encode_rpc(reply)) <= room
        if isinstance(reply, Nodes) and room == MAX_PAYLOAD_BYTES:
            assert len(reply.contacts) == min(16, contacts)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_in_a_store_is_a_bad_message(record):
    handlers = Handlers(
        own_id=ME.node_id,
        network=NETWORK,
        table=RoutingTable(ME.node_id, k=16),
        store=RecordStore(),
        tokens=WriteTokens(bytes(32)),
        rng=seeded(1),
        k=16,
        version="",
        live_state=None,
    )
    with pytest.raises(BadMessage):
        ask(handlers, Store(transaction=TRANSACTION, client=False, token=bytes(8), record=record))


def test_one_address_of_a_lan_that_fills_the_store_evicts_itself(handlers):
    handlers.store = RecordStore(max_keys=4)
    flooder, other = contact(8, host="192.168.0.8"), contact(9, host="192.168.0.9")
    for number in range(4):
        assert isinstance(store(handlers, signed(name=f"{number}"), flooder), Stored)
    assert isinstance(store(handlers, signed(3, "other"), other), Stored)
    assert isinstance(store(handlers, signed(name="5"), flooder), Refused)
