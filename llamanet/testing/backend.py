"""A backend that recites a script: a whole node without a model, exact to the token.

Rules:
- What is drawn is a function of (prompt, position, seed) alone, so a resumed stream can be checked to the token.
  At temperature 0 the seed does not matter. Of all other sampling only `min_tokens` and `ignore_eos` do.
- Each slot remembers the tokens that were decoded in it, and a draw from anything but the prompt and what followed it
  fails: no answer comes from a wrong memory unnoticed.
- A prompt has one token a word. The words that it generates come from a short list; some of them need two tokens to
  make a character, as with real vocabularies.
- Time is only spent where the script says so: `step_time` each step and `token_time` each prompt token, in seconds.
  Under `TrioWorker` it passes on trio's clock (a test's autojump clock, too); in a node's thread, by `sleep`.
"""

import math
import re
import struct
import threading
import zlib
from collections import defaultdict, deque
from collections.abc import Callable
from collections.abc import Sequence as Run
from functools import partial
from typing import TypeVar

import attrs
import trio

from llamanet.errors import RequestRefused
from llamanet.node.backend import BackendError, Chunk
from llamanet.node.core import Command, EngineCore
from llamanet.node.engine import serve_engine
from llamanet.node.sampling import position_seed
from llamanet.node.worker import Deliver
from llamanet.wire.inference import Sampling, TokenChance, TokenLogprobs

T = TypeVar("T")

END = 0
"""The end token's id."""
_WORDS = (b"swarm", b"node", b"token", b"llama", b"stream", b"bucket", b"record", b"peer", b"seed", b"slot", b"lookup")
_PIECES: tuple[bytes, ...] = (b"", *(b" " + word for word in _WORDS), b" caf\xc3", b"\xa9")
_SPLIT = len(_PIECES) - 2
"""The token that begins the two-token word; the next id ends it."""
_FIRST_BYTE_ID = 100
"""Of the tokens that recited text is made of, one for each byte."""
_FIRST_PROMPT_ID = 1_000
_VOCABULARY = 2**31 - 1


def scripted_tokens(
    prompt: str, count: int, *, seed: int = 0, temperature: float = 0.0, answer_tokens: int = 1_000_000
) -> list[int]:
    """The first `count` tokens that a `ScriptedBackend` generates after `prompt`, the end token included."""
    key = _key(_tokenize(prompt))
    effective = seed if temperature > 0 else 0
    return [_scripted(key, position, effective, answer_tokens) for position in range(min(count, answer_tokens + 1))]


def scripted_text(tokens: Run[int]) -> str:
    """The text of scripted tokens."""
    return b"".join(_PIECES[token] for token in tokens).decode(errors="replace")


def scripted_logprobs(token: int, top: int) -> TokenLogprobs:
    """Halved chances: the drawn token's is 1/2, and so on through the ids above it."""
    ids = [(token + step) % len(_PIECES) for step in range(max(1, top))]
    chances = [
        TokenChance(token=id, piece=_PIECES[id], logprob=-(step + 1) * math.log(2)) for step, id in enumerate(ids)
    ]
    return TokenLogprobs(token=token, piece=chances[0].piece, logprob=chances[0].logprob, top=tuple(chances[:top]))


def scripted_vector(text: str) -> tuple[float, ...]:
    """The embedding of `text`, four numbers of length 1 that no other text has."""
    return struct.unpack("<4f", _vector(_tokenize(text)))


def _vector(tokens: Run[int]) -> bytes:
    numbers = [float(position_seed(_key(tokens), place) + 1) for place in range(4)]
    return struct.pack("<4f", *(number / math.hypot(*numbers) for number in numbers))


def _tokenize(text: str) -> list[int]:
    words = re.findall(r"\S+", text)
    return [_FIRST_PROMPT_ID + zlib.crc32(word.encode()) % (_VOCABULARY - _FIRST_PROMPT_ID) for word in words]


def _key(prompt: Run[int]) -> int:
    return zlib.crc32(repr(list(prompt)).encode())


def _scripted(key: int, position: int, seed: int, answer_tokens: int) -> int:
    if position >= answer_tokens:
        return END
    # Every tenth position begins a word of two tokens, and the one after it ends that word.
    if position % 10 >= 8:
        return _SPLIT + position % 10 - 8
    return 1 + position_seed(key ^ seed, position) % (_SPLIT - 1)


@attrs.define(kw_only=True)
class ScriptedBackend:
    """A `Backend` that computes nothing.

    `answer_tokens` come before the end token. `fail_at` and `hang_at` number the tokens that the backend draws, from
    1, over all requests: at that one it raises `BackendError`, or stands still. In a thread (`sleep` given) a hanging
    backend goes on when `release` is called, and its engine can only end then. Memory can be cut anywhere, unless
    `window` keeps only so many of the last tokens, as models with a sliding window do, or `recurrent` keeps one state.
    `recites` is a text that every answer is, a token for each of its bytes, whatever was asked.
    """

    n_ctx: int = 2048
    n_batch: int = 512
    slots: int = 4
    n_vocab: int = _VOCABULARY
    piece_bytes: int = 1_024
    n_embd: int = 4
    generates: bool = True
    embeds_pieces: bool = True
    chat_template: str | None = (
        "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}<assistant>"
    )
    bos_text: str = ""
    eos_text: str = ""
    answer_tokens: int = 1_000_000
    step_time: float = 0.0
    token_time: float = 0.0
    fail_at: int | None = None
    hang_at: int | None = None
    window: int | None = None
    recurrent: bool = False
    recites: str | None = None
    sleep: Callable[[float], None] | None = None
    drawn: int = 0
    """Tokens drawn so far."""
    computed: int = 0
    """Tokens decoded so far."""
    closed: bool = False
    cuts: bool = attrs.field(init=False)
    spent: float = 0.0
    """Scripted seconds that nobody has slept yet; only without `sleep`."""
    _scripts: dict[int, tuple[list[int], int, int]] = attrs.field(factory=dict)
    _memory: dict[int, list[int]] = attrs.field(factory=lambda: defaultdict(list))
    _oldest: dict[int, int] = attrs.field(factory=lambda: defaultdict(int))
    """The first position that a slot's window still holds."""
    _piece: list[int] = attrs.field(factory=list)
    """What was computed last of a text to embed."""
    _released: threading.Event = attrs.field(factory=threading.Event)

    @cuts.default
    def _cuts(self) -> bool:
        return not self.recurrent

    def tokenize(self, text: str, *, whole: bool = False) -> list[int]:
        """A token a word."""
        return _tokenize(text)

    def piece(self, token: int) -> bytes:
        """A word with the space before it, or half of one; or a byte of what is recited."""
        if _FIRST_BYTE_ID <= token < _FIRST_BYTE_ID + 256:
            return bytes([token - _FIRST_BYTE_ID])
        return _PIECES[token] if token < len(_PIECES) else b""

    def is_end(self, token: int) -> bool:
        """Whether `token` is `END`."""
        return token == END

    def check_grammar(self, grammar: str, resume: Run[int]) -> None:
        """Take every grammar that has a root; the script follows none."""
        if "root ::=" not in grammar:
            raise RequestRefused("the grammar has no rule root", "sampling.grammar", "GBNF with a rule root")

    def ready(self, sampling: Sampling) -> None:
        """Nothing here takes long."""

    def begin(self, slot: int, sampling: Sampling, seed: int, prompt: Run[int], resume: Run[int]) -> None:
        """Remember what the draws depend on."""
        ends_at = self.n_ctx if sampling.ignore_eos else max(self.answer_tokens, sampling.min_tokens)
        self._scripts[slot] = list(prompt), seed if sampling.temperature > 0 else 0, ends_at

    def end(self, slot: int) -> None:
        """Forget what the draws depend on."""
        del self._scripts[slot]

    def forget(self, slot: int, start: int) -> bool:
        """Shorten the slot's memory, if it is of the kind that can be."""
        memory = self._memory[slot]
        if 0 < start < len(memory) and (
            self.recurrent or (self.window and self._oldest[slot] > max(0, start - self.window))
        ):
            return False
        del memory[start:]
        if start == 0:
            self._oldest[slot] = 0
        return True

    def copy(self, source: int, slot: int) -> None:
        """Copy the whole of a slot's memory."""
        self._memory[slot] = self._memory[source].copy()
        self._oldest[slot] = self._oldest[source]

    def move(self, slot: int, target: int) -> None:
        """Move a slot's memory and what its draws depend on."""
        self._memory[target] = self._memory.pop(slot)
        self._oldest[target] = self._oldest.pop(slot, 0)
        self._scripts[target] = self._scripts.pop(slot)

    def decode(self, chunks: Run[Chunk]) -> None:
        """Check that each chunk goes on where its slot's memory ends, and take the scripted time."""
        for chunk in chunks:
            memory = self._memory[chunk.slot]
            if chunk.start != len(memory):
                raise BackendError(f"slot {chunk.slot} holds {len(memory)} tokens, and is continued at {chunk.start}")
            first_seen = max(0, chunk.start - self.window) if self.window else 0
            if self._oldest[chunk.slot] > first_seen:
                raise BackendError(f"slot {chunk.slot} lacks what the token at {chunk.start} must see")
            memory += chunk.tokens
            if self.window:
                self._oldest[chunk.slot] = max(self._oldest[chunk.slot], len(memory) - self.window)
            self.computed += len(chunk.tokens)
        prompt_tokens = sum(len(chunk.tokens) - chunk.draws for chunk in chunks)
        self._spend(self.step_time + self.token_time * prompt_tokens)

    def draw(self, slot: int, position: int) -> int:
        """The scripted token, or the scripted disaster."""
        self.drawn += 1
        if self.drawn == self.fail_at:
            raise BackendError(f"scripted failure at token {self.drawn}")
        if self.drawn == self.hang_at:
            self._spend(math.inf)
        prompt, seed, ends_at = self._scripts[slot]
        key = _key(prompt)
        memory = self._memory[slot]
        if memory[: len(prompt)] != prompt or len(memory) != len(prompt) + position:
            raise BackendError(f"slot {slot} remembers something else than the prompt and {position} tokens")
        if self.recites is not None:
            text = self.recites.encode()
            return _FIRST_BYTE_ID + text[position] if position < len(text) else END
        return _scripted(key, position, seed, ends_at)

    def embed(self, texts: Run[Run[int]], *, done: int = 0) -> list[bytes]:
        """As `scripted_vector`, at the time of a step."""
        self._go_on(texts[0], done, len(texts[0]))
        self._spend(self.step_time + self.token_time * (sum(map(len, texts)) - done))
        return [_vector(tokens) for tokens in texts]

    def embed_piece(self, text: Run[int], start: int, end: int) -> None:
        """Take the time of a step for a part of a text."""
        self._go_on(text, start, end)
        self._spend(self.step_time + self.token_time * (end - start))

    def _go_on(self, text: Run[int], start: int, end: int) -> None:
        if start and self._piece != list(text[:start]):
            raise BackendError(f"{len(self._piece)} tokens of a text are computed, and another is continued at {start}")
        self._piece = list(text[:end])

    def logprobs(self, slot: int, token: int, top: int) -> TokenLogprobs:
        """As `scripted_logprobs`."""
        return scripted_logprobs(token, top)

    def close(self) -> None:
        """Note it."""
        self.closed = True

    def release(self) -> None:
        """Let a backend that hangs in a thread go on. May be called from any thread."""
        self._released.set()

    def _spend(self, seconds: float) -> None:
        if self.sleep is None:
            self.spent += seconds
        elif math.isinf(seconds):
            self._released.wait()
        elif seconds:
            self.sleep(seconds)


class TrioWorker:
    """Drives an engine in a trio task, without threads, so that it runs under an autojump clock."""

    def __init__(self) -> None:
        self._inbox: deque[Command] = deque()
        self._news = trio.Event()
        self._script: ScriptedBackend | None = None

    def clock(self) -> float:
        """Trio's time, and the scripted time that is still to be slept."""
        return trio.current_time() + (self._script.spent if self._script else 0.0)

    async def own(self, function: Callable[[], T]) -> T:
        """Run `function` here and now."""
        result = function()
        if isinstance(result, ScriptedBackend):
            self._script = result
        await self._sleep()
        return result

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` here and now."""
        await trio.lowlevel.checkpoint()
        return function()

    def send(self, command: Command) -> None:
        """Put `command` into the inbox."""
        self._inbox.append(command)
        self._news.set()

    async def drive(self, core: EngineCore, deliver: Deliver) -> None:
        """Step until cancelled, sleeping the time that a `ScriptedBackend` says a step took."""
        while True:
            self._news = trio.Event()
            commands = list(self._inbox)
            self._inbox.clear()
            core.execute(commands)
            began = self.clock()
            step = core.plan()
            if self._script and self._script.spent:
                core.rates.step_began = began  # For all others it lasts as long as the script says.
                await self._sleep()
                core.rates.step_began = None
            deliver(core.take_events())
            if step.parts:
                began = self.clock()
                core.compute(step)
                core.rates.step_began = began
                await self._sleep()
                core.rates.step_began = None
            else:
                wake_at = core.wake_at()
                with trio.move_on_at(math.inf if wake_at is None else wake_at):
                    await self._news.wait()

    def stop(self) -> None:
        """Nothing is held."""

    async def _sleep(self) -> None:
        seconds = 0.0
        if self._script:
            seconds, self._script.spent = self._script.spent, 0.0
        await trio.sleep(seconds)


serve_scripted_engine = partial(serve_engine, make_worker=TrioWorker)
"""`serve_engine` driven by a `TrioWorker`."""
