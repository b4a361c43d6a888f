"""Write `docs/configuration.md`, the reference of all commands and settings, from the commands themselves.

    .venv/bin/python tools/make_configuration.py

A test compares the page with what this would write.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from llamanet.cli import cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """\
# Configuration

<!-- Written by tools/make_configuration.py from the commands themselves; edit their help texts, not this page. -->

Each setting can be given in four ways. A flag comes before its variable, a variable before the file, and the file
before the default. An empty variable is an unset one.

## The file

`config.toml` in the user's configuration folder (`~/.config/llamanet/`; macOS: `~/Library/Application
Support/llamanet/`), or what `--config FILE` (before a command or after it) or the variable
`LLAMANET_CONFIG` names:

```toml
bootstrap_nodes = ["127.0.0.1:8001"]    # for every command that has the setting

[node]                                  # for one command
model_path = ["models/SmolLM2-135M-Instruct.Q4_1.gguf"]
n_ctx = 4096

[ask]
max_tokens = 200
```

A setting bears its flag's name, with `_` or `-`. A command's own table comes before what stands outside of all tables.
What no command knows is refused, with the name that was probably meant. Paths are relative to where the command runs.
An error about a value tells where in the file it is, or in which variable.

## Exit status

0: done. 2: a mistake that you can mend, told in one line. 1: anything else, told in one line. After a signal 128 and
its number, but 0 for a node or a gateway that drained. Data goes to standard output, all else to standard error, and
colours and progress bars appear on a terminal only.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    with click.Context(cli, info_name="llamanet", auto_envvar_prefix="LLAMANET") as root:
        for context in subcommands(cli, root):
            parts.extend(sections(context.command, context, level=2))
    return "\n".join(parts)


def subcommands(group: click.Group, parent: click.Context) -> Iterator[click.Context]:
    """A context for each command of `group`, in the order of `--help`."""
    for name in group.list_commands(parent):
        if command := group.get_command(parent, name):
            with click.Context(command, info_name=name, parent=parent) as context:
                yield context


def sections(command: click.Command, context: click.Context, *, level: int) -> Iterator[str]:
    """The section of a command, and those of its subcommands."""
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    words = " ".join(["", *(argument.make_metavar(context) for argument in arguments)])
    yield f"{'#' * level} llamanet {context.command_path.partition(' ')[2]}{words}\n"
    # A form feed or a block of its own layout is for terminals.
    yield inspect.cleandoc((command.help or "").partition("\b")[0]) + "\n"
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    shown = [option for option in options if option.name not in ("config", "help")]
    if shown:
        yield '<div class="options" markdown>\n\n| flag | variable | default | |\n|---|---|---|---|'
        for option in shown:
            yield row(option, context)
        yield "\n</div>\n"
    if isinstance(command, click.Group):
        for inner in subcommands(command, context):
            yield from sections(inner.command, inner, level=level + 1)


def row(option: click.Option, context: click.Context) -> str:
    """An option's line of the table."""
    flags = ", ".join(f"`{flag}`" for flag in option.opts)
    choices = option.type.choices if isinstance(option.type, click.Choice) else ()
    takes = "" if option.is_flag or choices else f" {escaped(option.make_metavar(context))}"
    told = [option.help or "", f"One of {', '.join(map(str, choices))}." if choices else ""]
    variable = option.envvar or f"{context.auto_envvar_prefix}_{str(option.name).upper()}"
    return (
        f"| {flags}{takes} | `{variable}` | {default_of(option, context)} | {escaped(' '.join(filter(None, told)))} |"
    )


def default_of(option: click.Option, context: click.Context) -> str:
    """In words, as `--help` tells it."""
    if isinstance(option.show_default, str):
        return option.show_default
    if option.is_flag:
        return "off"
    default = option.get_default(context)
    return "" if default is None or default == "" or default == () or "UNSET" in str(default) else f"`{default}`"


def escaped(text: str) -> str:
    """`text` in a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
