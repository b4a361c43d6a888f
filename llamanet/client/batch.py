"""Many prompts over the whole swarm: `Swarm.map`.

Rules:
- At most `concurrency` requests are in flight, and at most `AHEAD` times as many are begun and not yet taken: whoever
  takes no results stops the work. Nothing begins before the first is asked for.
- A prompt that fails does not end the batch: its result holds the error.
- Prompts are taken one after the other, and none before there is room for its result.
- A journal (a file of JSON lines) has each reply on the disk before the reply is handed on; replies that come while
  others are written are written together, by a thread. A later call with the same journal takes from it what belongs to
  the same prompt and options, wherever in the batch that is now, and asks only for the rest: failures, and what was not
  reached. A prompt that comes several times has several replies.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import trio

from llamanet.client.reply import Hop, Reply
from llamanet.errors import LlamaNetError
from llamanet.wire.codec import from_map_untrusted, to_map
from llamanet.wire.inference import Timings, TokenLogprobs, Usage
from llamanet.wire.tools import ToolCall

AHEAD = 4
BUDGET_OPTIONS = frozenset(
    {"wait", "tries", "timeout", "caller", "on_choice", "strategy", "min_tps", "max_load", "min_context"}
)
"""What does not change an answer: a journal holds good for other values of them."""

Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text to be continued, or a conversation to be answered."""
Prompts: TypeAlias = Iterable[Prompt] | AsyncIterable[Prompt]
Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with the number of results so far, and of all; None if the prompts have no length."""
Ask: TypeAlias = Callable[[Prompt], Awaitable[Reply]]


@attrs.frozen(kw_only=True)
class MapResult:
    """What came of one prompt of a batch: a reply, or an error."""

    index: int
    """Its place among the prompts, from 0."""
    prompt: Prompt
    reply: Reply | None = None
    error: LlamaNetError | None = None

    @property
    def text(self) -> str:
        """The reply's. Raises the error, if there is one."""
        if self.reply is None:
            raise self.error or ValueError("no reply")
        return self.reply.text


class Journal:
    """The replies of a batch, in a file. Opening and closing it takes the time of a disk."""

    def __init__(self, path: Path | str, options: Mapping[str, Any]) -> None:
        """Reads what is there. Raises `OSError`."""
        told = {name: value for name, value in options.items() if name not in BUDGET_OPTIONS}
        self._options = json.dumps(told, sort_keys=True, default=repr)
        self._replies: dict[str, Reply] = {}
        self._times: Counter[str] = Counter()
        """How often each prompt came in this batch."""
        self._lines: list[bytes] = []
        """That wait to be written."""
        self._writing = trio.Lock()
        self._file = Path(path).open("a+b")  # noqa: SIM115  # closed by `close`
        self._file.seek(0)
        whole = True
        for line in self._file:
            whole = line.endswith(b"\n")
            try:
                entry = json.loads(line)
                self._replies[entry["key"]] = _reply(entry["reply"])
            except (ValueError, KeyError, TypeError, LlamaNetError):
                continue  # A line that was cut off, for the program ended in it.
        if not whole:
            self._file.write(b"\n")

    def key(self, prompt: Prompt) -> str:
        """What the reply to the next prompt of the batch is kept under."""
        told = json.dumps([prompt, self._options], default=repr)
        self._times[told_once := _hash(told)] += 1
        return _hash(f"{told_once} {self._times[told_once]}")

    def get(self, key: str) -> Reply | None:
        """The reply that is there already."""
        return self._replies.get(key)

    async def add(self, key: str, reply: Reply) -> None:
        """Return when the reply is on the disk. Raises `OSError`."""
        entry = {"key": key, "reply": _plain(reply)}
        self._lines.append(json.dumps(entry, ensure_ascii=False).encode(errors="surrogatepass") + b"\n")
        async with self._writing:
            # Whoever wrote before us may have written ours too.
            if self._lines:
                lines, self._lines = self._lines, []
                await trio.to_thread.run_sync(self._write, lines)

    def close(self) -> None:
        """Close the file, with all that was added."""
        if self._lines:
            self._write(self._lines)
        self._file.close()

    def _write(self, lines: Iterable[bytes]) -> None:
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())


def _hash(told: str) -> str:
    return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()


def _plain(reply: Reply) -> dict[str, Any]:
    plain = attrs.asdict(reply, recurse=False)
    del plain["choices"]
    told = {"usage": to_map(reply.usage), "timings": to_map(reply.timings)}
    lists = {"logprobs": list(map(to_map, reply.logprobs)), "tool_calls": list(map(to_map, reply.tool_calls))}
    return plain | told | lists


def _reply(plain: dict[str, Any]) -> Reply:
    return Reply(
        **plain
        | {
            "token_ids": tuple(plain["token_ids"]),
            "logprobs": tuple(from_map_untrusted(TokenLogprobs, told) for told in plain["logprobs"]),
            "usage": from_map_untrusted(Usage, plain["usage"]),
            "timings": from_map_untrusted(Timings, plain["timings"]),
            "tool_calls": tuple(from_map_untrusted(ToolCall, told) for told in plain.get("tool_calls", ())),
            "hops": tuple(Hop(*hop) for hop in plain["hops"]),
            "digests": tuple(plain["digests"]),
        }
    )


async def _one_by_one(prompts: Prompts) -> AsyncGenerator[Prompt, None]:
    if isinstance(prompts, AsyncIterable):
        async for prompt in prompts:
            yield prompt
    else:
        for prompt in prompts:
            yield prompt


@trio.as_safe_channel
async def run_batch(
    ask: Ask,
    prompts: Prompts,
    *,
    concurrency: int,
    ordered: bool,
    journal: Journal | None,
    progress: Progress | None,
) -> AsyncGenerator[MapResult, None]:
    """The results, in the order of the prompts or as they are made."""
    total = len(prompts) if isinstance(prompts, Sequence) else None
    source = _one_by_one(prompts)
    taking = trio.Lock()
    taken = 0
    room = trio.Semaphore(AHEAD * concurrency)
    send, receive = trio.open_memory_channel[MapResult](AHEAD * concurrency)

    async def take() -> tuple[int, Prompt, str] | None:
        """The next prompt, its place, and its key; None if there is none."""
        nonlocal taken
        async with taking:
            async for prompt in source:
                taken += 1
                return taken - 1, prompt, journal.key(prompt) if journal else ""
        return None

    async def answer(index: int, prompt: Prompt, key: str) -> MapResult:
        if journal is not None and (reply := journal.get(key)) is not None:
            return MapResult(index=index, prompt=prompt, reply=reply)
        try:
            reply = await ask(prompt)
        except LlamaNetError as error:
            return MapResult(index=index, prompt=prompt, error=error)
        if journal is not None:
            await journal.add(key, reply)
        return MapResult(index=index, prompt=prompt, reply=reply)

    async def work(send: "trio.MemorySendChannel[MapResult]") -> None:
        async with send:
            while True:
                await room.acquire()
                if (next_one := await take()) is None:
                    return
                await send.send(await answer(*next_one))

    try:
        async with trio.open_nursery() as nursery:
            async with send:
                for _ in range(concurrency):
                    nursery.start_soon(work, send.clone())
            done = 0
            waiting: dict[int, MapResult] = {}
            async with receive:
                async for result in receive:
                    waiting[result.index] = result
                    while waiting and (index := done if ordered else next(iter(waiting))) in waiting:
                        done += 1
                        if progress is not None:
                            progress(done, total)
                        yield waiting.pop(index)
                        room.release()
    finally:
        with trio.CancelScope(shield=True):
            await source.aclose()
            if journal is not None:
                await trio.to_thread.run_sync(journal.close)
