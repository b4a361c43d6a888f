"""What an answer may look like when tools are offered, as GBNF: words, calls as the model writes them, or both. Pure.

Rules:
- Words never hold what calls begin with, so whoever reads the text can tell them apart as they come.
- A call has the name of a function that is offered, and arguments that follow its schema.
- The grammar says it all from the first token on, and nothing waits for a trigger: a resumed answer is gone through
  like any other.
"""

import json
import re
from collections.abc import Sequence

from llamanet.errors import RequestRefused
from llamanet.node.grammar import check_grammar, schema_rules
from llamanet.node.tool_prompt import CallStyle
from llamanet.wire.inference import Generate
from llamanet.wire.tools import CALL, CallFormat, Tool

MAX_CALLS_AT_ONCE = 16
"""In one answer, so that a model which cannot stop does not go on for ever."""
MAX_PARAMETERS_CHARS = 131_072
"""Of all schemas together: to turn so much into a grammar takes a second."""
_NO_PARAMETERS = '{"type": "object", "properties": {}}'
_SPACE = "[ \\n]?"


def tools_grammar(request: Generate, style: CallStyle) -> str:
    """GBNF for the answer to `request`, which has tools, by a model that writes calls in `style`.

    A JSON schema of the request holds for an answer in words. Raises `RequestRefused`.
    """
    form = style.form
    tools = [tool for tool in request.tools if request.tool_name in (None, tool.name)]
    if not tools:
        raise RequestRefused(f"there is no tool {request.tool_name!r} to choose", "tool_name")
    if len({tool.name for tool in tools}) < len(tools):
        raise RequestRefused("two tools have the same name", "tools")
    if (size := sum(len(tool.parameters or "") for tool in tools)) > MAX_PARAMETERS_CHARS:
        limit = f"{MAX_PARAMETERS_CHARS} characters"
        raise RequestRefused(f"the parameters of the tools have {size} characters together", "tools", limit)
    if request.sampling.grammar is not None:
        raise RequestRefused("tools and a grammar do not go together", "sampling.grammar", "a JSON schema, or none")
    parallel = style.native if request.parallel_tool_calls is None else request.parallel_tool_calls
    several = style.several and parallel and request.tool_name is None
    schemas = {f"tool-{number}": _schema(tool, f"tools[{number}].parameters") for number, tool in enumerate(tools)}
    if request.tool_choice == "required" or request.tool_name is not None:
        root = "calls"
        words: list[str] = []
    elif (answer := request.sampling.json_schema) is not None:
        schemas["answer"] = (answer, "sampling.json_schema")
        root, words = "calls | answer", []
    elif form.bare:
        root, words = "calls | words", _words_that_begin_otherwise((form.marker, CALL))
    else:
        root, words = "words calls?", _words_without(form.marker)
    grammar = "\n".join([f"root ::= {root}", *_calls(tools, form, several), *words, schema_rules(schemas)])
    check_grammar(grammar, "tools")
    return grammar


def _schema(tool: Tool, field: str) -> tuple[str, str]:
    schema = tool.parameters or _NO_PARAMETERS
    try:
        plain = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"the parameters of {tool.name} are not valid JSON: {error}", field) from error
    if type(plain) is not dict or plain.get("type", "object") != "object":
        raise RequestRefused(f"the parameters of {tool.name} are no schema of an object", field, '{"type": "object"}')
    return schema, field


def _calls(tools: Sequence[Tool], form: CallFormat, several: bool) -> list[str]:
    more = f" ({_flexible(form.between)} call){{0,{MAX_CALLS_AT_ONCE - 1}}}" if several else ""
    marker = f"{_literal(form.marker)}?" if form.bare else _literal(form.marker)
    # Mistral's templates write ids, so its models may.
    id = ' ("," [ ]? "\\"id\\":" [ ]? "\\"" [a-zA-Z0-9]{9} "\\"")?' if form.marker == "[TOOL_CALLS]" else ""
    return [
        f"calls ::= {marker} {_flexible(form.begin)} call{more} {_flexible(form.end)}",
        f'call ::= {_literal(CALL)} [ ]? ({" | ".join(f"named-{number}" for number in range(len(tools)))}){id} "}}"',
        *(
            f"named-{number} ::= {_literal(json.dumps(tool.name, ensure_ascii=False) + ',')} [ ]? "
            f"{_literal(json.dumps(form.arguments) + ':')} [ ]? tool-{number}"
            for number, tool in enumerate(tools)
        ),
    ]


def _words_without(marker: str) -> list[str]:
    """Rules for all text that does not hold `marker`: how much of it the text ends with, as Knuth, Morris & Pratt."""
    rules = []
    for known in range(len(marker)):
        places: dict[int, str] = {}
        for character in sorted(set(marker)):
            text = marker[:known] + character
            place = next(n for n in range(len(text), -1, -1) if text.endswith(marker[:n]))
            places[place] = places.get(place, "") + character
        others = [(f"[^{_escaped(''.join(sorted(set(marker))))}]", 0)]
        steps = others + [(f"[{_escaped(characters)}]", place) for place, characters in places.items()]
        alternatives = [f"{one_of} {_name(place)}" for one_of, place in steps if place < len(marker)]
        rules.append(f"{_name(known)} ::= ({' | '.join(alternatives)})?")
    return rules


def _words_that_begin_otherwise(beginnings: Sequence[str]) -> list[str]:
    """Rules for all text that begins with none of `beginnings`."""
    rules = ["any ::= .*"]
    places = [""]
    for known in places:
        following = sorted({each[len(known)] for each in beginnings if each.startswith(known)})
        alternatives = [f"[^{_escaped(''.join(following))}] any"]
        for character in following:
            if known + character not in beginnings:
                alternatives.append(f"[{_escaped(character)}] {_name(len(places))}")
                places.append(known + character)
        rules.append(f"{_name(places.index(known))} ::= ({' | '.join(alternatives)})?")
    return rules


def _name(place: int) -> str:
    return f"words-{place}" if place else "words"


def _flexible(text: str) -> str:
    """`text`, with a space, a line's end or nothing where it has white space."""
    parts = [_SPACE if part.isspace() else _literal(part) for part in re.split(r"(\s+)", text) if part]
    return " ".join(parts)


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _escaped(characters: str) -> str:
    return "".join(f"\\x{ord(character):02x}" for character in characters)
