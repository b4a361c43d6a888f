"""`llamanet chat` with the real model: on a terminal, and fed by a pipe."""

import json
import re
import sys

import pexpect
import pytest

from llamanet.testing.processes import start_swarm

PROMPT = r">(?: |\x08)"
"""Its space may be drawn as a movement of the cursor."""
SENT = r"\?2004l"
"""What ends the line that was typed, on the terminal: what follows is the answer."""
QUESTION = "Tell me a very long story about a llama."


@pytest.fixture(scope="module")
def bootstrap(model):
    with start_swarm(1, "--model-path", str(model), "--n-threads", "1") as (node,):
        yield node.dht_address


@pytest.fixture
def terminal(bootstrap, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")
    monkeypatch.chdir(tmp_path)
    arguments = ["-m", "llamanet", "chat", "--bootstrap-nodes", bootstrap, "--temperature", "0", "--seed", "1"]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=60, dimensions=(50, 200))
    child.expect("Ctrl-D to leave")
    yield child
    child.close(force=True)


def say(child, line):
    child.expect(PROMPT)
    child.send(line + "\r")


def test_ctrl_c_stops_an_answer_and_not_the_conversation(terminal):
    say(terminal, QUESTION)
    terminal.expect(SENT)
    terminal.expect("[a-z]+ [a-z]+")
    terminal.sendintr()
    terminal.expect("stopped")
    say(terminal, "/set max_tokens 8")
    say(terminal, "And now?")
    terminal.expect(r"node-1, \d+ tokens")
    say(terminal, "/save talk.json")
    terminal.expect("saved 4 turns")
    say(terminal, "/quit")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_a_line_can_be_broken_and_the_end_of_the_input_leaves(terminal, tmp_path):
    terminal.expect(PROMPT)
    terminal.send("/system You count.\x1b\rAlways.\r")
    say(terminal, "/set max_tokens 4")
    say(terminal, "1, 2,")
    terminal.expect(r"node-1, \d+ tokens")
    say(terminal, "/save talk.json")
    terminal.expect("saved 2 turns")
    terminal.expect(PROMPT)
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["messages"][0] == {"role": "system", "content": "You count.\nAlways."}


def test_a_pipe_is_read_line_by_line_and_mistakes_are_one_line(run, bootstrap, tmp_path):
    lines = [
        "/model",
        "/nix",
        "/model nobody-has-it",
        "/set top_p 7",
        "hi",
        "/set top_p default",
        "/set max_tokens 6",
        "hi",
        "/node",
    ]
    result = run(
        "chat",
        "--bootstrap-nodes",
        bootstrap,
        "--temperature",
        "0",
        stdin="\n".join(lines),
        XDG_STATE_HOME=str(tmp_path),
    )
    assert result.returncode == 0
    errors = re.findall(r"^error: (.*)$", result.stderr, re.M)
    assert [error.split(";")[0].split(" does")[0] for error in errors][:2] == ["/nix is no command", "the swarm"]
    assert "top_p" in errors[2]
    assert result.stdout.strip()
    assert re.search(r"^node-1, 6 tokens", result.stderr, re.M)
    assert re.search(r"^\* node-1", result.stderr, re.M)


def test_a_model_that_nobody_serves_is_told_at_once(run, bootstrap):
    result = run("chat", "--bootstrap-nodes", bootstrap, "--model", "nobody-has-it", stdin="")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_a_pipe_whose_last_question_is_not_answered_fails(run, tmp_path):
    result = run("chat", "--bootstrap-nodes", "127.0.0.1:9", stdin="hi\n", XDG_STATE_HOME=str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("error: not joined to any swarm")
