from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarms import contact

from llamanet.dht.distance import (
    Scope,
    common_prefix_bits,
    distance,
    number_of,
    random_id_sharing,
    scope_of,
    source_prefix,
    subnet_of,
    usable,
)
from llamanet.wire.identity import NodeId
from llamanet.wire.rpc import Address

ids = st.binary(min_size=32, max_size=32)


@given(ids, ids, ids)
def test_distance_is_a_metric(a, b, c):
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, c) <= distance(a, b) + distance(b, c)


@given(ids, st.integers(0, 255), st.integers(0, 2**32))
def test_a_random_id_shares_exactly_the_bits_asked_for(own, bits, seed):
    drawn = random_id_sharing(NodeId(own), bits, Random(seed))
    assert len(drawn) == 32
    assert common_prefix_bits(number_of(own), number_of(drawn)) == bits


@pytest.mark.parametrize(
    ("host", "scope"),
    [
        ("127.0.0.1", Scope.LOOPBACK),
        ("::1", Scope.LOOPBACK),
        ("192.168.3.4", Scope.PRIVATE),
        ("fd00::1", Scope.PRIVATE),
        ("8.8.8.8", Scope.PUBLIC),
        ("2606:4700::1", Scope.PUBLIC),
        ("0.0.0.0", None),
        ("::", None),
        ("224.0.0.1", None),
        ("ff02::1", None),
        ("255.255.255.255", None),
        ("169.254.1.1", None),
        ("fe80::1", None),
        ("::ffff:8.8.8.8", None),
    ],
)
def test_scope_of(host, scope):
    assert scope_of(host) is scope


def test_a_far_peer_may_not_send_us_to_our_own_site():
    def is_usable(told, by):
        return bool(usable([contact(1, host=told)], by))

    assert is_usable("127.0.0.1", "127.0.0.1")
    assert is_usable("192.168.1.1", "127.0.0.1")
    assert is_usable("8.8.8.8", "192.168.1.1")
    assert not is_usable("127.0.0.1", "192.168.1.1")
    assert not is_usable("192.168.1.1", "8.8.8.8")
    assert not is_usable("224.0.0.1", "127.0.0.1")
    assert not is_usable("8.8.8.8", "224.0.0.1")


def test_subnets_are_those_of_public_addresses_only():
    assert subnet_of("8.8.8.8") == subnet_of("8.8.8.9") != subnet_of("8.8.9.8")
    assert subnet_of("2606:4700:1::1") == subnet_of("2606:4700:1:ffff::1") != subnet_of("2606:4700:2::1")
    assert subnet_of("10.0.0.1") is None


def test_a_source_is_a_public_subnet_or_a_single_private_address():
    assert source_prefix(Address("8.8.8.8", 1)) == source_prefix(Address("8.8.8.9", 2)) == bytes([8, 8, 8])
    assert source_prefix(Address("2606:4700:1::1", 1)) == bytes.fromhex("260647000001")
    assert source_prefix(Address("10.0.0.1", 1)) == source_prefix(Address("10.0.0.1", 2)) == bytes([10, 0, 0, 1])
    assert source_prefix(Address("10.0.0.1", 1)) != source_prefix(Address("10.0.0.2", 1))
    assert source_prefix(Address("fd00::1", 1)) != source_prefix(Address("fd00::2", 1))
