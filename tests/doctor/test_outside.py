"""What the network's facts mean, and what silence does not."""

import attrs
import pytest

from llamanet.doctor.facts import BootstrapPeer, Clock, Dial, Reached, Surroundings
from llamanet.doctor.finding import Level
from llamanet.doctor.outside import judge_surroundings

HOST = "8.8.4.1"
PEER = BootstrapPeer(peer="a:1", answered=True)
REACHED = Reached(host=HOST, port=8000)
DIAL = Dial(peer="9.9.9.9:1", host=HOST, udp=True, tcp=True)
WELL = Surroundings(
    peers=(PEER,),
    clocks=(Clock(peer="a:1", ahead=0.4),),
    dials=(DIAL,),
    dialable=True,
    announced=(HOST,),
    observed=(HOST,),
    reached=(REACHED,),
    contacts=1,
)


def bad(**changes):
    findings = judge_surroundings(attrs.evolve(WELL, **changes))
    return [(finding.check, finding.level.value) for finding in findings if finding.level is not Level.OK]


def says(**changes):
    findings = judge_surroundings(attrs.evolve(WELL, **changes))
    return " ".join(f"{finding.what} {finding.why}" for finding in findings if finding.level is not Level.OK)


def test_all_well():
    assert bad() == []


def test_bootstrap_peers():
    dead = BootstrapPeer(peer="b:1", closed=True)
    assert bad(peers=(PEER, dead)) == [("bootstrap", "warning")]
    assert bad(peers=(dead,)) == [("bootstrap", "error")]
    assert "b:1" in says(peers=(dead,))
    assert "has no address: odd" in says(peers=(BootstrapPeer(peer="b:1", unresolved="odd"),))
    assert "another node answers" in says(peers=(attrs.evolve(PEER, another=True),))
    assert bad(peers=(attrs.evolve(PEER, ours=True),)) == []


def test_a_node_of_another_swarm_than_the_doctor_was_told_of():
    assert bad(node_silent=True) == [("swarm-key", "warning")]


def test_a_node_here_that_announces_something_else_than_the_doctor_was_given():
    assert bad(announced_instead=("9.9.9.1",)) == [("announce", "warning")]
    assert f"announces 9.9.9.1, and not {HOST}" in says(announced_instead=("9.9.9.1",))


def test_silence_is_told_as_silence():
    silent = BootstrapPeer(peer="b:1")
    for words in "Nothing runs there", "UDP is blocked", "we have none":
        assert words in says(peers=(silent,))
    assert "we have none" not in says(peers=(silent,), private=True)
    alive = attrs.evolve(silent, tcp_port=8000)
    assert "Nothing runs there" not in says(peers=(alive,))
    assert "a node answers on TCP port 8000" in says(peers=(alive,))
    assert bad(peers=(attrs.evolve(silent, open_swarm=True),), private=True) == [("swarm-key", "error")]


@pytest.mark.parametrize(("ahead", "level"), [(9, None), (-9, None), (20, "warning"), (-20, "warning"), (45, "error")])
def test_clocks(ahead, level):
    clocks = tuple(Clock(peer=str(number), ahead=ahead) for number in range(3))
    liar = Clock(peer="liar", ahead=-9000.0)
    assert bad(clocks=(*clocks, liar)) == ([("clock", level)] if level else [])
    if level:
        assert f"{abs(ahead)} s {'behind' if ahead > 0 else 'ahead of'} the median of 4 peers" in says(
            clocks=(*clocks, liar)
        )


def test_one_other_clock_may_be_the_wrong_one():
    assert "a:1, the one peer to compare by" in says(clocks=(Clock(peer="a:1", ahead=300.0),))


def test_what_peers_far_away_see_counts():
    near = Dial(peer="127.0.0.1:1", host="127.0.0.1", udp=True, tcp=True)
    blocked = attrs.evolve(DIAL, udp=False)
    assert bad(dials=(near, blocked)) == [("udp", "error")]
    assert bad(dials=(blocked, DIAL)) == [], "one that gets through is enough: a datagram may be lost"
    assert bad(dials=(near,)) == []
    assert bad(dials=()) == [("outside", "warning")]
    assert bad(dials=(), dialable=False) == []
    assert bad(dials=(attrs.evolve(DIAL, tcp=False),)) == [("tcp", "error")]


def test_where_others_are_told_to_connect():
    nobody = attrs.evolve(REACHED, problem="Connection refused")
    assert bad(reached=(attrs.evolve(REACHED, another=True),)) == [("endpoint", "error")]
    assert bad(reached=(nobody,)) == [], "behind a router that does not turn back what comes from inside"
    assert bad(reached=(nobody,), dials=(attrs.evolve(DIAL, tcp=False),)) == [("tcp", "error"), ("endpoint", "error")]
    assert bad(reached=(nobody,), dials=(), dialable=False) == [("endpoint", "warning")]
    elsewhere = attrs.evolve(nobody, host="8.8.8.8")
    assert bad(reached=(elsewhere,), announced=("8.8.8.8",), observed_instead=HOST) == [
        ("endpoint", "error"),
        ("announce", "warning"),
    ]


def test_a_client_alone():
    assert [finding.check for finding in judge_surroundings(Surroundings(peers=(PEER,)))] == ["bootstrap"]
