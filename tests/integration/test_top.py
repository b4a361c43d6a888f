"""`llamanet top` on real nodes: printed, as JSON, and on a terminal, which Ctrl-C leaves."""

import json
import sys
import termios

import pexpect


def test_a_snapshot_tells_of_every_node_and_of_the_dht(run, swarm_of_three):
    result = run("top", "--once", "--bootstrap-nodes", swarm_of_three[0].dht_address)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("3 nodes, 1 models, 0 of 12 slots answer, 0 requests wait")
    assert "contacts" in lines[1]
    assert [line.split()[0] for line in lines[4:]] == ["node-1", "node-2", "node-3"]


def test_json_is_one_object_a_line(run, swarm_of_three):
    result = run("top", "--once", "--json", "--bootstrap-nodes", swarm_of_three[0].dht_address)
    (line,) = result.stdout.splitlines()
    snapshot = json.loads(line)
    assert [node["node_id"] for node in snapshot["nodes"]] == ["node-1", "node-2", "node-3"]
    assert snapshot["dht"]["joined"] is True


def test_a_terminal_is_drawn_anew_until_ctrl_c(swarm_of_three, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    arguments = ["-m", "llamanet", "top", "--interval", "0.5", "--bootstrap-nodes", swarm_of_three[0].dht_address]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=30, dimensions=(30, 160))
    for _ in range(3):
        child.expect("3 nodes, 1 models")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, child.signalstatus) == (0, None)


def test_q_leaves_and_gives_the_terminal_back(swarm_of_three, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    arguments = ["-m", "llamanet", "top", "--interval", "60", "--bootstrap-nodes", swarm_of_three[0].dht_address]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=30, dimensions=(30, 160))
    before = termios.tcgetattr(child.child_fd)
    child.expect("3 nodes, 1 models")
    child.send("xq")
    child.expect(pexpect.EOF)
    assert termios.tcgetattr(child.child_fd) == before
    child.close()
    assert (child.exitstatus, child.signalstatus) == (0, None)


def test_a_narrow_terminal_shows_less_of_a_node_and_cuts_no_number(swarm_of_three, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    arguments = ["-m", "llamanet", "top", "--bootstrap-nodes", swarm_of_three[0].dht_address]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=30, dimensions=(30, 80))
    child.expect(r"running[^\n]*waiting[^\n]*tokens/s[^\n]*first token[^\n]*state")
    child.expect(r"node-1[^\n]* s[^\n]*ready")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
