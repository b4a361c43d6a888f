"""One thing that a doctor tells: what it found, and, unless all is well with that, why it matters and what to do."""

import enum

import attrs


class Level(str, enum.Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """Something works worse than it could, or may fail later."""
    ERROR = "error"
    """Something does not work."""


@attrs.frozen
class Finding:
    """A finding. `check` is the name of what was looked at, the same in every version."""

    check: str
    level: Level
    what: str
    why: str = ""
    do: str = ""


def ok(check: str, what: str) -> Finding:
    """All is well with that."""
    return Finding(check, Level.OK, what)


def warning(check: str, what: str, why: str, do: str) -> Finding:
    """That could be better."""
    return Finding(check, Level.WARNING, what, why, do)


def error(check: str, what: str, why: str, do: str) -> Finding:
    """That does not work."""
    return Finding(check, Level.ERROR, what, why, do)
