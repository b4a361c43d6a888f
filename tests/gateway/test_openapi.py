"""Whether `/openapi.json` is true: Schemathesis asks what the document allows, and what not, and reads the answers."""

import re
import subprocess
import sys
import threading

import pytest
import trio

from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.service import serve_gateway
from llamanet.testing.cluster import Cluster

CASES = re.compile(r"(\d+) generated, (\d+) passed")


@pytest.fixture
def url():
    """A gateway before a scripted node, in a thread of its own."""
    started, found = threading.Event(), {}

    async def serve():
        async with trio.open_nursery() as nursery:
            cluster = Cluster(nursery)
            await cluster.start_node("first", answer_tokens=3)
            server = await nursery.start(serve_gateway, await cluster.start_client(), GatewayConfig(http_port=0))
            found.update(url=server.url, token=trio.lowlevel.current_trio_token(), scope=nursery.cancel_scope)
            started.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert started.wait(30)
    yield found["url"]
    trio.from_thread.run_sync(found["scope"].cancel, trio_token=found["token"])
    thread.join()


def test_the_document_is_true(url, tmp_path):
    # What the document cannot say is refused too: models that nobody serves, tools that are none.
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--seed", "1"]
    command += ["--phases", "coverage,fuzzing", "--max-examples", "25", "--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout
    generated, passed = CASES.search(done.stdout).groups()
    assert generated == passed
    assert int(generated) > 500
