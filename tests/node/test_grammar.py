"""The bounds on grammars and schemas, and that what is within them is a grammar."""

import json
import time

import pytest

from llamanet.errors import RequestRefused
from llamanet.node.gbnf import MAX_NESTING
from llamanet.node.grammar import MAX_OPTIONAL, MAX_REPEATS, check_grammar, json_schema_grammar


def optional(count):
    return {"type": "object", "properties": {f"k{number}": {"type": "string"} for number in range(count)}}


def deep(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "yes" | "no"',
        "root ::= " + "(" * MAX_NESTING + '"a"' + ")" * MAX_NESTING,
        'root ::= "(((" [(((] # ((((\n' * 1000,
        'root ::= "ab"{1000}',
        'root ::= "{9999999999}"',
    ],
)
def test_ordinary_grammars_pass(grammar):
    check_grammar(grammar)


@pytest.mark.parametrize(
    ("grammar", "limit"),
    [
        ("root ::= " + "(" * (MAX_NESTING + 1), "1000"),
        ('root ::= "' + "a" * 1000 + '"{1000}', "500000"),
        ('root ::= "a"{99999999}', "2000"),
        ('root ::= "a"{1,99999999}', "2000"),
        ('root ::= "a"{,99999999}', "GBNF"),
        ('root ::= "a"\0', "without"),
        (r"root ::= [^\]" + "x" * 1000 + "]{1000}", "500000"),
    ],
)
def test_a_grammar_that_would_grow_too_large_is_refused(grammar, limit):
    with pytest.raises(RequestRefused) as caught:
        check_grammar(grammar)
    assert caught.value.field == "sampling.grammar"
    assert limit in caught.value.limit


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}, "required": ["n"]},
        {"type": "array", "items": {"enum": ["a", 1, None]}, "minItems": 2, "maxItems": 30},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "boolean"}}},
        {"type": "string", "pattern": "^[a-z]{1,100}$"},
        {"anyOf": [{"type": "null"}, {"type": "number"}]},
        deep(40),
        optional(MAX_OPTIONAL),
        {**optional(400), "required": [f"k{number}" for number in range(400)]},
    ],
)
def test_schemas_become_grammars(schema):
    grammar = json_schema_grammar(json.dumps(schema))
    assert "root ::= " in grammar


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"type": "nonsense"}', "nonsense"),
        ('{"properties": 1}', "cannot be used"),
        ('{"anyOf": [1]}', "cannot be used"),
        ('{"$ref": "https://example.org/schema"}', "not inside the schema"),
        ('{"$ref": "#/missing"}', "missing"),
        ('{"type": "string", "pattern": "^(a{100}){101}$"}', "multiply"),
        ('{"type": "string", "pattern": "a"}', "cannot be used"),
        *[
            (json.dumps({"type": kind, "items": {}, name: MAX_REPEATS + 1}), str(MAX_REPEATS + 1))
            for kind, name in [
                ("array", "minItems"), ("array", "maxItems"), ("string", "minLength"), ("string", "maxLength")
            ]
        ],
        (json.dumps(deep(400)), "elements"),
        (json.dumps(optional(MAX_OPTIONAL + 1)), "101 optional properties"),
    ],
)  # fmt: skip
def test_what_is_no_schema_is_refused(schema, told):
    start = time.perf_counter()
    with pytest.raises(RequestRefused, match=told) as caught:
        json_schema_grammar(schema)
    assert caught.value.field == "sampling.json_schema"
    assert caught.value.limit
    assert len(str(caught.value)) < 1000
    assert time.perf_counter() - start < 2
