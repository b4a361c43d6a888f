import re
from pathlib import Path

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from swarms import seeded, unsigned_record

from llamanet.dht.storage import Kept, Page, RecordStore, Refusal, Rejected, is_storable, kept_until
from llamanet.wire.record import MAX_LIFETIME_S, MAX_SKEW_S, encode_record

A, B, C = b"aaa", b"bbb", b"ccc"


def put(store, record, source=A, now=1000.0):
    return store.put(record, encode_record(record), source, now)


def read_all(store, key, *, now=1000.0, room=1000, cursor=None):
    """All pages from a random place on, as a reader asks for them."""
    records, pages = [], 0
    while True:
        page = store.page(key, cursor, room=room, most=8, now=now, rng=seeded(pages))
        records += page.records
        pages += 1
        if page.next_cursor is None or len(records) >= page.total:
            return records
        cursor = page.next_cursor


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.integers(0, 5), st.integers(0, 4), st.integers(0, 300), st.sampled_from([A, B, C])
        ),
        max_size=120,
    )
)
def test_it_holds_what_a_plain_dictionary_would(steps):
    store = RecordStore()
    model = {}
    now = 1000.0
    for key, publisher, sequence, lifetime, source in steps:
        now += 7.0
        record = unsigned_record(key, publisher, sequence, issued=int(now), lifetime=lifetime)
        model = {slot: old for slot, old in model.items() if kept_until(old) > now}
        slot = (record.key, record.publisher)
        old = model.get(slot)
        outcome = put(store, record, source, now)
        if old is None or old.sequence < sequence:
            model[slot] = record
            assert outcome == Kept()
        elif old.sequence > sequence:
            assert outcome == Rejected("a newer record is stored", encode_record(old))
        assert len(store) == len(model)
        assert store.bytes == sum(len(encode_record(kept)) for kept in model.values())
    for key in {record.key for record in model.values()}:
        expected = {encode_record(kept) for (of, _), kept in model.items() if of == key}
        assert set(read_all(store, key, now=now)) == expected
        assert {encode_record(kept) for kept in store.records_of(key, now)} == expected
    store.expire(now + 2 * MAX_LIFETIME_S + MAX_SKEW_S)
    assert (len(store), store.bytes) == (0, 0)


@given(st.integers(1, 60), st.integers(420, 1000), st.integers(0, 2**32 - 1))
def test_pages_tell_every_record_in_turn(publishers, room, cursor):
    store = RecordStore()
    records = [unsigned_record(1, number) for number in range(publishers)]
    for record in records:
        put(store, record)
    for start in (None, cursor):
        told = read_all(store, records[0].key, room=room, cursor=start)
        assert set(told[:publishers]) == set(map(encode_record, records))  # past these, the last page begins again


def test_a_page_never_exceeds_its_room():
    store = RecordStore()
    for number in range(20):
        put(store, unsigned_record(1, number))
    for room in range(0, 1200, 50):
        page = store.page(unsigned_record(1, 0).key, None, room=room, most=8, now=1000.0, rng=seeded(room))
        assert sum(len(record) + 3 for record in page.records) <= room
        assert page.total == 20


def test_first_pages_are_a_fair_sample():
    store = RecordStore()
    records = [unsigned_record(1, number) for number in range(20)]
    for record in records:
        put(store, record)
    rng = seeded(5)
    counts = dict.fromkeys(map(encode_record, records), 0)
    for _ in range(4000):
        page = store.page(records[0].key, None, room=300, most=1, now=1000.0, rng=rng)
        counts[page.records[0]] += 1
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 43.8  # 19 degrees of freedom, p = 0.001


def test_an_unknown_key_has_an_empty_page():
    assert RecordStore().page(bytes(32), None, room=1000, most=8, now=0.0, rng=seeded(1)) == Page()


def test_records_go_when_they_expire_and_not_before():
    store = RecordStore()
    put(store, unsigned_record(1, 1, issued=1000, lifetime=300))
    assert len(store.records_of(unsigned_record(1, 1).key, 1299.9)) == 1
    assert len(store.records_of(unsigned_record(1, 1).key, 1300.0)) == 0
    assert len(store) == 0


def test_a_replay_cannot_undo_a_withdrawal():
    store = RecordStore()
    old = unsigned_record(1, 1, 1, issued=1000, lifetime=MAX_LIFETIME_S)
    put(store, old)
    put(store, unsigned_record(1, 1, 2, issued=1001, lifetime=0), now=1001.0)
    last_moment = old.expires_at - 0.1
    assert is_storable(old, last_moment)
    assert isinstance(put(store, old, now=last_moment), Rejected)


def test_what_may_be_stored():
    record = unsigned_record(1, 1, issued=1000, lifetime=300)
    assert is_storable(record, 1000.0 - MAX_SKEW_S)
    assert not is_storable(record, 999.0 - MAX_SKEW_S)
    assert not is_storable(record, 1300.0)
    withdrawal = unsigned_record(1, 1, issued=1000, lifetime=0)
    assert is_storable(withdrawal, 1299.0)
    assert not is_storable(withdrawal, 999.0 - MAX_SKEW_S)
    assert not is_storable(withdrawal, 1000.0 + MAX_LIFETIME_S + MAX_SKEW_S)


def test_another_record_with_the_same_number_is_refused():
    store = RecordStore()
    put(store, unsigned_record(1, 1, 1))
    assert put(store, unsigned_record(1, 1, 1)) == Kept()
    assert isinstance(put(store, unsigned_record(1, 1, 1, lifetime=299)), Rejected)


def test_a_flood_of_publishers_evicts_the_flooder():
    store = RecordStore(secret=b"s", max_publishers_per_key=40)
    for number in range(10):
        put(store, unsigned_record(1, number), source=B)
    outcomes = [put(store, unsigned_record(1, number), source=A) for number in range(100, 1100)]
    assert outcomes[-1] == Rejected("sample")
    assert 10 < len(store) <= 40
    for number in range(50, 60):
        assert put(store, unsigned_record(1, number), source=C) == Kept()
    kept = {record.public_key for record in store.records_of(unsigned_record(1, 0).key, 1000.0)}
    assert {unsigned_record(1, number).public_key for number in (*range(10), *range(50, 60))} <= kept


def test_a_flood_of_bytes_evicts_the_flooder():
    store = RecordStore(max_bytes=5000)
    put(store, unsigned_record(1, 1), source=B)
    flood = [put(store, unsigned_record(2, number), source=A) for number in range(100, 200)]
    assert flood[-1] == Rejected("the store is full")
    for number in range(2, 9):
        assert put(store, unsigned_record(1, number), source=B) == Kept()
    assert store.bytes <= 5000
    assert len(store.records_of(unsigned_record(1, 1).key, 1000.0)) == 8


def test_a_flood_of_keys_evicts_the_flooder():
    store = RecordStore(max_keys=10)
    put(store, unsigned_record(0, 1), source=B)
    for number in range(1, 40):
        put(store, unsigned_record(number, number), source=A)
    assert put(store, unsigned_record(99, 2), source=C) == Kept()
    assert len(store.records_of(unsigned_record(0, 1).key, 1000.0)) == 1
    assert len(store) == 10


def test_an_update_from_the_heaviest_source_is_kept_in_a_full_store():
    store = RecordStore(max_bytes=5000)
    numbers = list(range(100, 200))
    while put(store, unsigned_record(2, numbers.pop()), source=A) == Kept():
        pass
    update = unsigned_record(2, 199, 2)
    assert put(store, update, source=A) == Kept()
    assert update in store.records_of(update.key, 1000.0)


def test_eviction_asks_little_however_many_sources_there_are():
    store = RecordStore(max_bytes=2_000_000)
    for number in range(5000):
        put(store, unsigned_record(number % 4000, number), source=b"%d" % number)
    for number in range(5000):
        put(store, unsigned_record(number % 4000, 10_000 + number), source=A)
    assert max(store._bytes_of.values()) == store._bytes_of[store._heaviest_source()]
    assert len(store._heaviest) <= 2 * len(store._bytes_of) + 65
    assert store.bytes == sum(store._bytes_of.values()) <= 2_000_000


def test_what_is_larger_than_the_whole_store_is_refused():
    assert isinstance(put(RecordStore(max_bytes=10), unsigned_record(1, 1)), Rejected)


def test_a_publisher_has_few_keys():
    store = RecordStore(max_keys_per_publisher=3)
    for number in range(3):
        assert put(store, unsigned_record(number, 1)) == Kept()
    assert isinstance(put(store, unsigned_record(3, 1)), Rejected)
    assert put(store, unsigned_record(0, 1, 2)) == Kept()


def test_updates_for_ever_need_no_more_memory():
    store = RecordStore()
    for sequence in range(1, 2000):
        put(store, unsigned_record(1, 1, sequence, issued=1000 + sequence), now=1000.0 + sequence)
    assert len(store) == 1
    assert len(store._expiries) < 100
    assert sum(map(len, store._expiries_of.values())) < 100


def test_a_refused_update_leaves_the_old_record():
    store = RecordStore(max_bytes=600)
    old = unsigned_record(1, 1)
    assert put(store, old, A) == Kept()
    heavy = unsigned_record(2, 2)
    for publisher in range(2, 5):
        put(store, unsigned_record(2, publisher), B)
    held = store.bytes
    larger = attrs.evolve(old, sequence=2, value=bytes(300))
    assert isinstance(put(store, larger, B), Rejected)
    assert store.records_of(old.key, 1000.0) == [old]
    assert len(store.records_of(heavy.key, 1000.0)) == 3
    assert (store.bytes, len(store)) == (held, 4)
    store.expire(old.expires_at)
    assert (store.bytes, len(store)) == (0, 0)


def test_the_refusals_that_readers_of_the_protocol_know_are_those_that_are_sent():
    text = (Path(__file__).parents[2] / "docs/protocol.md").read_text()
    section = text.split("### Refusals of STORE")[1].split("|---|---|")[1].split("###")[0]
    told = set(re.findall(r"^\| `([a-z ]+)` \| [^|`]", section, re.MULTILINE))
    assert told == {refusal.value for refusal in Refusal} - {Refusal.OTHER}
