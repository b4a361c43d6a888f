"""`llamanet ask`: one question to the swarm. The text streams to standard output, all else goes to standard error."""

import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from llamanet.cli import Stopped
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import STRATEGY, asking, log_settings, setting, swarm_settings
from llamanet.cli.terminal import harmless
from llamanet.errors import UserError

if TYPE_CHECKING:
    from llamanet.client.generation import Stream
    from llamanet.client.reply import Reply


@click.command("ask")
@click.argument("words", metavar="PROMPT", nargs=-1, required=True)
@swarm_settings
@click.option("--model", metavar="NAME", show_default="any", help="Ask only nodes that serve this model.")
@click.option("--max-tokens", type=int, show_default="until the model ends", help="Stop after so many tokens.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0: always the likeliest token.")
@click.option("--seed", type=int, show_default="a new one", help="The same seed draws the same answer.")
@click.option("--top-p", type=float, show_default="0.95", help="Draw from the likeliest tokens with so much chance.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; give it again for more.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.option(
    "--json-schema", type=click.File(encoding="utf-8"), metavar="FILE", help="Answer in JSON that follows this schema."
)
@click.option(
    "--grammar", type=click.File(encoding="utf-8"), metavar="FILE", help="Answer with what this GBNF grammar allows."
)
@setting("strategy", **STRATEGY)
@click.option("--explain", is_flag=True, help="Say why which node was asked, on standard error.")
@click.option("--no-chat", is_flag=True, help="Complete PROMPT as it is, without the model's chat template.")
@log_settings("error")
def command(
    words: tuple[str, ...],
    model: str | None,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
    top_p: float | None,
    stop: tuple[str, ...],
    as_json: bool,
    json_schema: TextIO | None,
    grammar: TextIO | None,
    strategy: str,
    explain: bool,
    no_chat: bool,
    log_level: str,
    log_format: str,
    **membership: Any,
) -> None:
    """Ask the swarm PROMPT, and stream the answer.

    PROMPT is one or more words; for "-" among them standard input is taken.
    """
    set_up_logging(log_level, log_format)
    if sum((as_json, json_schema is not None, grammar is not None)) > 1:
        raise UserError("give one of --json, --json-schema and --grammar")
    prompt = " ".join(read(sys.stdin) if word == "-" else word for word in words)
    if not prompt.strip() and not no_chat:
        raise UserError("PROMPT is empty")
    asked = asking(membership)
    # Imported only now, so that --help and a mistaken option are answered at once.
    from llamanet.cli.progress import waiting
    from llamanet.cli.signals import run_until_signalled
    from llamanet.swarm import Swarm

    def say_why(decision: object) -> None:
        click.echo(f"{decision}\n", err=True)

    async def ask() -> None:
        silence.enter_context(waiting("Waiting for an answer"))
        async with (
            Swarm(**asked, strategy=strategy) as swarm,
            swarm.stream(
                prompt if no_chat else None,
                messages=None if no_chat else [{"role": "user", "content": prompt}],
                model=model,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                top_p=top_p,
                stop=stop,
                response_format={"type": "json_object"} if as_json else None,
                json_schema=json_schema and read(json_schema),
                grammar=grammar and read(grammar),
                on_choice=say_why if explain else None,
            ) as stream,
        ):
            try:
                async for chunk in stream:
                    silence.close()
                    write(harmless(chunk.text) if sys.stdout.isatty() else chunk.text)
            finally:
                # Also after half an answer, for what else is said should not stand in its last line.
                if stream.token_ids:
                    write("\n")
        click.echo(closing_line(stream), err=True)

    with contextlib.ExitStack() as silence:
        run_until_signalled(ask)


def read(file: TextIO) -> str:
    """The text of a file that was given. Raises `UserError` if it is none."""
    try:
        text = file.read()
        text.encode()  # standard input is let in as it is, in some locales
    except UnicodeError as error:
        raise UserError(f"{file.name} is not UTF-8 text") from error
    return text


def write(text: str) -> None:
    """Put `text` on standard output at once. Raises `Stopped` if nobody reads it, `UserError` if it is full."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise Stopped(signal.SIGPIPE) from error
    except OSError as error:
        raise UserError(f"cannot write to standard output: {error.strerror}") from error


def closing_line(stream: "Stream | Reply") -> str:
    """Who answered, how much, how fast, and by which detours."""
    parts = [harmless(stream.node_id or "nobody"), f"{len(stream.token_ids)} tokens"]
    if len(stream.token_ids) > 1:
        parts.append(f"{stream.tokens_per_second:.1f} tokens/s")
    if stream.ttft is not None:
        parts.append(f"first token after {stream.ttft:.2f} s")
    parts += [f"moved on from {hop.node_id} ({hop.reason})" for hop in stream.hops]
    return ", ".join(parts)
