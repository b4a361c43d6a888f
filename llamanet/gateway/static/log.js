// What happens, newest first: joins, leaves, and how requests fare. What matters is also told to screen readers.

import { announce, h } from "./dom.js";
import { clock, plural, rate, seconds } from "./format.js";

const KEPT = 200;

export class Log {
  constructor(list, checkbox, live) {
    this.list = list;
    live.addEventListener("moves", ({ detail: { moves, past } }) => {
      if (!past) for (const { kind, label } of moves) this.add(kind, kind === "joined" ? "+" : "−", label, kind === "joined" ? "joined" : "left");
    });
    live.addEventListener("request", ({ detail }) => this.takeRequest(detail));
    const show = () => list.classList.toggle("moves-only", !checkbox.checked);
    checkbox.addEventListener("change", show);
    show();
  }

  takeRequest(event) {
    const model = event.model ?? "any model";
    if (event.kind === "answered") this.add("request", "›", event.node_id, `answers for ${model} after ${seconds(event.ttft)}`);
    if (event.kind === "moved") this.add("moved", "⤳", event.from_node, `lost a request${event.to_node ? ` to ${event.to_node}` : ""}: ${event.reason}`);
    if (event.kind === "ended") this.addEnd(event, model);
  }

  addEnd(event, model) {
    if (event.status === 499) this.add("request", "×", event.node_id ?? "gateway", `was told to stop after ${plural(event.tokens, "token")}`);
    else if (event.status >= 400) this.add("failed", "!", event.node_id ?? "gateway", `could not answer for ${model} (${event.status})`);
    else this.add("request", "✓", event.node_id ?? "gateway", `${plural(event.tokens, "token")} in ${seconds(event.seconds)}${event.seconds > 0 && event.tokens > 1 ? `, ${rate(event.tokens / event.seconds)} a second` : ""}`);
  }

  add(kind, sign, who, what) {
    const now = new Date();
    this.list.prepend(h("li", { class: kind }, h("time", { datetime: now.toISOString() }, clock(now)), h("span", { class: "sign", "aria-hidden": "true" }, sign), h("span", {}, h("b", {}, who), ` ${what}`)));
    while (this.list.children.length > KEPT) this.list.lastChild.remove();
    if (kind !== "request") announce(`${who} ${what}`);
  }
}
