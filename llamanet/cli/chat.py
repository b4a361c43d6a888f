"""`llamanet chat`: a conversation with the swarm on the terminal.

Rules:
- Ctrl-C stops the answer that runs, at its node too, and what there is of it stays in the conversation. At the prompt
  it takes back the line. Only /quit and the end of the input (Ctrl-D) leave.
- A mistake or an error is one line, and the conversation goes on as it was before.
- Answers go to standard output, all else to standard error. Without a terminal it reads its input line by line,
  and fails (exit status 1) if its last question was not answered.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamanet.cli.ask import closing_line, write
from llamanet.cli.conversation import COMMANDS, KEYS, Conversation, parse_line
from llamanet.cli.logs import set_up_logging
from llamanet.cli.options import asking, log_settings, swarm_settings
from llamanet.cli.progress import waiting
from llamanet.cli.terminal import harmless
from llamanet.errors import LlamaNetError, UserError

if TYPE_CHECKING:
    from llamanet.client.blocking import Client


@click.command("chat")
@swarm_settings
@click.option("--model", metavar="NAME", show_default="any", help="Ask only nodes that serve this model.")
@click.option("--system", metavar="TEXT", default="", help="How the model is to behave.")
@click.option("--temperature", type=float, show_default="0.8", help="0: always the likeliest token.")
@click.option(
    "--max-tokens", type=int, show_default="until the model ends", help="Stop an answer after so many tokens."
)
@click.option("--seed", type=int, show_default="a new one", help="The same seed draws the same answers.")
@log_settings("error")
def command(
    model: str | None,
    system: str,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
    log_level: str,
    log_format: str,
    **membership: Any,
) -> None:
    """Talk with a model of the swarm. /help lists what can be done beside talking."""
    set_up_logging(log_level, log_format)
    given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    settings = {name: value for name, value in given.items() if value is not None}
    # Imported only now, so that --help and a mistaken option are answered at once.
    from llamanet.client.blocking import Client

    with Client(**asking(membership)) as client:
        if model is not None:
            # A model that nobody serves is told now, not after a question was typed.
            _check_served(client, model)
        chat = _Chat(client, Conversation(model=model, system=system, settings=settings))
        if sys.stdin.isatty():
            _say(f"{model or 'any model'}; /help for help, Ctrl-D to leave", "bright_black")
        for line in _lines():
            if not chat.take(line):
                break
    if chat.unanswered and not sys.stdin.isatty():
        raise click.exceptions.Exit(1)


def _lines() -> Iterator[str]:
    """What the user types, until the end of the input."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    import platformdirs
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    history_file = platformdirs.user_state_path("llamanet") / "chat-history"
    try:
        history_file.parent.mkdir(parents=True, exist_ok=True)
        history_file.touch(mode=0o600)
        history: FileHistory | InMemoryHistory = FileHistory(str(history_file))
    except OSError:
        history = InMemoryHistory()
    session: PromptSession[str] = PromptSession(
        history=history, multiline=True, key_bindings=keys, prompt_continuation="  ", mouse_support=False
    )
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


class _Chat:
    """A conversation, and the swarm that it is held with."""

    def __init__(self, client: "Client", conversation: Conversation) -> None:
        self._client = client
        self._conversation = conversation
        self._last_node: str | None = None
        self.unanswered = False
        """Whether the last question got no answer, or not all of it."""

    def take(self, line: str) -> bool:
        """Do what a line says; False if it says to leave."""
        try:
            command, text = parse_line(line)
            if command == "/quit":
                return False
            if command is not None:
                self._obey(command, text)
            elif text.strip():
                self._ask(text)
        except LlamaNetError as error:
            _say(f"error: {error}", "red")
        except KeyboardInterrupt:
            _say("stopped", "yellow")
        return True

    def _obey(self, command: str, argument: str) -> None:
        conversation = self._conversation
        if command == "/help":
            _say("\n".join(f"{name:8} {what}" for name, what in COMMANDS.items()) + "\n" + KEYS)
        elif command == "/model" and argument:
            _check_served(self._client, argument)
            conversation.model = argument
        elif command == "/model":
            for model in self._client.models():
                _say(f"{'*' if model.name == conversation.model else ' '} {model.name}  ({model.nodes} nodes)")
        elif command == "/node":
            for node in self._client.nodes(conversation.model):
                mark = "*" if node.node_id == self._last_node else " "
                _say(f"{mark} {harmless(node.node_id)}  {node.address}  {node.tokens_per_second:.1f} tokens/s")
        elif command == "/system":
            conversation.system = argument
        elif command == "/set":
            name, _, value = argument.partition(" ")
            if not value.strip():
                raise UserError(f"/set needs a name and a value; now: {conversation.settings or 'all as by default'}")
            conversation.set(name, value.strip())
        elif command in ("/retry", "/undo"):
            question = conversation.undo()
            if question is None:
                raise UserError("nothing was asked yet")
            if command == "/retry":
                self._ask(question)
        elif command == "/clear":
            conversation.turns.clear()
        elif command == "/save":
            _save(conversation, argument)

    def _ask(self, question: str) -> None:
        conversation = self._conversation
        conversation.ask(question)
        self.unanswered = True
        texts: list[str] = []
        silence = contextlib.ExitStack()
        try:
            silence.enter_context(waiting("Waiting for an answer"))
            with self._client.stream(
                messages=conversation.messages(), model=conversation.model, **conversation.settings
            ) as stream:
                for chunk in stream:
                    silence.close()
                    texts.append(chunk.text)
                    write(harmless(chunk.text) if sys.stdout.isatty() else chunk.text)
                self._last_node = stream.node_id
        finally:
            silence.close()
            if texts:
                write("\n")
            conversation.answer("".join(texts))
        self.unanswered = False
        _say(closing_line(stream.reply()), "bright_black")


def _check_served(client: "Client", model: str) -> None:
    served = [view.name for view in client.models()]
    if model not in served:
        raise UserError(f"the swarm does not serve {model!r}; it serves {', '.join(served) or 'nothing'}")


def _save(conversation: Conversation, name: str) -> None:
    if not name:
        raise UserError("/save needs the name of a file")
    content = conversation.as_json() if name.endswith(".json") else conversation.as_markdown()
    try:
        with Path(name).expanduser().open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError as error:
        raise UserError(f"{name} exists; name another file") from error
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror}") from error
    _say(f"saved {len(conversation.turns)} turns in {name}")


def _say(text: str, colour: str | None = None) -> None:
    click.secho(text, fg=colour, err=True)
