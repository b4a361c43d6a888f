"""A conversation on the terminal: what was said, with which settings, and what a line that begins with / means."""

import json
from typing import Any

import attrs

from llamanet.errors import UserError

COMMANDS = {
    "/model": "[NAME]        ask another model, or list those that the swarm serves",
    "/node": "              the nodes that serve the model, and which of them answered last",
    "/system": "[TEXT]        how the model is to behave; nothing takes it back",
    "/set": "NAME VALUE    temperature, max_tokens, top_p, seed, ...; VALUE default takes it back",
    "/retry": "              answer the last question again",
    "/undo": "              forget the last question and its answer",
    "/clear": "              forget the conversation",
    "/save": "FILE          keep the conversation: as JSON if FILE ends so, else as Markdown",
    "/help": "              this list",
    "/quit": "              leave; so does Ctrl-D",
}
KEYS = """\
Enter sends, Alt-Enter (or Esc, Enter) begins a new line. Ctrl-C stops an answer, and keeps what there is of it.
A line that begins with / is a command, with // it is text that begins with one."""


@attrs.define
class Conversation:
    """What was said so far; `turns` alternate between "user" and "assistant"."""

    model: str | None = None
    system: str = ""
    settings: dict[str, Any] = attrs.field(factory=dict)
    turns: list[dict[str, str]] = attrs.field(factory=list)

    def messages(self) -> list[dict[str, str]]:
        """What a model is asked with."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.turns

    def ask(self, question: str) -> None:
        """Add a question."""
        self.turns.append({"role": "user", "content": question})

    def answer(self, text: str) -> None:
        """Add the answer to the last question; an empty one takes the question back."""
        if text:
            self.turns.append({"role": "assistant", "content": text})
        else:
            self.turns.pop()

    def undo(self) -> str | None:
        """Forget the last question, with its answer if there is one, and return it; None if nothing was asked."""
        while self.turns:
            turn = self.turns.pop()
            if turn["role"] == "user":
                return turn["content"]
        return None

    def set(self, name: str, value: str) -> None:
        """Change a setting of the draw; `default` takes it back. The swarm checks what it means."""
        if value == "default":
            self.settings.pop(name, None)
            return
        try:
            self.settings[name] = json.loads(value)
        except ValueError:
            self.settings[name] = value

    def as_json(self) -> str:
        """For programs: the messages as OpenAI's API has them, and the settings."""
        content = {"model": self.model, "settings": self.settings, "messages": self.messages()}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def as_markdown(self) -> str:
        """For people."""
        titles = {"system": "System", "user": "You", "assistant": self.model or "Model"}
        return "\n".join(f"## {titles[turn['role']]}\n\n{turn['content'].strip()}\n" for turn in self.messages())


def parse_line(line: str) -> tuple[str | None, str]:
    """(command, its argument), or (None, the text that was said). Raises `UserError` for an unknown command."""
    if line.startswith("//") or not line.startswith("/"):
        return None, line.removeprefix("/") if line.startswith("//") else line
    command, _, argument = line.partition(" ")
    matching = [name for name in COMMANDS if name.startswith(command)]
    if command not in COMMANDS and len(matching) != 1:
        raise UserError(f"{command} is {'not clear' if matching else 'no command'}; /help lists the commands")
    return (command if command in COMMANDS else matching[0]), argument.strip()
