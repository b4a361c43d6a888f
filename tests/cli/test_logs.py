"""Log lines for machines."""

import json
import logging
import sys

from llamanet.cli.logs import JsonFormatter


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
