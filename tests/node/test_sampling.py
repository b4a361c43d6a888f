from llamanet.node.sampling import position_seed


def test_position_seed_is_splitmix64() -> None:
    # The first outputs of SplitMix64 for seed 1234567, as published with the xoshiro generators.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [position_seed(1234567, position) for position in range(5)] == [value >> 33 for value in known]


def test_position_seeds_of_neighbours_differ() -> None:
    seeds = {position_seed(seed, position) for seed in range(100) for position in range(100)}
    assert len(seeds) > 9_990
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_largest_seed_is_taken() -> None:
    assert 0 <= position_seed(2**63 - 1, 2**31) < 2**31
