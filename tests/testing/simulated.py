"""Small simulated networks and keys, for these tests."""

import hashlib

from llamanet.testing.simulator import Simulation


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def grown(size=100, *, unreachable=0.0, **options):
    sim = Simulation(**{"seed": 1, **options})
    sim.grow(size, unreachable=unreachable)
    return sim
