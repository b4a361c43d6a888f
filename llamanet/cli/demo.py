"""`llamanet demo`: three nodes on this machine; the one that answers is killed, and the answer goes on from another.

Rules:
- The nodes are real processes with real ports and TLS, and this command knows them by their logs only.
- No process outlives the command, however it ends.
- It says what it sees: if the stream does not go on to its end from another node, it fails.
"""

import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from llamanet.errors import LlamaNetError

if TYPE_CHECKING:
    from llamanet.client.generation import Stream
    from llamanet.swarm import Swarm
    from llamanet.testing.processes import NodeProcess

NODES = 3
QUESTION = "What is a peer-to-peer network?"
MAX_TOKENS = 120
TOKENS_BEFORE_KILL = 40
MAX_CHAT_TOKENS = 512
MEET_S = 10.0
COLOURS = ("cyan", "yellow", "green")


@attrs.define
class DemoFailed(LlamaNetError):
    """What the demo should have shown did not happen."""

    reason: str

    def __str__(self) -> str:
        return f"the demo failed: {self.reason}"


@click.command("demo")
@click.option(
    "--models-dir",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="the user's cache",
    help="Where the demo's model is kept, and downloaded to (98 MB) the first time.",
)
def command(models_dir: Path | None) -> None:
    """Show a swarm of three nodes on this machine, one of which dies in the middle of its answer.

    On a terminal it then offers to keep the swarm and chat.
    """
    # Imported only now, so that --help is answered at once.
    import platformdirs

    from llamanet.cli.signals import run_until_signalled
    from llamanet.testing.processes import NodeProcess, close_all

    folder = models_dir or platformdirs.user_cache_path("llamanet") / "models"
    with tempfile.TemporaryDirectory(prefix="llamanet-demo-") as data_dir:
        nodes: list[NodeProcess] = []
        try:
            run_until_signalled(lambda: _demo(folder, Path(data_dir), nodes))
        finally:
            close_all(nodes)


async def _demo(folder: Path, data_dir: Path, nodes: "list[NodeProcess]") -> None:
    from llamanet.cli.demo_model import demo_model
    from llamanet.swarm import Swarm

    await _start(await demo_model(folder), data_dir, nodes)
    async with Swarm(bootstrap_nodes=[node.dht_address for node in nodes]) as swarm:
        await _show_nodes(swarm)
        interrupted = await _answer_with_a_death(swarm, {node.label: node for node in nodes})
        await _compare(swarm, interrupted)
        if sys.stdin.isatty() and sys.stdout.isatty():
            await _chat(swarm)


async def _start(model: Path, data_dir: Path, nodes: "list[NodeProcess]") -> None:
    import trio

    from llamanet.node.cores import physical_cores
    from llamanet.testing.processes import start_node

    click.echo(f"Starting {NODES} nodes with {model.name}:")
    threads = max(1, physical_cores() // NODES)
    for number in range(1, NODES + 1):
        # The first one must be up, for its port is what the others are told.
        bootstrap = [nodes[0].dht_address] if nodes else []
        nodes.append(start_node(number, data_dir, bootstrap, "--model-path", str(model), "--n-threads", str(threads)))
        if number in (1, NODES):
            for node in nodes:
                await trio.to_thread.run_sync(node.wait_ready, abandon_on_cancel=True)
    for node in nodes:
        click.echo(f"  {node.label}: process {node.process.pid}, TCP port {node.port}, UDP port {node.dht_port}")


async def _show_nodes(swarm: "Swarm") -> None:
    import trio

    labels: list[str] = []
    with trio.move_on_after(MEET_S):
        while True:
            labels = sorted(node.node_id for node in await swarm.nodes())
            if len(labels) == NODES:
                break
            await trio.sleep(0.05)
    click.echo(f"They have found each other: the swarm's nodes are {', '.join(labels)}.")
    if len(labels) < NODES:
        raise DemoFailed(f"not all {NODES} nodes were found within {MEET_S:g} s")


async def _answer_with_a_death(swarm: "Swarm", processes: "dict[str, NodeProcess]") -> "Stream":
    """Stream an answer, and kill the node that gives it in the middle."""
    import trio

    click.echo(f"\nYou: {QUESTION}")
    speaker: str | None = None
    killed: str | None = None
    killed_at = 0.0
    async with swarm.stream(**_question(QUESTION), max_tokens=MAX_TOKENS, temperature=0.0) as stream:
        async for chunk in stream:
            if stream.node_id != speaker:
                if speaker is not None:
                    click.echo(f"\n({trio.current_time() - killed_at:.2f} s after the kill)", nl=False)
                click.secho(f"\n{stream.node_id}: ", nl=False, bold=True)
                speaker = stream.node_id
            click.secho(chunk.text, nl=False, fg=_colour(processes, speaker))
            if killed is None and len(stream.token_ids) >= TOKENS_BEFORE_KILL and speaker is not None:
                processes[speaker].send_signal(signal.SIGKILL)
                killed, killed_at = speaker, trio.current_time()
                click.secho(f"\n[kill -9 {speaker}]", fg="red", bold=True, nl=False)
    click.echo()
    if killed is None:
        raise DemoFailed(f"the answer ended after {len(stream.token_ids)} tokens, before a node could be killed")
    if speaker == killed:
        raise DemoFailed(f"{killed} was killed, and yet no other node went on")
    return stream


async def _compare(swarm: "Swarm", interrupted: "Stream") -> None:
    """Say whether the answer is the one that a node gives which nobody kills."""
    reply = await swarm.generate(**_question(QUESTION), max_tokens=MAX_TOKENS, temperature=0.0)
    click.echo(
        f"\n{len(interrupted.token_ids)} tokens, {interrupted.tokens_per_second:.1f} tokens/s, "
        f"first token after {interrupted.ttft or 0:.2f} s."
    )
    if list(reply.token_ids) == interrupted.token_ids:
        click.echo(f"Asked again, undisturbed, {reply.node_id} gives the same answer, token for token.")
        return
    same = 0
    while reply.token_ids[same : same + 1] == tuple(interrupted.token_ids[same : same + 1]):
        same += 1
    click.echo(
        f"Asked again, undisturbed, {reply.node_id} gives the same {same} tokens and then others: where two tokens are "
        "almost equally likely, rounding decides, and a resumed prompt is rounded in other batches."
    )


async def _chat(swarm: "Swarm") -> None:
    """Talk to the swarm until an empty line."""
    messages: list[dict[str, str]] = []
    click.echo("\nThe swarm is yours: chat with it. An empty line, or Ctrl-C, ends it.")
    while question := await _read("You: "):
        messages.append({"role": "user", "content": question})
        answer = ""
        async with swarm.stream(messages=messages, max_tokens=MAX_CHAT_TOKENS) as stream:
            async for chunk in stream:
                if not answer:
                    click.secho(f"{stream.node_id}: ", nl=False, bold=True)
                answer += chunk.text
                click.echo(chunk.text, nl=False)
        click.echo()
        messages.append({"role": "assistant", "content": answer})


async def _read(prompt: str) -> str:
    """A line from the terminal; "" at its end. A signal need not wait for it."""
    import trio

    click.echo(prompt, nl=False)
    line: str = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return line.strip()


def _question(text: str) -> Any:
    return {"messages": [{"role": "user", "content": text}]}


def _colour(processes: "dict[str, NodeProcess]", label: str | None) -> str:
    return COLOURS[list(processes).index(label) % len(COLOURS)] if label in processes else "white"
