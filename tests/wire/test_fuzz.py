"""A seeded share of what `fuzz_wire.py` does at length."""

import fuzz_wire
import pytest


@pytest.mark.parametrize("target", fuzz_wire.targets(), ids=lambda target: target.name)
def test_only_bad_message_escapes_a_decoder(target):
    fuzz_wire.fuzz(target, 100_000, seed=7)
