"""What a request may use as a grammar: GBNF that `node/gbnf.py` can read, or a JSON schema that becomes it. Pure.

llama-cpp-python's converter of schemas multiplies what a repetition repeats and recurses into what is nested, without
limits of its own; so these are kept here, before it is called.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from llamanet.errors import RequestRefused
from llamanet.node.gbnf import Grammar, GrammarError
from llamanet.node.gbnf_stacks import check_stacks

MAX_REPEATS = 1_000
"""The highest count in a schema."""
MAX_PATTERN_REPEATS = 10_000
"""All counts in one regular expression, multiplied."""

MAX_OPTIONAL = 100
"""Optional properties of one object; the converter's grammar grows with their square."""

_SCHEMA = "a JSON schema that llama.cpp can use"
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_REPETITION = re.compile(r"\{\s*(\d{0,10})\s*,?\s*(\d{0,10})")


def check_grammar(grammar: str, field: str = "sampling.grammar") -> None:
    """Raises `RequestRefused`, naming `field`, for what llama.cpp cannot read, or not follow in bounded time."""
    if "\0" in grammar:
        raise RequestRefused("the grammar has a NUL character", field, "GBNF without")
    try:
        check_stacks(Grammar(grammar))
    except GrammarError as error:
        raise RequestRefused(str(error), field, error.limit or "GBNF with a rule root") from error


def json_schema_grammar(schema: str) -> str:
    """GBNF for the JSON texts that follow `schema`, itself JSON. Raises `RequestRefused`."""
    grammar = "root ::= answer\n" + schema_rules({"answer": (schema, "sampling.json_schema")})
    check_grammar(grammar, "sampling.json_schema")
    return grammar


def schema_rules(schemas: Mapping[str, tuple[str, str]]) -> str:
    """GBNF rules, one by each of the names, for the JSON texts that follow the schema, itself JSON, that stands by it.

    Beside each schema stands the field that a `RequestRefused` about it names.
    """
    # llama.cpp's library takes a while to load, and only a request with a schema needs it here.
    from llama_cpp.llama_grammar import SchemaConverter

    converter = SchemaConverter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    rules = []
    for name, (schema, field) in schemas.items():
        try:
            plain = _load_schema(schema)
            _check_schema(plain)
            plain = converter.resolve_refs(_with_own_names(plain, name), name)
            rules.append(f"{name} ::= {converter.visit(plain, f'{name}-json')}")
            converter.format_grammar().encode()  # JSON can write lone surrogates, which are no text
        except RequestRefused as error:
            error.field = field
            raise
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
            message = f"the schema cannot be used: {type(error).__name__}: {error}"[:500]
            raise RequestRefused(message, field, _SCHEMA) from error
    return "\n".join([*rules, converter.format_grammar()])


def _load_schema(schema: str) -> dict[str, Any]:
    try:
        plain = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise _schema_refused(f"the schema is not valid JSON: {error}") from error
    if type(plain) is not dict:
        raise _schema_refused("the schema is not a JSON object")
    return plain


def _with_own_names(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """The same schema with other names for what it refers to.

    The converter names a rule after the last part of a reference, whatever else has that name.
    """
    targets: dict[str, str] = {}
    definitions: dict[str, Any] = {}

    def renamed(value: Any) -> Any:
        if type(value) is list:
            return [renamed(entry) for entry in value]
        if type(value) is not dict:
            return value
        reference = value.get("$ref")
        if type(reference) is not str:
            return {key: renamed(entry) for key, entry in value.items()}
        if reference not in targets:
            targets[reference] = f"{name}-ref-{len(targets)}"
            target: Any = schema
            for part in reference.split("/")[1:]:
                target = target[part]
            definitions[targets[reference]] = renamed(target)
        return {**value, "$ref": f"#/$defs/{targets[reference]}"}

    top = renamed({key: entry for key, entry in schema.items() if key not in ("$defs", "definitions")})
    return {**top, "$defs": definitions} if definitions else top


def _check_schema(value: Any) -> None:
    if type(value) is dict and type(properties := value.get("properties")) is dict:
        required = value.get("required")
        optional = len(properties.keys() - set(required if type(required) is list else ()))
        if optional > MAX_OPTIONAL:
            raise _schema_refused(f"an object has {optional} optional properties", f"at most {MAX_OPTIONAL}")
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
    return RequestRefused(message, limit=limit or _SCHEMA)
