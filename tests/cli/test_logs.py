"""Log lines for machines, and what must not get into any."""

import json
import logging
import subprocess
import sys

from llamanet.cli.logs import JsonFormatter

HEADERS = """
import logging
from hpack import Decoder, Encoder
from llamanet.cli.logs import set_up_logging
set_up_logging("debug", "text")
logging.getLogger("wsproto").debug("a frame")
Decoder().decode(Encoder().encode([("authorization", "Bearer sk-secret")]))
"""


def test_json_lines():
    record = logging.LogRecord("llamanet.x", logging.WARNING, "x.py", 1, "%s is\nnot there", ("é",), None)
    record.created = 0.25
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "warning",
        "logger": "llamanet.x",
        "message": "é is\nnot there",
    }


def test_an_exception_is_part_of_its_line():
    try:
        raise ValueError("odd")
    except ValueError:
        record = logging.LogRecord("llamanet", logging.ERROR, "x.py", 1, "failed", None, sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["error"].endswith("ValueError: odd")


def test_an_api_key_gets_into_no_log():
    # In a process of its own: logging is set up once.
    done = subprocess.run([sys.executable, "-c", HEADERS], capture_output=True, text=True, timeout=60, check=True)
    assert "a frame" in done.stderr
    assert "secret" not in done.stderr
