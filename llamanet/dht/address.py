"""Our own address as peers see it: each reply tells it, and so the peers vote. Pure.

Rules:
- One subnet has one vote, its latest: keys and addresses in it cost its owner nothing.
- Votes are kept of a bounded number of subnets, the latest ones.
- An address that somebody announced is doubted when most votes that could have named it name another. A vote could if
  it is of the same family, and of at least the same scope: a peer on our own site may well see another address than the
  world does, but nobody out in the world sees a private one. So what peers on this machine see, which is loopback
  whatever else is right, casts doubt on no address but a loopback one.
"""

from collections import Counter
from collections.abc import Collection

from llamanet.dht.distance import scope_of, subnet_of

MAX_VOTERS = 64


class AddressVotes:
    """What each of the last `MAX_VOTERS` subnets that answered us said of our address.

    On loopback and in private ranges each host counts as one.
    """

    def __init__(self) -> None:
        self._by_subnet: dict[bytes, str] = {}
        self._latest: tuple[str, str] | None = None
        """Voter and vote: most that is told was told just before, and changes nothing."""

    def add(self, voter: str, observed: str) -> None:
        """The peer at the host `voter` sees us at the host `observed`."""
        if self._latest == (voter, observed):
            return
        self._latest = (voter, observed)
        subnet = subnet_of(voter) or voter.encode()
        self._by_subnet.pop(subnet, None)
        self._by_subnet[subnet] = observed
        if len(self._by_subnet) > MAX_VOTERS:
            del self._by_subnet[next(iter(self._by_subnet))]

    def counted(self) -> Counter[str]:
        """The votes for each of our hosts."""
        return Counter(self._by_subnet.values())

    def ranked(self) -> tuple[str, ...]:
        """Our hosts as peers see them, the one with the most votes first."""
        return tuple(host for host, _ in self.counted().most_common())

    def instead_of(self, announced: Collection[str]) -> str | None:
        """The host that most votes name instead of the IP addresses `announced`; None if those are right, or may be."""
        for host in announced:
            scope, ipv6 = scope_of(host), ":" in host
            comparable = Counter(
                {
                    seen: votes
                    for seen, votes in self.counted().items()
                    if (":" in seen) == ipv6 and scope is not None and (scope_of(seen) or -1) >= scope
                }
            )
            others = Counter({seen: votes for seen, votes in comparable.items() if seen not in announced})
            if 2 * others.total() > comparable.total():
                return others.most_common(1)[0][0]
        return None
