"""The draw at each position of a generation depends on (seed, position) alone.

So a stream that another node resumes draws what the first one would have drawn; no generator state has to travel.
"""

_MASK = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def position_seed(seed: int, position: int) -> int:
    """A 31-bit seed for the draw of the token at `position` (0 is the first generated token).

    It is the top 31 bits of the SplitMix64 output number `position` of the generator started at `seed`.
    (31 bits, because llama.cpp takes 0xFFFFFFFF to mean a random seed.)
    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 17's successor
    as published in java.util.SplittableRandom: mix64variant13 of state = seed + (position + 1) * golden gamma.
    """
    z = (seed + (position + 1) * _GOLDEN_GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 33
