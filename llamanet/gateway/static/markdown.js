// Markdown from a model, as DOM nodes.
//
// Rules:
// - Text becomes text nodes and nothing else: there is no markup string anywhere, so whatever a model writes stays text.
// - Elements are those named here, with the attributes given here. Links go to http(s) and mailto only; pictures are
//   shown as links, for loading one would tell its host who reads.
// - Nesting is bounded, and so is the time for each character.
// - A message that grows keeps the blocks that did not change, so a selection in them survives.

import { h } from "./dom.js";

const MAX_DEPTH = 8;
const MAX_OPEN = 10;
const MAX_INLINE = 50000;
const SCHEMES = new Set(["http:", "https:", "mailto:"]);

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])( {1,4}|\t|$)(.*)$/;
const TABLE_RULE = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** Show `source` in `container`, which belongs to this function alone. */
export function render(container, source) {
  const blocks = blocksOf(source.replaceAll("\r\n", "\n").split("\n"));
  blocks.forEach((block, index) => {
    const shown = container.children[index];
    if (shown?.source === block.source && shown?.kind === block.kind) return;
    const element = elementOf(block, 0);
    element.source = block.source;
    element.kind = block.kind;
    if (shown) shown.replaceWith(element);
    else container.append(element);
  });
  while (container.children.length > blocks.length) container.lastChild.remove();
}

/** Lines to blocks: `{kind, source, ...}`. `source` and `kind` together say all that there is to show. */
function blocksOf(lines) {
  const blocks = [];
  let at = 0;
  const take = (kind, from, more = {}) => blocks.push({ kind, source: lines.slice(from, at).join("\n"), ...more });
  while (at < lines.length) {
    const line = lines[at];
    const from = at;
    const fence = FENCE.exec(line);
    if (!line.trim()) at += 1;
    else if (fence) {
      const end = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`);
      at += 1;
      while (at < lines.length && !end.test(lines[at])) at += 1;
      const code = lines.slice(from + 1, at).join("\n");
      at = Math.min(at + 1, lines.length);
      take("code", from, { code, language: fence[2].trim() });
    } else if (HEADING.test(line)) {
      at += 1;
      const [, marks, text] = HEADING.exec(line);
      take("heading", from, { level: marks.length, text: text.trimEnd().replace(/ #+$/, "") });
    } else if (RULE.test(line)) {
      at += 1;
      take("rule", from);
    } else if (QUOTE.test(line)) {
      while (at < lines.length && QUOTE.test(lines[at])) at += 1;
      take("quote", from, { lines: lines.slice(from, at).map((quoted) => quoted.replace(QUOTE, "")) });
    } else if (ITEM.test(line)) {
      const { items, ordered, start, end } = itemsOf(lines, at);
      at = end;
      take("list", from, { items, ordered, start });
    } else if (line.includes("|") && at + 1 < lines.length && TABLE_RULE.test(lines[at + 1]) && lines[at + 1].includes("|")) {
      while (at < lines.length && lines[at].includes("|")) at += 1;
      const rows = lines.slice(from, at).map(cellsOf);
      take("table", from, { head: rows[0], rows: rows.slice(2) });
    } else {
      at += 1;
      while (at < lines.length && lines[at].trim() && !startsBlock(lines[at])) at += 1;
      take("paragraph", from, { text: lines.slice(from, at).map((part) => part.trimStart()).join("\n").trimEnd() });
    }
  }
  return blocks;
}

const startsBlock = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((start) => start.test(line));

/** A list from line `at` on: its items as lines without their marks, and where it ends. */
function itemsOf(lines, at) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const items = [];
  let indent = 0;
  while (at < lines.length) {
    const line = lines[at];
    const depth = line.length - line.trimStart().length;
    const item = ITEM.exec(line);
    const continues = items.length && depth >= indent;
    if (!line.trim()) {
      // A blank line belongs to the list if the list goes on after it.
      const next = lines[at + 1];
      if (next === undefined || !next.trim() || (next.length - next.trimStart().length < indent && !ITEM.test(next))) break;
      items.at(-1).push("");
    } else if (item && !continues) {
      if (/\d/.test(item[2]) !== ordered || RULE.test(line)) break;
      indent = item[1].length + item[2].length + 1;
      items.push([item[4]]);
    } else if (continues) items.at(-1).push(line.slice(indent));
    else if (startsBlock(line) || !lines[at - 1]?.trim()) break;
    else items.at(-1).push(line.trimStart());
    at += 1;
  }
  return { items, ordered, start: ordered ? Number.parseInt(first[2], 10) : null, end: at };
}

function cellsOf(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function elementOf(block, depth) {
  const inside = (lines) => (depth < MAX_DEPTH ? blocksOf(lines).map((inner) => elementOf(inner, depth + 1)) : [lines.join("\n")]);
  switch (block.kind) {
    case "code":
      return codeBlock(block);
    case "heading":
      // The page has headings of its own, above those of a message.
      return h(`h${Math.min(6, block.level + 2)}`, {}, ...inline(block.text));
    case "rule":
      return h("hr");
    case "quote":
      return h("blockquote", {}, ...inside(block.lines));
    case "list":
      return h(block.ordered ? "ol" : "ul", block.ordered && block.start !== 1 ? { start: block.start } : {}, ...block.items.map((lines) => h("li", {}, ...tight(inside(lines)))));
    case "table":
      return h("div", { class: "wide-table", tabindex: "0", role: "region", "aria-label": "Table" },
        h("table", {},
          h("thead", {}, h("tr", {}, ...block.head.map((cell) => h("th", { scope: "col" }, ...inline(cell))))),
          h("tbody", {}, ...block.rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, ...inline(cell))))))));
    default:
      return h("p", {}, ...inline(block.text));
  }
}

/** The first paragraph of a list item is no paragraph of its own. */
function tight(elements) {
  return elements[0]?.nodeName === "P" ? [...elements[0].childNodes, ...elements.slice(1)] : elements;
}

function codeBlock({ code, language }) {
  const button = h("button", { type: "button", class: "quiet copy", onclick: async () => {
    const done = await copy(code);
    button.textContent = done ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  } }, "Copy");
  return h("div", { class: "code" }, h("div", { class: "code-head" }, h("span", {}, language), button), h("pre", { tabindex: "0", role: "region", "aria-label": "Code" }, h("code", {}, code)));
}

/** Put `text` on the clipboard; whether that was allowed. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // There is no clipboard on plain HTTP from another machine.
  }
}

// --- inside a line ---------------------------------------------------------------------------------------------------

const LINK = /!?\[([^[\]\n]{0,500})\]\(((?:[^()\s]|\([^()\s]{0,200}\)){1,2000})(?:\s+"[^"\n]{0,200}")?\)/y;
const BARE_LINK = /https?:\/\/[^\s<>"'`]{1,2000}/y;
const TICKS = /`+/y;
const MARK = /\*{1,3}|_{1,3}|~~/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const ELEMENTS = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "del" };

function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

function safeUrl(written) {
  try {
    const url = new URL(written);
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const link = (href, ...children) => h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);

/** The nodes of a text in one block. Marks that are not closed stay what they are: text. */
function inline(text) {
  if (text.length > MAX_INLINE) return [text];
  const root = { mark: null, nodes: [] };
  const open = [root];
  const top = () => open.at(-1);
  let plain = "";
  const flush = () => {
    if (plain) top().nodes.push(plain);
    plain = "";
  };
  const add = (node) => {
    flush();
    top().nodes.push(node);
  };
  const giveUp = () => {
    const { mark, nodes } = open.pop();
    top().nodes.push(mark, ...nodes);
  };
  let at = 0;
  while (at < text.length) {
    const character = text[at];
    let found;
    if (character === "\\" && PUNCTUATION.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else if (character === "\n") {
      if (plain.endsWith("  ")) add(h("br"));
      else plain += "\n";
      at += 1;
    } else if (character === "`") {
      const ticks = match(TICKS, text, at)[0];
      const end = closing(text, ticks, at + ticks.length);
      if (end < 0) plain += ticks;
      else {
        const code = text.slice(at + ticks.length, end).replaceAll("\n", " ");
        add(h("code", {}, code.trim() && code.startsWith(" ") && code.endsWith(" ") ? code.slice(1, -1) : code));
      }
      at = end < 0 ? at + ticks.length : end + ticks.length;
    } else if ((character === "[" || (character === "!" && text[at + 1] === "[")) && (found = match(LINK, text, at)) && safeUrl(found[2])) {
      add(link(safeUrl(found[2]), found[1] || found[2]));
      at += found[0].length;
    } else if (character === "h" && (found = match(BARE_LINK, text, at)) && safeUrl(found[0].replace(/[.,;:!?)\]]+$/, ""))) {
      const shown = found[0].replace(/[.,;:!?)\]]+$/, "");
      add(link(safeUrl(shown), shown));
      at += shown.length;
    } else if ((character === "*" || character === "_" || character === "~") && (found = match(MARK, text, at))) {
      let marks = found[0];
      at += marks.length;
      const before = text[at - marks.length - 1] ?? " ";
      const after = text[at] ?? " ";
      const inWord = character === "_" && /\w/.test(before) && /\w/.test(after);
      for (; marks; marks = marks.slice(mark(marks).length)) {
        const one = mark(marks);
        const depth = open.findLastIndex((frame) => frame.mark === one);
        if (depth > 0 && !/\s/.test(before) && !inWord) {
          flush();
          while (open.length - 1 > depth) giveUp();
          const { nodes } = open.pop();
          if (nodes.length) top().nodes.push(h(ELEMENTS[one], {}, ...nodes));
          else plain += one + one;
        } else if (!/\s/.test(after) && !inWord && open.length < MAX_OPEN) {
          flush();
          open.push({ mark: one, nodes: [] });
        } else plain += one;
      }
    } else {
      plain += character;
      at += 1;
    }
  }
  flush();
  while (open.length > 1) giveUp();
  return root.nodes;
}

const mark = (marks) => (marks[0] === "~" || marks.length > 1 ? marks.slice(0, 2) : marks);

/** Where a run of exactly these backticks begins, from `at` on; -1 if nowhere. */
function closing(text, ticks, at) {
  while (at >= 0) {
    at = text.indexOf(ticks, at);
    if (at < 0) return -1;
    const run = match(TICKS, text, at)[0];
    if (run === ticks) return at;
    at += run.length;
  }
  return -1;
}
