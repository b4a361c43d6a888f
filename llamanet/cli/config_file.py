"""Settings from a TOML file: `--config FILE`, the variable LLAMANET_CONFIG, or the file in the platform's usual place.

    bootstrap_nodes = ["192.0.2.7:8001"]    # for every command that has the setting

    [node]                                  # for one command
    model_path = ["models/a.gguf"]
    n_ctx = 4096

Rules:
- A setting bears its flag's name, with `_` or `-`. A flag comes before its variable, a variable before the file, and
  the file before the default. A command's own table comes before what stands outside of all tables.
- What no command knows is a mistake and is told, with the name that was probably meant.
- Paths are relative to where the command runs, as they are in flags.
"""

import difflib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from llamanet.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "config.toml"


def add_config_option(command: click.Command, commands: Mapping[str, str]) -> None:
    """Give `command`, one of `commands`, the option `--config`."""

    def load(context: click.Context, option: click.Parameter, path: Path | None) -> None:
        usual = path is None
        if path is None:
            import platformdirs

            path = platformdirs.user_config_path("llamanet") / FILE_NAME
        content = _read(path, may_lack=usual)
        name = context.info_name or ""
        settings = _settings_for(command, name, content, path, commands)
        if settings:
            context.default_map = settings

    command.params.append(
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            envvar="LLAMANET_CONFIG",
            show_envvar=True,
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=load,
            help="Settings in TOML.",
            show_default=f"{FILE_NAME} in the user's configuration folder",
        )
    )


def _read(path: Path, *, may_lack: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content: dict[str, Any] = tomllib.load(file)
            return content
    except FileNotFoundError as error:
        if may_lack:
            return {}
        raise UserError(f"there is no configuration file {path} (--config)") from error
    except OSError as error:
        raise UserError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the configuration file {path} is not TOML: {error}") from error


def _settings_for(
    command: click.Command, name: str, content: dict[str, Any], path: Path, commands: Mapping[str, str]
) -> dict[str, Any]:
    """What the file says to this command, by click's names of its parameters. Raises `UserError`."""
    options = _options_of(command)
    settings: dict[str, Any] = {}
    foreign: list[str] = []
    for key, value in content.items():
        if isinstance(value, dict):
            if key not in commands:
                raise UserError(f"{path}: there is no command for the table [{key}]{_meant(key, commands)}")
        elif option := options.get(key.replace("-", "_")):
            settings[str(option.name)] = _as_given(option, value)
        else:
            foreign.append(key)
    if foreign:
        _refuse_unknown(foreign, path, commands)
    for key, value in content.get(name, {}).items():
        option = options.get(key.replace("-", "_"))
        if option is None:
            raise UserError(f"{path}: [{name}] has no setting {key!r}{_meant(key, options)}")
        settings[str(option.name)] = _as_given(option, value)
    return settings


def _options_of(command: click.Command) -> dict[str, click.Option]:
    """By their flags' names, which are those of the file: `--max-tokens` is `max_tokens`."""
    return {
        flag[2:].replace("-", "_"): option
        for option in command.params
        if isinstance(option, click.Option) and option.name != "config"
        for flag in option.opts
        if flag.startswith("--")
    }


def _as_given(option: click.Option, value: Any) -> Any:
    """A TOML value as a command line would give it: a list for a flag that is repeated, or that takes commas."""
    if option.multiple:
        return value if isinstance(value, list) else [value]
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _refuse_unknown(keys: list[str], path: Path, commands: Mapping[str, str]) -> None:
    # The other commands are imported only for this: a setting of theirs is no mistake.
    known: set[str] = set()
    for name in commands:
        known |= _options_of(importlib.import_module(f"llamanet.cli.{name}").command).keys()
    for key in keys:
        if key.replace("-", "_") not in known:
            raise UserError(f"{path}: no command has a setting {key!r}{_meant(key, known)}")


def _meant(name: str, known: Mapping[str, Any] | set[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1)
    return f"; is {close[0]!r} meant?" if close else ""
