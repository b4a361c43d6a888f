"""The `llamanet` command.

Rules:
- A subcommand, and what it needs, is imported when it is called: `llamanet --help` must answer at once.
- Data goes to standard output, everything else to standard error.
- An error is one line, never a traceback. Exit status: 0 done, 2 what the user can mend, 1 the rest; after a signal
  that stopped the command, 128 and its number (130 for Ctrl-C, 141 for a reader of the output that left).
"""

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import attrs
import click

from llamanet._version import __version__
from llamanet.cli.config_file import CONFIG_PATH, add_config_option, config_option, name_config, origin
from llamanet.errors import LlamaNetError, RequestRefused, UserError

COMMANDS = {
    "node": "Serve models to the swarm.",
    "ask": "Ask the swarm one question.",
    "chat": "Talk with a model of the swarm.",
    "gateway": "Serve OpenAI's API and a page in front of the swarm.",
    "nodes": "Show the nodes of the swarm.",
    "models": "Show the models that the swarm serves, or those that were pulled.",
    "pull": "Get a model from the Hugging Face hub.",
    "control": "Tell a node on this machine to load, unload, drain or resume.",
    "top": "Watch the swarm: nodes, load, speed, DHT.",
    "doctor": "Find out what is wrong with a node or a client here, and what to do.",
    "crawl": "Walk the whole overlay and count its nodes.",
    "invite": "Print one line that lets another machine join.",
    "keys": "Make and show keys: of a node, of a private swarm, of a gateway.",
    "completion": "Print what makes a shell complete this command.",
    "demo": "Show a swarm of three nodes on this machine, one of which dies.",
}
"""Each is `command` in the module of its name."""


MEANT = {
    "serve": "node",
    "run": "chat",
    "list": "models --local",
    "ls": "models --local",
    "ps": "control status",
    "status": "control status",
    "load": "control load",
    "unload": "control unload",
    "stop": "control drain",
    "help": "--help",
    "version": "--version",
}
"""What other programs, or one's memory, call a command."""


class LazyGroup(click.Group):
    """A group whose commands are known by name and summary, and imported only to be run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order that `--help` shows."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"llamanet.cli.{cmd_name}").command
        if not any(parameter.name == "config" for parameter in command.params):
            add_config_option(command, COMMANDS)
            for option in command.params:
                if isinstance(option, click.Option):
                    option.show_envvar = True
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant; of one that is not there, what may be meant is told."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            if name in MEANT:
                raise click.UsageError(f"No such command {name!r}. Did you mean: llamanet {MEANT[name]}?", ctx)
            raise click.NoSuchCommand(name, possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that is meant; an error about a setting tells where that stands."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            error.message += origin(ctx, error.message)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The summaries, without importing what they summarise."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    params=[config_option(name_config)],
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 120,
        "auto_envvar_prefix": "LLAMANET",
    },
)
@click.version_option(__version__, prog_name="llamanet", message="%(prog)s %(version)s")
def cli() -> None:
    """LlamaNet: people's machines as one inference service, with no server in the middle.

    Every option of a command can be given as a variable too: `--max-tokens` of `ask` is LLAMANET_ASK_MAX_TOKENS.
    """


@attrs.define
class Stopped(LlamaNetError):
    """A signal asked the command to stop (SIGPIPE: nobody reads its output any more), and it has stopped in order."""

    signal_number: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (default: `sys.argv`) and exit with its status."""
    _open_what_is_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model may say what the terminal's encoding cannot: better a question mark than no answer.
        sys.stdout.reconfigure(errors="replace")
    try:
        # What a command that ran to its end has to say by its status: that of `click.exceptions.Exit`.
        status = cli.main(arguments, prog_name="llamanet", standalone_mode=False) or 0
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        status = _say(_one_line(error), error.exit_code)
    except Stopped as stopped:
        status = 128 + stopped.signal_number
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE
    except OSError as error:
        status = _say(f"cannot write the output ({error})", 1)
    except (click.Abort, KeyboardInterrupt):
        status = 128 + signal.SIGINT
    except (UserError, RequestRefused) as error:
        status = _say(str(error), 2)
    except LlamaNetError as error:
        status = _say(str(error), 1)
    try:
        sys.stdout.flush()
    except OSError:
        # Without this, Python would fail once more when it flushes what is left at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _open_what_is_closed() -> None:
    """Put the null device in place of standard streams that whoever started the command has closed.

    Otherwise a socket gets such a number, and what is printed goes there.
    """
    descriptor = -1
    while descriptor <= 2:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _one_line(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.BadParameter) and context and error.param and error.param.name:
        source = context.get_parameter_source(error.param.name)
        if source is click.core.ParameterSource.DEFAULT_MAP:
            path = context.meta.get(CONFIG_PATH, "the configuration file")
            return " ".join(f"{error.format_message()} (in {path})".split())
    help_line = f" (see: {context.command_path} --help)" if context else ""
    return " ".join(error.format_message().split()) + help_line


def _say(message: str, status: int) -> int:
    click.echo(f"{click.style('error:', fg='red')} {message}", err=True)
    return status
