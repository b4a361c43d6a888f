"""What the network's facts mean. Pure, as `checks.py`. What silence cannot tell is not claimed."""

from collections.abc import Iterator
from statistics import median

from llamanet.doctor.facts import BootstrapPeer, Clock, Dial, Reached, Surroundings
from llamanet.doctor.finding import Finding, error, ok, warning
from llamanet.wire.record import MAX_SKEW_S

SMALL_SKEW_S = 10.0
"""Seconds that clocks may be apart and nobody mind."""


def judge_surroundings(facts: Surroundings) -> list[Finding]:
    """What the network's facts mean."""
    return list(_judge(facts))


def _judge(facts: Surroundings) -> Iterator[Finding]:
    for peer in facts.peers:
        yield bootstrap_peer(peer, private=facts.private, alone=not any(other.answered for other in facts.peers))
    if facts.node_silent:
        yield warning(
            "swarm-key",
            "the node that runs here does not hear the doctor",
            "By its name or its key it is in another swarm than the doctor was told of, which sees nothing of it.",
            "Give the doctor the node's own --swarm-name and --swarm-key-file, or --join.",
        )
    if facts.clocks:
        yield clock(facts.clocks)
    if facts.dialable:
        yield from dials(facts.dials)
    elif facts.announced or facts.reached:
        yield ok("outside", "no other node is there that could dial back, so nothing is known of outside")
    for reached in facts.reached:
        yield endpoint(reached, facts)
    if facts.announced_instead:
        yield warning(
            "announce",
            f"the node that runs here announces {', '.join(facts.announced_instead)}, and not "
            f"{', '.join(facts.announced)}, which the doctor was given",
            "It was started with another --announce (ANNOUNCE); others are told that, and not what is looked at here.",
            "Start the node anew with the setting that the doctor has, or ask the doctor without it.",
        )
    if facts.observed_instead is not None:
        announced = ", ".join(facts.announced)
        yield warning(
            "announce",
            f"the announced address {announced} is not where peers see this machine, which is {facts.observed_instead}",
            "Others connect to what is announced; if that does not lead here, they fail.",
            f"Announce {facts.observed_instead} (--announce, ANNOUNCE), leave it out, or forward both ports.",
        )


def bootstrap_peer(peer: BootstrapPeer, *, private: bool, alone: bool) -> Finding:
    """A bootstrap peer; `alone`: none answers; `private`: we have a swarm key."""
    bad = error if alone else warning
    why = "No other bootstrap peer answers, so the swarm cannot be joined." if alone else "One peer fewer to join by."
    if peer.ours:
        return ok("bootstrap", f"the bootstrap peer {peer.peer} is the node that runs here")
    if peer.unresolved is not None:
        do = "Correct the name, or give an address."
        return bad("bootstrap", f"the bootstrap peer {peer.peer} has no address: {peer.unresolved}", why, do)
    if peer.another:
        return bad(
            "bootstrap",
            f"at the bootstrap peer {peer.peer} another node answers, whose key is not the one given",
            f"Nobody but the one with that key will do. {why}",
            "Ask its owner for a new invitation, or leave the key out.",
        )
    if peer.answered:
        return ok("bootstrap", f"the bootstrap peer {peer.peer} answers")
    if peer.closed:
        return bad(
            "bootstrap",
            f"nothing listens at the bootstrap peer {peer.peer}: its machine says that the UDP port is closed",
            why,
            "Start the node there, or correct the port (it is the DHT's, UDP).",
        )
    if peer.open_swarm:
        return bad(
            "swarm-key",
            f"the bootstrap peer {peer.peer} answers those without a swarm key, and not those with ours",
            "It is in the public swarm, and we are told to join a private one; the two do not hear each other.",
            "Give that node the swarm key too, or leave --swarm-key-file (SWARM_KEY_FILE) out here.",
        )
    name = "swarm key or name" if private else "swarm key (we have none) or name"
    if peer.tcp_port is not None:
        return bad(
            "bootstrap",
            f"the bootstrap peer {peer.peer} is silent, though a node answers on TCP port {peer.tcp_port} there",
            f"Either UDP is blocked on the way, or its {name} is another. {why}",
            "Compare the swarm's name and key with that node's (an invitation holds both), and its firewall's rules.",
        )
    return bad(
        "bootstrap",
        f"the bootstrap peer {peer.peer} is silent",
        f"Nothing runs there, UDP is blocked on the way, or its {name} is another: silence does not tell. {why}",
        "See whether a node runs there, that its UDP port is open, and compare the swarm's name and key with its own.",
    )


def clock(clocks: tuple[Clock, ...]) -> Finding:
    """This machine's clock beside those of peers. One peer alone may be the one that is wrong."""
    behind = median(clock.ahead for clock in clocks)
    ours = f"{abs(behind):.0f} s {'behind' if behind > 0 else 'ahead of'}"
    whose = f"the median of {len(clocks)} peers" if len(clocks) > 1 else f"{clocks[0].peer}, the one peer to compare by"
    if abs(behind) <= SMALL_SKEW_S:
        return ok("clock", f"this machine's clock agrees with {whose}")
    bad = error if abs(behind) > MAX_SKEW_S / 2 else warning
    return bad(
        "clock",
        f"this machine's clock is {ours} {whose}",
        f"Records say when they were issued: peers refuse those of a clock that is {MAX_SKEW_S} s ahead, and those of "
        "one that is behind expire too early, so others do not find this node.",
        "Set the clock by the network (timedatectl set-ntp true), here or at that peer.",
    )


def dials(facts: tuple[Dial, ...]) -> Iterator[Finding]:
    """What peers found when they dialled this machine. Those on it count only if there are no others."""
    outside = [dial for dial in facts if dial.outside] or facts
    where = "from outside" if any(dial.outside for dial in facts) else "from this machine; no peer is elsewhere"
    if not outside:
        yield warning(
            "outside",
            "no peer dialled back: they are too old to know how, or too busy",
            "Whether strangers reach this node is not known.",
            "Try again in a minute.",
        )
        return
    who = ", ".join(dial.peer for dial in outside)
    if any(dial.udp for dial in outside):
        yield ok("udp", f"the UDP port is reached ({where}; by {who})")
    else:
        yield error(
            "udp",
            f"the UDP port is not reached by who was not spoken to before (tried by {who})",
            "Peers that this node asks do answer, but others cannot ask it: it holds no records, and is hardly found.",
            "Forward the UDP port (--dht-port) on the router, to the same number, and open it in the firewall.",
        )
    if any(dial.tcp for dial in outside):
        yield ok("tcp", f"the TCP port is reached ({where}; by {who})")
    else:
        yield error(
            "tcp",
            f"the TCP port is not reached (tried by {who})",
            "Clients find the node, and cannot ask it.",
            "Forward the TCP port (--port) on the router, to the same number, and open it in the firewall.",
        )


def endpoint(reached: Reached, facts: Surroundings) -> Finding:
    """Whether a connection to where others are told to connect comes out here."""
    place = f"{reached.host} port {reached.port}"
    where = "announced" if reached.host in facts.announced else "observed"
    if reached.another:
        return error(
            "endpoint",
            f"at the {where} address {place} another node answers: its TLS key is not this node's",
            "Clients that connect there refuse it, and do not reach this node.",
            "Announce this machine's own address (--announce, ANNOUNCE), or forward the port to this machine.",
        )
    if reached.problem is None:
        return ok("endpoint", f"a connection to the {where} address {place} comes out here")
    if reached.host in facts.observed and any(dial.tcp and dial.host == reached.host for dial in facts.dials):
        return ok("endpoint", f"peers reach {place}; this machine itself does not, as behind many routers")
    bad = warning if reached.host in facts.observed and not facts.dials else error
    return bad(
        "endpoint",
        f"the {where} address {place} does not lead here ({reached.problem})",
        "Clients are told to connect there.",
        "Announce an address that leads here (--announce, ANNOUNCE), or leave it out; forward the TCP port to here.",
    )
