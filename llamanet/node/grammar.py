"""What a request may use as a grammar: GBNF of a bounded size, or a JSON schema that becomes one. Pure.

The parsers behind it (llama.cpp's, and llama-cpp-python's converter of schemas) multiply what a repetition repeats and
recurse into what is nested, without limits of their own; so these are kept here, before they are called.
"""

import json
import re
from typing import Any

from llamanet.errors import RequestRefused

MAX_REPEATS = 1_000
"""The highest count of one repetition; llama.cpp refuses more than 2,000."""
MAX_PATTERN_REPEATS = 10_000
"""All counts in one regular expression, multiplied."""
MAX_NESTING = 1_000
"""Of parentheses."""
MAX_ELEMENTS = 500_000
"""What a grammar may grow to; llama.cpp takes 8 bytes for each."""

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_LITERAL = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', re.DOTALL)
_REPETITION = re.compile(r"\{\s*(\d{0,10})\s*,?\s*(\d{0,10})")


def check_grammar_size(grammar: str, field: str = "sampling.grammar") -> None:
    """Raises `RequestRefused`, naming `field`, for GBNF that would take too much to parse."""
    if "\0" in grammar:
        raise RequestRefused("the grammar has a NUL character", field, "GBNF without")
    literals = [len(literal) for literal in _LITERAL.findall(grammar)]
    bare = _LITERAL.sub(" ", grammar)
    depth = deepest = 0
    for bracket in re.findall(r"[()]", bare):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise RequestRefused(f"the grammar's parentheses are nested {deepest} deep", field, f"at most {MAX_NESTING}")
    counts = [max(int(count or 0) for count in found) for found in _REPETITION.findall(bare)]
    elements = len(grammar) + sum(counts) * max(literals, default=1)
    if elements > MAX_ELEMENTS:
        raise RequestRefused(f"the grammar's repetitions make {elements} elements", field, f"at most {MAX_ELEMENTS}")


def json_schema_grammar(schema: str) -> str:
    """GBNF for the JSON texts that follow `schema`, itself JSON. Raises `RequestRefused`."""
    try:
        plain = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise _schema_refused(f"the schema is not valid JSON: {error}") from error
    if type(plain) is not dict:
        raise _schema_refused("the schema is not a JSON object")
    # llama.cpp's library takes a while to load, and only a request with a schema needs it here.
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        _check_schema(plain)
        grammar: str = json_schema_to_gbnf(schema)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        # The converter checks nothing: which of these comes out depends on where the schema is wrong.
        raise _schema_refused(f"the schema cannot be used: {type(error).__name__}: {error}"[:500]) from error
    check_grammar_size(grammar, "sampling.json_schema")
    return grammar


def _check_schema(value: Any) -> None:
    for name, entry in value.items() if type(value) is dict else enumerate(value) if type(value) is list else ():
        if name in _COUNTS and type(entry) is int and entry > MAX_REPEATS:
            raise _schema_refused(f"{name} is {entry}", f"at most {MAX_REPEATS}")
        if name == "$ref" and type(entry) is str and not entry.startswith("#/"):
            raise _schema_refused(f"$ref {entry[:100]!r} is not inside the schema", "a $ref that begins with #/")
        if name == "pattern" and type(entry) is str:
            repeats = 1
            for found in _REPETITION.findall(entry):
                repeats *= max(1, *(int(count or 0) for count in found))
            if repeats > MAX_PATTERN_REPEATS:
                raise _schema_refused(f"the repetitions of pattern {entry[:100]!r} multiply", f"{MAX_PATTERN_REPEATS}")
        _check_schema(entry)


def _schema_refused(message: str, limit: str | None = None) -> RequestRefused:
    return RequestRefused(message, field="sampling.json_schema", limit=limit or "a JSON schema that llama.cpp can use")
