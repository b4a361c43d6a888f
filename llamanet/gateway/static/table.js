// The nodes as a table: sorted by any column, filtered, each with its details on demand. Rows are updated in place.

import { byId, h, setText } from "./dom.js";
import { age, plural, rate, seconds, state, STATE_WORDS } from "./format.js";

const FILTER_FROM = 8;

const COLUMNS = [
  { name: "Node", by: (node) => node.node_id, class: "name" },
  { name: "Models", by: (node) => node.models.join(", "), class: "models-column" },
  { name: "Load", by: (node) => node.load, class: "load-column" },
  { name: "Slots", by: (node) => node.slots, class: "number" },
  { name: "Tokens/s", by: (node) => node.tokens_per_second, class: "number" },
  { name: "TTFT", by: (node) => node.ttft_s, class: "number" },
  { name: "Version", by: (node) => node.version, class: "spare" },
  { name: "Seen", by: (node, live) => live.now() - node.since, class: "number spare", title: "For how long this gateway has known the node" },
];

export class NodeTable {
  constructor(table, live, { onpoint }) {
    Object.assign(this, { live, onpoint, sorted: 0, descending: false, open: new Set() });
    this.rows = new Map();
    this.heads = COLUMNS.map((column, index) =>
      h("th", { scope: "col", class: column.class }, h("button", { type: "button", title: column.title, onclick: () => this.sortBy(index) }, column.name)));
    this.body = h("tbody");
    table.append(h("caption", { class: "unseen" }, "Nodes of the swarm"), h("thead", {}, h("tr", {}, ...this.heads)), this.body);
    this.filter = byId("node-filter");
    this.filter.addEventListener("input", () => this.draw());
    live.addEventListener("picture", () => this.draw());
    this.draw();
  }

  sortBy(index) {
    this.descending = this.sorted === index && !this.descending;
    this.sorted = index;
    this.draw();
  }

  draw() {
    const { by } = COLUMNS[this.sorted];
    const words = this.filter.value.toLowerCase().split(/\s+/);
    const all = [...this.live.nodes.values()];
    this.filter.hidden = all.length < FILTER_FROM && !this.filter.value;
    const shown = all.filter((node) => words.every((word) => `${node.node_id} ${node.models.join(" ")} ${node.id}`.toLowerCase().includes(word)));
    const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    shown.sort((a, b) => (this.descending ? -1 : 1) * order(by(a, this.live), by(b, this.live)) || order(a.id, b.id));
    this.heads.forEach((head, index) => {
      if (index === this.sorted) head.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const wanted = shown.flatMap((node) => this.rowsOf(node));
    for (const id of this.rows.keys()) if (!this.live.nodes.has(id)) this.rows.delete(id);
    if (!wanted.length) {
      this.body.replaceChildren(h("tr", { class: "none" }, h("td", { colspan: COLUMNS.length }, all.length ? "No node matches" : "No nodes yet")));
      return;
    }
    // Only what is out of place is moved, or the focus would be lost each second.
    const stay = new Set(wanted);
    for (const row of [...this.body.children]) if (!stay.has(row)) row.remove();
    wanted.forEach((row, index) => {
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
    });
  }

  rowsOf(node) {
    if (!this.rows.has(node.id)) this.rows.set(node.id, this.makeRow(node));
    const row = this.rows.get(node.id);
    row.update(node);
    return this.open.has(node.id) ? [row.element, row.details] : [row.element];
  }

  makeRow(node) {
    const button = h("button", { type: "button", "aria-expanded": "false", onclick: () => this.toggle(node.id) });
    const fill = h("span", { class: "fill" });
    const words = h("span", { class: "words" });
    const load = h("td", { class: "load-column" }, h("span", { class: "bar", "aria-hidden": "true" }, fill), words);
    const cells = COLUMNS.map((column, index) => (index ? h("td", { class: column.class }) : null));
    cells[0] = h("th", { scope: "row", class: "name" }, button);
    cells[2] = load;
    const element = h("tr", { onpointerenter: () => this.onpoint(node.id), onpointerleave: () => this.onpoint(null), onfocusin: () => this.onpoint(node.id), onfocusout: () => this.onpoint(null) }, ...cells);
    const facts = h("dl", { class: "facts" });
    const details = h("tr", { class: "details" }, h("td", { colspan: COLUMNS.length }, facts));
    const update = (node) => {
      element.className = state(node);
      setText(button, node.node_id);
      button.setAttribute("aria-expanded", String(this.open.has(node.id)));
      setText(cells[1], node.models.join(", "));
      fill.style.width = `${Math.min(100, node.load * 100)}%`;
      const note = node.draining ? "leaving" : node.silent ? "silent" : STATE_WORDS[state(node)];
      setText(words, `${Math.round(node.load * 100)} %`);
      words.title = note;
      if (node.waiting) setText(words, `${Math.round(node.load * 100)} %, ${node.waiting} wait`);
      if (node.draining || node.silent) setText(words, note);
      setText(cells[3], `${node.running}/${node.slots}`);
      setText(cells[4], node.tokens_per_second ? rate(node.tokens_per_second) : "–");
      setText(cells[5], node.ttft_s ? seconds(node.ttft_s) : "–");
      setText(cells[6], node.version);
      setText(cells[7], age(this.live.now() - node.since));
      const told = [["Id", node.id], ["Address", `${node.address} (${node.tls ? "TLS" : "no TLS"})`], ["Models", node.models.join(", ") || "none"], ["Waiting", plural(node.waiting, "request")], ["Round trip", seconds(node.rtt)], ["Version", node.version], ["Seen for", age(this.live.now() - node.since)]];
      if (facts.children.length !== told.length) facts.replaceChildren(...told.map(([name]) => h("div", {}, h("dt", {}, name), h("dd"))));
      told.forEach(([, value], index) => setText(facts.children[index].lastChild, value));
    };
    return { element, details, update };
  }

  toggle(id) {
    if (!this.open.delete(id)) this.open.add(id);
    this.draw();
  }
}
