"""What is no grammar is told, with its place; what llama.cpp could not follow in bounded time is refused, fast."""

import time

import pytest

from llamanet.node.gbnf import MAX_NESTING, Grammar, GrammarError
from llamanet.node.gbnf_stacks import MAX_STACKS, check_stacks

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# white space
ws ::= | " " | "\n" [ \t]{0,20}
"""


def checked(text: str) -> Grammar:
    grammar = Grammar(text)
    check_stacks(grammar)
    return grammar


@pytest.mark.parametrize(
    "text",
    [
        JSON,
        'root ::= "yes" | "no"\n',
        'root ::= ("a" |\n "b")+ # a comment\nother ::= [^a-z-]',
        'root ::= "é" .{3} [\\u00e9\\U0001F600] "\\x41\\t"',
        'root ::= e\r\ne ::= t ("+" t)*\nt ::= [0-9]+ | "(" e ")"',
        "root ::= " + "(" * MAX_NESTING + '"a"' + ")" * MAX_NESTING,
        "root ::= " + " | ".join(f'"w{number}"' for number in range(MAX_STACKS)),
        'root ::= ([a-z]{1,12} " "){1,100}',
        'root ::= "a" root "a" | "b" root "b" | ""',
        'root ::= "" | x\nx ::= "x"?',
    ],
)
def test_ordinary_grammars_pass(text: str) -> None:
    checked(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no rule root"),
        ('stem ::= "a"', "no rule root"),
        ("root ::= x", "no rule 'x'"),
        ("root ::= (", r"line 1, column 11 of the grammar: '\)' is missing"),
        ('root ::= "a"\nb ::= "a', "line 2, column 9 of the grammar: a literal does not end"),
        ("root ::= [a", "does not end"),
        ('root = "a"', "line 1, column 6 of the grammar: '::=' is missing"),
        ('::= "a"', "name is missing"),
        ("root ::= *", "nothing to repeat"),
        ('root ::= "a" | *', "nothing to repeat"),
        ('root ::= ""*', "nothing to repeat"),
        ('root ::= "a"{x}', r"not \{n\}"),
        ('root ::= "a"{3,2}', "wrong order"),
        ('root ::= "a"{2001}', "2001 times"),
        ('root ::= ("a"?){50}{50}', "too many"),
        ('root ::= "\\q"', r"no escape \\q"),
        ('root ::= "\\', "no escape"),
        ('root ::= "\\x4"', "2 hexadecimal digits"),
        ('root ::= "a" )', "end of the line"),
        ("root ::= <[5]>", "end of the line"),
        ("root ::= " + "(" * (MAX_NESTING + 1), "nested too deep"),
        ('root ::= "' + "a" * 1000 + '"{1000}', "elements"),
        ('root ::= root "a" | "b"', "left recursion"),
        ('root ::= a root "x"\na ::= b b\nb ::= "" | "z"', "left recursion"),
        ("root ::= a\na ::= b\nb ::= a", "left recursion"),
        ('root ::= (("a"*)*)*', "left recursion"),
    ],
)
def test_what_is_no_grammar_is_told(text: str, told: str) -> None:
    with pytest.raises(GrammarError, match=told):
        checked(text)


def rules(last: int, line: str) -> str:
    """`line` for each number, which leads to the next one; the first is the root."""
    lines = [line.format(number=number, next=number + 1) for number in range(last)]
    return "\n".join(["root ::= r0", *lines, f'r{last} ::= "z"'])


@pytest.mark.parametrize(
    "text",
    [
        rules(40, "r{number} ::= r{next} | r{next}"),
        rules(40, 'r{number} ::= r{next} "x" | r{next} "y"'),
        rules(40, 'r{number} ::= "a" r{next} | "a" r{next} "y"'),
        'root ::= "a" root "b" | "a" root "c" | ""',
        'root ::= "q"{1000} s\ns ::= " " s "b" | " " s "c" | ""',
        'root ::= "q"{1000} s\ns ::= "x" "1" | "x" "2" | "x" "3" | "a" s "b" | "a" s "c"',
        'root ::= ("a"?){1000} "b"',
        "root ::= " + " | ".join(f'"w{number}"' for number in range(MAX_STACKS + 1)),
        "root ::= " + "a " * 30 + '\na ::= "a"? "b"? "a"?',
        'root ::= "' + "q" * 60 + '" ' + "a " * 30 + '\na ::= "a"? "b"? "a"?',
        'root ::= "' + "q" * 60 + '" s t\ns ::= "x" ' + '"a"? ' * 10 + "\nt ::= " + '"a"? ' * 10,
    ],
)
def test_too_many_ways_to_read_a_text_are_refused_at_once(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(GrammarError, match="ways to read"):
        checked(text)
    assert time.perf_counter() - start < 2


def test_the_largest_grammars_are_checked_in_bounded_time() -> None:
    start = time.perf_counter()
    for text in (
        rules(1500, "r{number} ::= r{next}"),
        'root ::= "' + "a" * 65_000 + '"',
        "root ::= " + '"a" ' * 16_000,
    ):
        checked(text)
    assert time.perf_counter() - start < 5
