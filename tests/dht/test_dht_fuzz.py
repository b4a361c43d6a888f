"""Whatever a member of the swarm sends in a proper box, the node lives, answers briefly, and keeps its bounds."""

import os

import msgpack
import trio
from swarms import Swarm, identity, key, seeded

from llamanet.wire.envelope import HEADER_BYTES, MAC_BYTES, MAX_PAYLOAD_BYTES, Envelope, Network
from llamanet.wire.record import encode_record, sign_record
from llamanet.wire.rpc import (
    Address,
    Contact,
    FindNode,
    FindValue,
    Nodes,
    Ping,
    Pong,
    Refused,
    Store,
    Stored,
    Values,
    encode_rpc,
)

CASES = 8000
HOME = Address("127.9.9.9", 9)  # the rate of this machine itself is not limited


def plain(rng, depth=0):
    """Any plain value at all, the ones at the edges more often."""
    kind = rng.randrange(9 if depth < 5 else 7)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([0, 1, -1, 2**16, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, -(2**63)])
    if kind == 2:
        return rng.choice([0.0, -1.0, 1e38, float("nan"), float("inf")])
    if kind == 3:
        return rng.randbytes(rng.choice([0, 1, 4, 7, 8, 16, 31, 32, 33, 64, 400, 401]))
    if kind == 4:
        return rng.choice(["", "a", "ä" * 97, "\0", "x" * 33])
    if kind in (5, 6):
        return msgpack.ExtType(rng.randrange(128), b"x") if rng.random() < 0.05 else rng.randrange(256)
    if kind == 7:
        return [plain(rng, depth + 1) for _ in range(rng.randrange(20))]
    return {rng.choice(["a", "b", 1]): plain(rng, depth + 1) for _ in range(rng.randrange(4))}


def samples(rng):
    transaction = rng.randbytes(8)
    record = sign_record(
        identity(3), Network(), key=key("k"), sequence=1, issued_at=1_900_000_000, lifetime=60, value=b"v"
    )
    peer = Contact(identity(4).public_key, Address("fd00::9", 99))
    return [
        Ping(transaction=transaction, client=False, model="m"),
        FindNode(transaction=transaction, client=False, target=rng.randbytes(32)),
        FindValue(transaction=transaction, client=True, key=key("k"), cursor=3),
        Store(transaction=transaction, client=True, token=bytes(8), record=encode_record(record)),
        Pong(transaction=transaction, observed=HOME),
        Nodes(transaction=transaction, observed=HOME, token=bytes(8), contacts=(peer,)),
        Values(
            transaction=transaction,
            observed=HOME,
            token=bytes(8),
            records=(encode_record(record),),
            total=1,
            next_cursor=None,
            contacts=(peer,),
        ),
        Stored(transaction=transaction, observed=HOME),
        Refused(transaction=transaction, observed=HOME, reason="no", newer=encode_record(record)),
    ]


def spoilt(rng):
    """A payload that once was a message."""
    payload = bytearray(encode_rpc(rng.choice(samples(rng))))
    way = rng.randrange(5)
    if way == 0:
        for _ in range(rng.randrange(1, 4)):
            payload[rng.randrange(len(payload))] = rng.randrange(256)
    elif way == 1:
        del payload[rng.randrange(len(payload)) :]
    elif way == 2:
        fields = msgpack.unpackb(bytes(payload))
        fields[rng.randrange(len(fields))] = plain(rng)
        payload = bytearray(msgpack.packb(fields))
    elif way == 3:
        payload = bytearray(msgpack.packb(plain(rng)))
    else:
        payload = bytearray(rng.randbytes(rng.randrange(200)))
    return bytes(payload[:MAX_PAYLOAD_BYTES])


async def test_no_message_of_a_member_hurts(autojump_clock, nursery):
    rng = seeded(20)
    swarm = Swarm(nursery)
    nodes = await swarm.start_many(3)
    victim = nodes[0]
    envelope = Envelope(identity(666), Network())
    overlay = victim._overlay
    sent = []
    real_send = overlay.transport.send

    def send(datagram, address):
        if address == HOME:
            sent.append(len(datagram))
            return True
        return real_send(datagram, address)

    overlay.transport.send = send
    overlay.requests._send = send
    for _ in range(CASES):
        payload = spoilt(rng)
        introduction = rng.random() < 0.2
        datagram = (
            envelope.seal_introduction(payload) if introduction else envelope.seal(victim.identity.public_key, payload)
        )
        sent.clear()
        overlay.deliver(datagram, HOME)
        assert sum(sent) <= 3 * len(datagram)
        if rng.random() < 0.02:
            await trio.sleep(0.5)
    assert min(victim.health().drops[reason] for reason in ("message", "unasked")) > 100
    assert victim.health().requests_served > 100
    await trio.sleep(10)
    published = await nodes[1].publish(key("x"), b"v", lifetime=60)
    assert published.stored == 3
    assert {peer.node_id for peer in victim.contacts()} == {node.identity.node_id for node in nodes[1:]}


async def test_no_bytes_from_outside_hurt(autojump_clock, nursery):
    rng = seeded(21)
    swarm = Swarm(nursery)
    victim = await swarm.start(0)
    good = Envelope(identity(666), Network()).seal(victim.identity.public_key, os.urandom(30))
    for _ in range(CASES):
        datagram = bytearray(good if rng.random() < 0.7 else rng.randbytes(rng.randrange(1300)))
        for _ in range(rng.randrange(1, 4)):
            if datagram:
                datagram[rng.randrange(len(datagram))] = rng.randrange(256)
        del datagram[rng.choice([len(datagram), HEADER_BYTES, HEADER_BYTES + MAC_BYTES, 3]) :]
        victim._overlay.deliver(bytes(datagram), HOME)
    drops = victim.health().drops
    assert sum(drops.values()) == CASES
    assert min(drops["header"], drops["box"]) > 100
    assert victim.health().requests_served == 0
