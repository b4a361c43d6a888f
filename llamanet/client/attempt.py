"""One request at one node: is what comes what was asked for, and does it come in time?

Rules:
- A node that is silent for longer than its own pace explains is asked by UDP (`client/watch.py`). Dead: all streams
  there leave it at once, whichever of them asked. Alive: it is waited for as long as its own times explain, what we
  remember of them and what it says of itself, and then it hangs.
- Waiting in a queue is no silence, however long, nor is embedding many texts, while the node's steps end; a step that
  lasts and lasts is one.
- What happens here is remembered (`client/peers.py`): each attempt ends once, as failed, as busy or as finished.
"""

from random import Random

import attrs
import trio

from llamanet.client.connection import Answer, ConnectionPool, Exchange, OnState, Peer
from llamanet.client.directory import Directory
from llamanet.client.hedge import HedgeBudget
from llamanet.client.lobby import Lobby
from llamanet.client.peers import PeerMemory
from llamanet.client.pool import ProbePool
from llamanet.client.probe_budget import ProbeBudget
from llamanet.client.selection import Candidate, estimated_ttft
from llamanet.client.watch import Watch
from llamanet.dht.service import Dht
from llamanet.errors import NodeFailed
from llamanet.wire.inference import CAPABILITY_LIVE_STATE, Accepted, Embed, Generate, Tokens
from llamanet.wire.rpc import Contact
from llamanet.wire.state import ModelState

SILENCE_S = 0.5
"""The least silence after which a node is asked whether it is alive, before the first token..."""
GAP_SILENCE_S = 0.3
"""...and between two..."""
MAX_SILENCE_S = 4.0
"""...and twice as long after each time that it was, up to this: who waits in a queue does not ask for ever..."""
SILENT_GAPS = 1.5
"""...and so many times its usual time between tokens."""
HUNG_ESTIMATES = 4
"""A node that is alive hangs when the first token takes so many times its own estimate: a long prompt, a queue..."""
HUNG_GAPS = 20
"""...or a further one so many times the usual time between tokens; or what we remember of it, if that is more."""
QUEUE_S = 30.0
"""The least patience while requests wait at a node that has not measured its own pace yet."""
EMBED_STEP_S = 30.0
"""The least patience with one batch of texts: how long it takes is measured by nobody."""
STUCK_SHARE = 0.5
"""A step has not ended if meanwhile the node's estimate grew by this share of the time that passed, or more. It grows
by all of it (`Rates.ttft_s`); the rest is for round trips that differ. By more than the inverse it grows, if nobody
came, because it was measured anew: a step has ended."""
GAP_WEIGHT = 0.2
"""Of the newest time between tokens, in their average."""


@attrs.frozen(kw_only=True)
class Access:
    """How all requests of one client reach nodes, and what they remember of them."""

    dht: Dht
    directory: Directory
    pool: ConnectionPool
    peers: PeerMemory
    lobby: Lobby
    hedges: HedgeBudget
    probes: ProbeBudget
    probed: ProbePool
    rng: Random
    watch: Watch = attrs.field(init=False)

    @watch.default
    def _make_watch(self) -> Watch:
        return Watch(self.dht, self.probes)


class Attempt:
    """A node that is answering, or should be. Times are on trio's clock."""

    def __init__(self, access: Access, candidate: Candidate, request: Generate | Embed, prompt_tokens: int) -> None:
        """Asks `candidate`; it must read about `prompt_tokens` before the first token."""
        service, facts = candidate.service, candidate.service.facts
        self.candidate = candidate
        self.spoke = False
        """It has delivered a token."""
        self.accepted_at: float | None = None
        """When it took the request."""
        self.cached_tokens = 0
        """How many of the prompt's tokens it found in its cache."""
        self.tool_format: str | None = None
        """How calls are written in its text."""
        self.asked_at = self.heard_at = trio.current_time()
        self._access = access
        self._prompt_tokens = prompt_tokens
        # Not what it says while a step lasts: a node that hangs says ever more.
        self._expected_s = estimated_ttft(candidate, prompt_tokens)
        self._embeds = isinstance(request, Embed)
        rate = candidate.state.tokens_per_second
        self._gap = min(1 / rate, MAX_SILENCE_S) if rate > 0 else 0.0
        self._ended = False
        request = attrs.evolve(request, model=service.model, digest=facts.digest)
        on_state: OnState | None = None
        if isinstance(request, Generate) and CAPABILITY_LIVE_STATE in facts.capabilities:
            request, on_state = attrs.evolve(request, live_state=True), self._hear_state
        self._exchange: Exchange = access.pool.submit(
            Peer(
                public_key=service.public_key,
                label=facts.label,
                host=candidate.address.host,
                port=facts.port,
                tls=facts.tls,
            ),
            request,
            on_state,
        )
        access.peers.began(service.node_id, self.asked_at)

    @property
    def label(self) -> str:
        """The node's."""
        return self.candidate.service.facts.label

    @property
    def hedge_at(self) -> float | None:
        """When a second node should be asked, for this one usually speaks sooner; None if that is not known."""
        after = self._access.peers.hedge_after_s(self.candidate.service.node_id, self._prompt_tokens)
        return None if after is None else self.asked_at + after

    async def receive(self) -> Answer:
        """The node's next answer. Raises `NodeFailed` if none will come. Cancelling it loses nothing."""
        pause = max(GAP_SILENCE_S if self.spoke else SILENCE_S, SILENT_GAPS * self._gap)
        while True:
            if (answer := await self._exchange.receive(trio.current_time() + pause)) is not None:
                self._heard(answer)
                return answer
            await self._check()
            # But not later than it would be taken to hang.
            left = self.heard_at + self._patience() - trio.current_time()
            pause = max(SILENCE_S, min(2 * pause, max(MAX_SILENCE_S, SILENT_GAPS * self._gap), left))

    def fail(self) -> None:
        """The node is to blame for the end."""
        if self._stop():
            self._access.peers.failed(self.candidate.service.node_id, trio.current_time())

    def busy(self, retry_after_s: float) -> None:
        """The node's queue is full."""
        if self._stop():
            self._access.peers.busy(self.candidate.service.node_id, retry_after_s, trio.current_time())

    def finish(self) -> None:
        """The node is not to blame for the end, or there is none: stop its work. May be called after any other end."""
        if self._stop():
            self._access.peers.finished(self.candidate.service.node_id, trio.current_time())

    def _stop(self) -> bool:
        if self._ended:
            return False
        self._ended = True
        self._exchange.cancel()
        return True

    def _heard(self, answer: Answer) -> None:
        now, node_id, peers = trio.current_time(), self.candidate.service.node_id, self._access.peers
        if isinstance(answer, Tokens):
            count = len(answer.token_ids)
            if self.spoke:
                seconds = now - self.heard_at
                self._gap += GAP_WEIGHT * (seconds / count - self._gap)
                peers.tokens(node_id, count, seconds, now)
            else:
                self.spoke = True
                peers.first_token(node_id, now - self.asked_at, self._prompt_tokens, now)
            self.heard_at = now
        elif isinstance(answer, Accepted):
            self.heard_at = self.accepted_at = now
            self.cached_tokens = answer.cached_tokens
            self.tool_format = answer.tool_format

    def _hear_state(self, state: ModelState | None) -> None:
        """What the node says of itself with an answer is as good as a probe; None: it takes no further requests."""
        if state is None:
            told = attrs.evolve(self.candidate, draining=True, at=trio.current_time())
        elif state.name == self.candidate.service.model:
            told = attrs.evolve(self.candidate, state=state, draining=False, at=trio.current_time())
        else:
            return
        self._access.probed.told(told, self.asked_at)

    async def _check(self) -> None:
        """Raises `NodeFailed` if a silent node is dead, or hangs."""
        service, access = self.candidate.service, self._access
        contact = Contact(service.public_key, self.candidate.address)
        sign = await access.watch.look(contact, service.model, self.candidate.rtt)
        if sign.pong is not None and sign.at > self.candidate.at:
            for state in sign.pong.models:
                self._told(state, sign.at)
        if self._exchange.ready:
            return
        if sign.pong is None and not access.peers.spoke_since(service.node_id, sign.asked_at):
            reason = "it fell silent"
            self._exchange.lose_node(reason)
            raise NodeFailed(self.label, reason)
        if trio.current_time() - self.heard_at > self._patience():
            raise NodeFailed(self.label, "it hangs: alive, but no token comes")

    def _told(self, state: ModelState, now: float) -> None:
        """What the node says of itself at `now`; if a step ended since it last did, its estimate is to be believed."""
        before = self.candidate
        self.candidate = attrs.evolve(before, state=state, at=now)
        came = state.running + state.waiting - before.state.running - before.state.waiting
        if came < 0:
            return  # Its estimate fell because somebody left; perhaps because the node hangs.
        grew, passed = state.ttft_s - before.state.ttft_s, now - before.at
        if grew < STUCK_SHARE * passed or (not came and grew > passed / STUCK_SHARE):
            self._expected_s = estimated_ttft(self.candidate, self._prompt_tokens)
            if self._embeds or (state.waiting and not self.spoke):
                self.heard_at = now

    def _patience(self) -> float:
        """Seconds of silence after which a living node hangs."""
        if self._embeds:
            return max(EMBED_STEP_S, HUNG_ESTIMATES * self._expected_s)
        now, node_id, peers = trio.current_time(), self.candidate.service.node_id, self._access.peers
        if not self.spoke:
            estimate = HUNG_ESTIMATES * self._expected_s
            state = self.candidate.state
            queue = QUEUE_S if state.waiting and not state.tokens_per_second else 0.0
            return max(peers.first_token_limit_s(node_id, self._prompt_tokens, now), estimate, queue)
        rate = self.candidate.state.tokens_per_second
        gap = max(self._gap, 1 / rate if rate > 0 else 0.0)
        return max(peers.gap_limit_s(node_id, now), HUNG_GAPS * gap)
