"""Asking nodes how they are, by UDP: alive or not, how far, how busy. A dead node costs nobody any waiting.

Rules:
- All are asked at once, and each at every host of its record; the first host that answers is where the node is.
- Once somebody has answered, the others have as long again, and at least `GRACE_S`, to answer too.
- Datagrams get lost: who is silent is asked once more before being given up.
"""

from collections.abc import Sequence

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
GRACE_S = 0.03


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


async def probe(dht: Dht, services: Sequence[Service], *, patiently: bool = False) -> list[Candidate]:
    """Those of `services` whose nodes answer; `patiently` waits for each until it is given up."""
    candidates: list[Candidate] = []
    start = trio.current_time()

    async def probe_one(service: Service) -> None:
        facts = service.facts
        answer = await ask(dht, service.public_key, facts.hosts, facts.dht_port, service.model)
        if answer is None:
            return
        pong = answer.pinged.pong
        for state in pong.models:
            if state.name == service.model:
                candidate = Candidate(
                    service=service,
                    address=answer.address,
                    rtt=answer.pinged.rtt,
                    state=state,
                    draining=pong.draining,
                )
                candidates.append(candidate)
        if candidates and not patiently:
            now = trio.current_time()
            grace.deadline = min(grace.deadline, now + max(GRACE_S, now - start))

    with trio.CancelScope() as grace:
        async with trio.open_nursery() as nursery:
            for service in services:
                nursery.start_soon(probe_one, service)
    return candidates
