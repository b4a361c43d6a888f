"""Asking nodes how they are, by UDP: alive or not, how far, how busy.

Rules:
- All are asked at once, and each at every host of its record; the first host that answers is where the node is.
- Once somebody has answered, the others have as long again, and at least `GRACE_S`, to answer too. Who comes later is
  not waited for, but heard.
- Datagrams get lost: who is silent is asked once more before being given up.
"""

import math
from collections.abc import Callable, Sequence

import attrs
import trio

from llamanet.client.directory import Service
from llamanet.client.selection import Candidate
from llamanet.dht.bootstrap import resolve
from llamanet.dht.service import Dht, Pinged
from llamanet.errors import RpcTimeout
from llamanet.wire.identity import PublicKey
from llamanet.wire.rpc import Address, Contact

TIMEOUT_S = 0.6
"""Of one PING. Twice that is the longest that nodes are waited for when all are dead."""
TRIES = 2
GRACE_S = 0.1

Heard = Callable[[Service, Candidate | None], None]
"""Takes what a probe of a service brought; None if nothing."""


@attrs.frozen
class Answer:
    """A node's PONG, and the address that it came from."""

    address: Address
    pinged: Pinged


async def ask(dht: Dht, public_key: PublicKey, hosts: Sequence[str], port: int, model: str | None) -> Answer | None:
    """The first PONG of the node at any of `hosts`; None if it is silent."""
    answers: list[Answer] = []

    async def ask_at(address: Address) -> None:
        for _ in range(TRIES):
            try:
                pinged = await dht.ping(Contact(public_key, address), model=model, timeout=TIMEOUT_S)
            except RpcTimeout:
                continue
            answers.append(Answer(address, pinged))
            nursery.cancel_scope.cancel()
            return

    async def ask_host(host: str) -> None:
        try:
            addresses = await resolve(host, port)
        except OSError:
            return
        for address in addresses:
            nursery.start_soon(ask_at, address)

    async with trio.open_nursery() as nursery:
        for host in hosts:
            nursery.start_soon(ask_host, host)
    return answers[0] if answers else None


async def probe(
    dht: Dht, nursery: trio.Nursery, services: Sequence[Service], heard: Heard, *, patiently: bool = False
) -> list[Candidate]:
    """Those of `services` whose nodes answer in time; `patiently` waits for each until it is given up.

    Each answer, a late one too, is told to `heard`, and so is whoever gives none. The probes run in `nursery`.
    """
    candidates: list[Candidate] = []
    left = len(services)
    news = trio.Event()
    start = trio.current_time()

    async def probe_one(service: Service) -> None:
        nonlocal left
        candidate = await _probe_one(dht, service)
        heard(service, candidate)
        if candidate is not None:
            candidates.append(candidate)
        left -= 1
        news.set()

    for service in services:
        nursery.start_soon(probe_one, service)
    deadline = math.inf
    while left and trio.current_time() < deadline:
        with trio.CancelScope(deadline=deadline):
            await news.wait()
        news = trio.Event()
        if candidates and not patiently and deadline == math.inf:
            now = trio.current_time()
            deadline = now + max(GRACE_S, now - start)
    return list(candidates)


async def _probe_one(dht: Dht, service: Service) -> Candidate | None:
    facts = service.facts
    answer = await ask(dht, service.public_key, facts.hosts, facts.dht_port, service.model)
    if answer is None:
        return None
    pong = answer.pinged.pong
    for state in pong.models:
        if state.name == service.model:
            return Candidate(
                service=service,
                address=answer.address,
                rtt=answer.pinged.rtt,
                state=state,
                draining=pong.draining,
                at=trio.current_time(),
            )
    return None
