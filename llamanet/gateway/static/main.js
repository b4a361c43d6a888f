// The page: what is drawn where, and the API key, if one is wanted.

import { key, keys } from "./api.js";
import { Chart } from "./chart.js";
import { Chat } from "./chat.js";
import { byId, h, setText } from "./dom.js";
import { plural, rate } from "./format.js";
import { Live } from "./live.js";
import { Log } from "./log.js";
import { Ring } from "./ring.js";
import { NodeTable } from "./table.js";

const live = new Live();
const ring = new Ring(byId("ring"), live);
new NodeTable(byId("nodes"), live, { onpoint: (id) => ring.highlight(id) });
new Log(byId("log"), byId("log-requests"), live);
new Chart(byId("rate-chart"), live, {
  title: "Computed",
  height: 128,
  series: [{ name: "tokens/s", of: (point) => point.tokensPerSecond, class: "rate" }],
  format: (value) => (value >= 10 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1)),
});
new Chart(byId("request-chart"), live, {
  title: "Requests",
  height: 88,
  series: [
    { name: "running", of: (point) => point.running, class: "running" },
    { name: "waiting", of: (point) => point.waiting, class: "waiting" },
  ],
  format: (value) => (Number.isInteger(value) ? String(value) : ""),
});
new Chat(live);

// --- figures, models, and the state of the link ------------------------------------------------------------------------

const LINK_WORDS = { connecting: "connecting", live: "live", lost: "connection lost, trying again", locked: "locked: needs an API key" };

live.addEventListener("picture", () => {
  const nodes = [...live.nodes.values()];
  const sum = (of) => nodes.reduce((total, node) => total + of(node), 0);
  setText(byId("figure-nodes"), String(nodes.length));
  setText(byId("figure-slots"), `${sum((node) => node.running)} / ${sum((node) => node.slots)}`);
  setText(byId("figure-waiting"), String(sum((node) => node.waiting)));
  setText(byId("figure-rate"), rate(live.points.at(-1)?.tokensPerSecond ?? 0));
  setText(byId("figure-dht"), String(live.dhtSize));
  byId("trouble").hidden = live.trouble === null;
  setText(byId("trouble"), live.trouble ?? "");
  showModels();
});

function showModels() {
  const told = JSON.stringify(live.models);
  if (byId("models").told === told) return;
  byId("models").told = told;
  const items = live.models.map((model) =>
    h("li", {},
      h("b", {}, model.name),
      h("span", {}, `${plural(model.nodes, "node")}, ${plural(model.slots, "slot")}, context ${model.n_ctx.toLocaleString("en")}`),
      ...model.digests.map((digest) => h("code", { title: `SHA-256 ${digest}` }, digest.slice(0, 12)))));
  byId("models").replaceChildren(...(items.length ? items : [h("li", { class: "none" }, "No model is served yet")]));
}

live.addEventListener("link", () => {
  byId("link").dataset.state = live.link;
  setText(byId("link").querySelector(".words"), LINK_WORDS[live.link]);
  byId("key-button").hidden = live.link !== "locked" && !key.get();
});

// --- the view, on screens that have no room for both ---------------------------------------------------------------------

for (const view of ["swarm", "chat"]) {
  byId(`view-${view}`).addEventListener("click", () => {
    document.body.dataset.view = view;
    for (const other of ["swarm", "chat"]) byId(`view-${other}`).setAttribute("aria-pressed", String(other === view));
  });
}
document.querySelector(".skip").addEventListener("click", () => byId("view-chat").click());

// --- the API key ---------------------------------------------------------------------------------------------------------

const dialog = byId("key-dialog");

function askForKey(message) {
  byId("key-error").hidden = !key.get();
  setText(byId("key-error"), message ?? "");
  if (!dialog.open) dialog.showModal();
}

keys.addEventListener("wanted", ({ detail }) => askForKey(detail));
byId("key-button").addEventListener("click", () => askForKey());
byId("key-cancel").addEventListener("click", () => dialog.close());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  byId("key").value = "";
  dialog.close();
  live.run();
});

live.run();
