import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from llamanet.node.shared_stream import SharedStream


class Slow(trio.abc.Stream):
    """Writes what it is given in two halves, the second when it is let."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.go_on = trio.Semaphore(0)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        half = len(data) // 2
        await self.stream.send_all(data[:half])
        await self.go_on.acquire()
        await self.stream.send_all(data[half:])

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


async def test_writers_take_turns_in_order(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    slow = Slow(ours)
    shared = SharedStream(slow)
    for data in (b"aaaa", b"bbbb", b"cccc"):
        nursery.start_soon(shared.send_all, data)
        await wait_all_tasks_blocked()
    assert await theirs.receive_some(100) == b"aa"
    for _ in range(3):
        slow.go_on.release()
    await wait_all_tasks_blocked()
    assert await theirs.receive_some(100) == b"aabbbbcccc"
    await theirs.send_all(b"back")
    assert await shared.receive_some(100) == b"back"
    await shared.aclose()
    assert await theirs.receive_some(100) == b""


async def test_a_writer_that_gives_up_its_turn_writes_nothing_and_holds_nobody_up(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    slow = Slow(ours)
    shared = SharedStream(slow)
    first, second = trio.CancelScope(), trio.CancelScope()

    async def write(scope: trio.CancelScope, data: bytes) -> None:
        with scope:
            await shared.send_all(data)

    for scope, data in ((first, b"aaaa"), (second, b"bbbb"), (trio.CancelScope(), b"cccc")):
        nursery.start_soon(write, scope, data)
        await wait_all_tasks_blocked()
    second.cancel()
    first.cancel()
    slow.go_on.release()
    await wait_all_tasks_blocked()
    assert await theirs.receive_some(100) == b"aacccc"
