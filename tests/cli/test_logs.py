"""What must not get into a log, however much of it is asked for."""

import subprocess
import sys

SCRIPT = """
import logging
from hpack import Decoder, Encoder
from llamanet.cli.logs import set_up_logging
set_up_logging("debug", "text")
logging.getLogger("wsproto").debug("a frame")
Decoder().decode(Encoder().encode([("authorization", "Bearer sk-secret")]))
"""


def test_a_key_is_in_no_log_of_headers():
    # In a process of its own: logging is set up once.
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert "a frame" in done.stderr
    assert "secret" not in done.stderr
