"""`llamanet completion`: the script that makes a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script for SHELL.

    \b
    bash:  eval "$(llamanet completion bash)"           in ~/.bashrc
    zsh:   eval "$(llamanet completion zsh)"            in ~/.zshrc
    fish:  llamanet completion fish | source            in ~/.config/fish/config.fish
    """
    completion = get_completion_class(shell)
    assert completion is not None  # noqa: S101 - click has all three
    root = context.find_root()
    click.echo(completion(root.command, {}, "llamanet", "_LLAMANET_COMPLETE").source())
