"""The site builds strictly, without anything from another host, and its reference is what the commands say."""

import ast
import os
import re
import runpy
import subprocess
import sys

import pytest
from doc_session import ROOT, blocks_of

from llamanet.cli import COMMANDS

PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_page_is_in_the_site(site):
    assert {page.stem for page in PAGES} <= {page.stem for page in site.glob("*.html")}


def test_nothing_comes_from_another_host(site):
    """Links may lead away; scripts, styles, fonts and pictures may not come from there."""
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?((?:https?:)?//[^\"' >]+)", text)
        loaded += re.findall(
            r"<link[^>]*rel=[\"']?(?:stylesheet|preload|preconnect|icon)[^>]*href=[\"']?(https?:[^\"' >]+)", text
        )
        assert loaded == [], page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?https?:", style.read_text()), style.name


def test_the_configuration_page_is_what_the_commands_say():
    written = runpy.run_path(str(ROOT / "tools" / "make_configuration.py"))["page"]()
    hint = "run .venv/bin/python tools/make_configuration.py"
    assert (ROOT / "docs" / "configuration.md").read_text() == written, hint


def toml_blocks():
    pages = [ROOT / "README.md", *PAGES]
    return [
        pytest.param(block.text, id=f"{page.name}:{block.line}")
        for page in pages
        for block in blocks_of(page)
        if block.language == "toml"
    ]


@pytest.mark.parametrize("text", toml_blocks())
def test_a_configuration_is_understood(text, run, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(text)
    for command in COMMANDS:
        result = run(command, "--config", path, "--help")
        assert result.returncode == 0, result.stderr


def told_texts():
    """What the program can say: every text in it, with `...` for what it fills in."""
    for path in (ROOT / "llamanet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[-.\d]*[sdrfg]", "...", node.value)
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)


def test_the_messages_of_the_faq_are_those_of_the_program():
    told = "\n".join(told_texts())
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "faq.md").read_text(), flags=re.MULTILINE)
    messages = [
        message for row in rows for message in re.findall("`([^`]+)`", row) if not message.startswith("llamanet ")
    ]
    assert len(messages) > 20
    fragments = {fragment.strip(" .,;") for message in messages for fragment in message.split("...")}
    assert {fragment for fragment in fragments if fragment not in told} == set()
