"""What README and docs say to do is done, on real nodes with the real model; `doc_session` tells how."""

import re
import shlex
from pathlib import Path

import click
import pytest
from doc_session import ROOT, RUN, Session, blocks_of, commands_of
from fake_hub import FakeHub

from llamanet.cli import COMMANDS, cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLLOWED = [
    "README.md",
    *(f"docs/{name}.md" for name in ("start", "running", "embedding", "tools", "upstream", "gateway", "earlier")),
    *(f"docs/{name}.md" for name in ("models", "operations")),
]


@pytest.fixture(scope="module")
def hub(model):
    hub = FakeHub()
    hub.files["owner/repo"] = {"a-Q4_K_M.gguf": model.read_bytes()}
    yield hub.url
    hub.close()


def test_every_page_with_something_to_run_is_followed():
    by_hand = {"configuration.md"}  # Its file is read by every command, in `test_site`.
    told = {page.name for page in PAGES if any(block.language in ("sh", "toml") for block in blocks_of(page))}
    assert told - by_hand == {Path(name).name for name in FOLLOWED}


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_page_does_what_it_says(name, model, hub, tmp_path):
    page = ROOT / name
    with Session(tmp_path, model.parent, hub) as session:
        for block in blocks_of(page):
            if block.language in (*RUN, "new swarm"):
                try:
                    session.run(block)
                except AssertionError as error:
                    raise AssertionError(f"{name}, line {block.line}: {error}") from error


def told_commands():
    for page in PAGES:
        for block in blocks_of(page):
            if block.language in ("sh", "console"):
                for line in commands_of(re.sub(r"^\$ ", "", block.text, flags=re.MULTILINE)):
                    if line.startswith("llamanet "):
                        yield pytest.param(line, id=f"{page.name}:{block.line}: {line[:60]}")


@pytest.mark.parametrize("line", list(told_commands()))
def test_a_command_and_its_options_exist(line):
    command: click.Command = cli
    words = shlex.split(line, comments=True)[1:]
    with click.Context(cli) as context:
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(context, words.pop(0))
            assert found is not None, line
            command = found
        known = {flag for parameter in command.get_params(context) for flag in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python(page):
    for block in blocks_of(page):
        if block.language == "python":
            compile(block.text, f"{page.name}:{block.line}", "exec", flags=0x2000)  # Top-level await.


def test_the_simulation_on_the_page_of_the_dht_finds_its_record(capsys):
    [block] = [block for block in blocks_of(ROOT / "docs/dht.md") if block.language == "python"]
    exec(block.text, {})
    assert re.fullmatch(r"Found\(first_value_s=0\.\d+, hops=\d+, requests=\d+\)\n", capsys.readouterr().out)


def test_readme_and_start_show_every_command():
    text = Path(ROOT / "README.md").read_text() + Path(ROOT / "docs/start.md").read_text()
    assert [name for name in COMMANDS if f"llamanet {name}" not in text] == []
