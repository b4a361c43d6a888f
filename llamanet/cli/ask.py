"""`llamanet ask`: one question to the swarm. The text streams to standard output, all else goes to standard error."""

import sys
from pathlib import Path

import click

from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import bootstrap_nodes, log_settings, swarm_key_file


@click.command("ask")
@click.argument("prompt")
@bootstrap_nodes(required=True)
@click.option("--model", metavar="NAME", help="Ask only nodes that serve this model.  [default: any model]")
@click.option("--max-tokens", type=int, help="Stop after so many tokens.  [default: when the model ends]")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0: always the likeliest token.")
@click.option("--seed", type=int, help="The same seed draws the same answer.  [default: a new one]")
@click.option("--no-chat", is_flag=True, help="Complete PROMPT as it is, without the model's chat template.")
@swarm_key_file
@log_settings("warning")
def command(
    prompt: str,
    bootstrap_nodes: tuple[str, ...],
    model: str | None,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
    no_chat: bool,
    swarm_key_file: Path | None,
    log_level: str,
    log_format: str,
) -> None:
    """Ask the swarm PROMPT, and stream the answer. PROMPT "-" is read from standard input."""
    set_up_logging(log_level, log_format)
    if prompt == "-":
        prompt = sys.stdin.read()
    # Imported only now, so that --help and a mistaken option are answered at once.
    from llamanet.cli.signals import run_until_signalled
    from llamanet.swarm import Swarm

    async def ask() -> None:
        async with Swarm(bootstrap_nodes=bootstrap_nodes, swarm_key_file=swarm_key_file) as swarm:
            question = {"prompt": prompt} if no_chat else {"messages": [{"role": "user", "content": prompt}]}
            async with swarm.stream(
                **question, model=model, max_tokens=max_tokens, temperature=temperature, seed=seed
            ) as stream:
                async for chunk in stream:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
            print()
            click.echo(stream.usage, err=True)

    run_until_signalled(ask)
