"""Settings from a TOML file: `--config FILE`, the variable LLAMANET_CONFIG, or the file in the platform's usual place.

    bootstrap_nodes = ["192.0.2.7:8001"]    # for every command that has the setting

    [node]                                  # for one command
    model_path = ["models/a.gguf"]
    n_ctx = 4096

Rules:
- `--config` may stand before a command, after it, and after a command of a group; the last one counts.
- A setting bears its flag's name, with `_` or `-`. A flag comes before its variable, a variable before the file, and
  the file before the default. A command's own table comes before what stands outside of all tables; that of a group,
  such as [control], is for each of its commands that has the setting.
- What no command knows is a mistake and is told, with the name that was probably meant.
- Paths are relative to where the command runs, as they are in flags.
- Where a setting came from is kept, so that an error about its value can tell the place (`origin`).
"""

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from llamanet.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "config.toml"
READS_TOO = {"doctor": ("gateway", "node")}
"""Tables of other commands that a command looks at too, as far as it has their settings; a later one comes first."""
CONFIG_PATH = "llamanet.config"
"""Under this key of a context's `meta` stands the file that gave it settings."""
_NAMED = "llamanet.config.named"
"""Under this key stands the file that was named by a flag."""
_PLACES = "llamanet.config.places"
"""Under this key stands where each setting, by click's name of its parameter, is in the file."""
_CONTEXT = "llamanet.context"
"""Under this key stands the context of the innermost command."""


def name_config(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    """The callback of a `--config` that stands before the command which will read the file."""
    if context.get_parameter_source("config") is ParameterSource.COMMANDLINE:
        context.meta[_NAMED] = path


def add_config_option(command: click.Command, commands: Mapping[str, str]) -> None:
    """Give `command`, one of `commands`, the option `--config`; and if it is a group, each command of it."""

    def load(context: click.Context, option: click.Parameter, path: Path | None) -> None:
        name_config(context, option, path)
        context.meta[_CONTEXT] = context
        path = context.meta.get(_NAMED, path)
        usual = path is None
        if path is None:
            import platformdirs

            path = platformdirs.user_config_path("llamanet") / FILE_NAME
        content = _read(path, may_lack=usual)
        given = _given_to(command, content, path, commands)
        options = _options_of(context.command)
        context.default_map = _as_map(options, given)
        context.meta[CONFIG_PATH] = path
        context.meta[_PLACES] = {options[flag].name: where for flag, where, _ in given if flag in options}

    if isinstance(command, click.Group):
        command.params.append(config_option(name_config))
        for member in command.commands.values():
            member.params.append(config_option(load))
    else:
        command.params.append(config_option(load))


def config_option(callback: Callable[[click.Context, click.Parameter, Path | None], None]) -> click.Option:
    """The option `--config`."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        envvar="LLAMANET_CONFIG",
        show_envvar=True,
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=callback,
        help="Settings in TOML.",
        show_default=f"{FILE_NAME} in the user's configuration folder",
    )


def origin(context: click.Context, message: str) -> str:
    """Where the settings are whose flags `message` names, as " (in FILE: [node] n_ctx)"; "" for flags themselves."""
    inner: click.Context = context.meta.get(_CONTEXT, context)
    places = []
    for option in inner.command.params:
        if option.name == "config" or not any(
            re.search(rf"(?<![\w-]){flag}(?![\w-])", message) for flag in option.opts
        ):
            continue
        source = inner.get_parameter_source(option.name or "")
        if source is ParameterSource.DEFAULT_MAP:
            places.append(f"in {context.meta[_PLACES][option.name]}")
        elif source is ParameterSource.ENVIRONMENT:
            places.append(f"in the variable {_variable(option, inner)}")
    return f" ({', '.join(places)})" if places else ""


def _variable(option: click.Parameter, context: click.Context) -> str:
    if isinstance(option.envvar, str) and os.environ.get(option.envvar):
        return option.envvar
    return f"{context.auto_envvar_prefix}_{option.name}".upper()


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


def _given_to(
    command: click.Command, content: dict[str, Any], path: Path, commands: Mapping[str, str]
) -> list[tuple[str, str, Any]]:
    """What the file says to this command: flag, place in the file and value, of which a later one comes first.

    Raises `UserError`.
    """
    name = command.name or ""
    options = _options_of(command)
    foreign = []
    for key, value in content.items():
        if isinstance(value, dict):
            if key not in commands:
                raise UserError(f"{path}: there is no command for the table [{key}]{_meant(key, commands)}")
        elif _plain(key) not in options:
            foreign.append(key)
    if foreign:
        _refuse_unknown(foreign, path, commands)
    given = [
        (_plain(key), f"{path}: {key}", value)
        for key, value in content.items()
        if _plain(key) in options and not isinstance(value, dict)
    ]
    for table in READS_TOO.get(name, ()):
        for key, value in content.get(table, {}).items():
            given.append((_plain(key), f"{path}: [{table}] {key}", value))
    for key, value in content.get(name, {}).items():
        if _plain(key) not in options:
            raise UserError(f"{path}: [{name}] has no setting {key!r}{_meant(key, options)}")
        given.append((_plain(key), f"{path}: [{name}] {key}", value))
    return given


def _as_map(options: Mapping[str, click.Option], given: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    """Of `given`, which are flag, place in the file and value, what `options` take; a later one comes first."""
    return {
        str(options[flag].name): _as_given(options[flag], where, value)
        for flag, where, value in given
        if flag in options
    }


def _plain(key: str) -> str:
    return key.replace("-", "_")


def _options_of(command: click.Command) -> dict[str, click.Option]:
    """By their flags' names, which are those of the file: `--max-tokens` is `max_tokens`. Of a group, all commands'."""
    members = command.commands.values() if isinstance(command, click.Group) else ()
    return {
        _plain(flag[2:]): option
        for option in (*command.params, *(option for member in members for option in member.params))
        if isinstance(option, click.Option) and option.name != "config"
        for flag in option.opts
        if flag.startswith("--")
    }


def _as_given(option: click.Option, where: str, value: Any) -> Any:
    """A TOML value as a command line would give it: texts, and a list of them for a flag that is repeated.

    Raises `UserError` for what no command line can give.
    """
    if option.is_flag:
        if not isinstance(value, bool):
            raise UserError(f"{where} must be true or false, not {value!r}")
        return value
    texts = [_as_text(where, item) for item in (value if isinstance(value, list) else [value])]
    if option.multiple:
        return texts
    return ",".join(texts)


def _as_text(where: str, value: Any) -> str:
    # As a text, so that a number is taken for what the flag would take it for: 2.5 is no count.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where} cannot be {value!r}")
    return str(value)


def _refuse_unknown(keys: list[str], path: Path, commands: Mapping[str, str]) -> None:
    # The other commands are imported only for this: a setting of theirs is no mistake.
    known: set[str] = set()
    for name in commands:
        known |= _options_of(importlib.import_module(f"llamanet.cli.{name}").command).keys()
    for key in keys:
        if _plain(key) not in known:
            raise UserError(f"{path}: no command has a setting {key!r}{_meant(key, known)}")


def _meant(name: str, known: Mapping[str, Any] | set[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1)
    return f"; is {close[0]!r} meant?" if close else ""
