// The swarm on its id ring: each node at the angle of its id, with its load; who answers whom; who came, left, took over.
//
// Load is told by an arc's length and in figures beside the colour. Everything that is drawn here can be read in the
// table and in the log too, so to a screen reader the ring is one picture with a summary.

import { s } from "./dom.js";
import { plural, state } from "./format.js";

const LABELLED = 24;
const LABEL_HEIGHT = 30;
const LABEL_GAP = 18;
const LABEL_CHARACTERS = 14;
const CHARACTER_PX = 7;
const LANE_PX = 20;
const LANES = 3;
const GHOST_MS = 6000;
const FAILOVER_MS = 5000;

const angleOf = (id) => (parseInt(id.slice(0, 12), 16) / 2 ** 48) * 2 * Math.PI;

export class Ring {
  constructor(svg, live) {
    this.svg = svg;
    this.live = live;
    /** Nodes that left, by id: {node, until}. */
    this.ghosts = new Map();
    /** Failovers to be shown: {from, to, until}, as labels. */
    this.failovers = [];
    this.drawn = new Map();
    this.layers = Object.fromEntries(["scale", "wires", "moves", "nodes", "hub"].map((name) => [name, s("g", { class: name })]));
    svg.append(...Object.values(this.layers));
    new ResizeObserver(() => this.draw()).observe(svg);
    live.addEventListener("picture", () => this.draw());
    live.addEventListener("moves", (event) => this.takeMoves(event.detail));
    live.addEventListener("request", (event) => this.takeRequest(event.detail));
  }

  takeMoves({ moves, gone, past }) {
    if (past) return;
    for (const node of gone) if (node) this.ghosts.set(node.id, { node, until: performance.now() + GHOST_MS });
    for (const move of moves) if (move.kind === "joined") this.ghosts.delete(move.id);
  }

  takeRequest(event) {
    if (event.kind === "moved") {
      this.failovers.push({ from: event.from_node, to: event.to_node, until: performance.now() + FAILOVER_MS });
      this.failovers = this.failovers.slice(-20);
    }
    this.soon();
  }

  /** Draw once, however much happens before the next frame. */
  soon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const width = this.svg.clientWidth;
    const height = this.svg.clientHeight;
    if (!width) return;
    const now = performance.now();
    for (const [id, ghost] of this.ghosts) if (ghost.until < now) this.ghosts.delete(id);
    this.failovers = this.failovers.filter((failover) => failover.until > now);
    this.svg.setAttribute("viewBox", `${-width / 2} ${-height / 2} ${width} ${height}`);
    const all = [...this.live.nodes.values()].map((node) => ({ node, ghost: false }));
    for (const { node } of this.ghosts.values()) if (!this.live.nodes.has(node.id)) all.push({ node, ghost: true });
    const labelled = all.length <= LABELLED;
    const longest = Math.min(LABEL_CHARACTERS, Math.max(6, ...all.map(({ node }) => node.node_id.length)));
    const room = Math.max(50, Math.min(width / 2 - (labelled ? 20 + longest * CHARACTER_PX : 20), height / 2 - 26));
    let [places, radius] = [placeNodes(all, room), room];
    const lanes = Math.max(0, ...places.map(({ lane }) => lane));
    if (lanes) {
      radius = Math.max(50, room - lanes * LANE_PX);
      places = placeNodes(all, radius);
    }
    if (labelled) placeLabels(places, radius, radius + lanes * LANE_PX);
    this.drawScale(radius);
    this.drawWires(places, radius);
    this.drawNodes(places, labelled);
    this.drawHub();
    this.summarise(places);
  }

  drawScale(radius) {
    if (this.radius === radius) return;
    this.radius = radius;
    const ticks = [];
    for (let step = 0; step < 64; step += 1) {
      const angle = (step / 64) * 2 * Math.PI;
      const [x, y] = [Math.sin(angle), -Math.cos(angle)];
      const inner = radius - (step % 16 ? 3 : 7);
      ticks.push(s("line", { x1: x * inner, y1: y * inner, x2: x * radius, y2: y * radius, class: step % 16 ? null : "quarter" }));
      if (step % 16 === 0) {
        const word = s("text", { x: x * (radius - 20), y: y * (radius - 20) + 4 }, ["00", "40", "80", "c0"][step / 16]);
        ticks.push(word);
      }
    }
    this.layers.scale.replaceChildren(s("circle", { r: radius }), ...ticks);
  }

  drawWires(places, radius) {
    const byLabel = new Map(places.map((place) => [place.node.node_id, place]));
    const counts = new Map();
    for (const request of this.live.requests.values()) {
      if (request.node !== null) counts.set(request.node, (counts.get(request.node) ?? 0) + 1);
    }
    reconcile(this.layers.wires, [...counts].filter(([label]) => byLabel.get(label)?.ghost === false), ([label]) => label, {
      make: () => s("g", { class: "wire" }, s("path", { class: "base" }), s("path", { class: "flow" })),
      update: (group, [label, count]) => {
        const path = bend({ x: 0, y: 0 }, byLabel.get(label), 0.12);
        for (const line of group.children) line.setAttribute("d", path);
        group.style.setProperty("--width", String(Math.min(1.5 + count * 0.5, 5)));
      },
    });
    const moves = this.failovers.filter(({ from }) => byLabel.has(from));
    reconcile(this.layers.moves, moves, (move) => `${move.from} ${move.to} ${move.until}`, {
      make: () => s("g", { class: "failover" }, s("path", { class: "lost" }), s("path", { class: "cross" }), s("path", { class: "over" }), s("path", { class: "head" })),
      update: (group, { from, to }) => {
        const [lost, cross, over, head] = group.children;
        const start = byLabel.get(from);
        const end = byLabel.get(to);
        lost.setAttribute("d", bend({ x: 0, y: 0 }, start, 0.12));
        const [x, y] = [start.x * 0.55, start.y * 0.55];
        cross.setAttribute("d", `M${x - 5} ${y - 5}l10 10M${x + 5} ${y - 5}l-10 10`);
        if (!end || end === start) return;
        const way = { x: end.x - start.x, y: end.y - start.y };
        const length = Math.hypot(way.x, way.y);
        const tip = { x: end.x - (way.x / length) * 15, y: end.y - (way.y / length) * 15 };
        over.setAttribute("d", `M${start.x} ${start.y}Q${(start.x + end.x) * 0.3} ${(start.y + end.y) * 0.3} ${tip.x} ${tip.y}`);
        const slope = Math.atan2(tip.y - (start.y + end.y) * 0.3, tip.x - (start.x + end.x) * 0.3);
        const at = (turn) => `${tip.x - 9 * Math.cos(slope + turn)} ${tip.y - 9 * Math.sin(slope + turn)}`;
        head.setAttribute("d", `M${at(0.45)}L${tip.x} ${tip.y}L${at(-0.45)}`);
      },
    });
  }

  drawNodes(places, labelled) {
    const size = places.length > 200 ? 3 : places.length > 60 ? 5 : 9;
    reconcile(this.layers.nodes, places, ({ node }) => node.id, {
      make: ({ node }) =>
        s("g", { class: "node joining", "data-id": node.id },
          s("title"),
          s("line", { class: "leader" }),
          s("circle", { class: "halo" }),
          s("circle", { class: "rim" }),
          s("circle", { class: "load", pathLength: 100, transform: "rotate(-90)" }),
          s("circle", { class: "core" }),
          s("path", { class: "gone" }),
          s("text", {}, s("tspan", { class: "name" }), s("tspan", { class: "figures", dy: 14 }))),
      update: (group, { node, ghost, x, y, side, labelX, labelY }) => {
        const [title, leader, halo, rim, load, core, gone, text] = group.children;
        const share = node.slots ? Math.min(1, node.running / node.slots) * 100 : 0;
        group.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
        group.classList.remove("idle", "busy", "full", "over");
        group.classList.add(state(node));
        group.classList.toggle("ghost", ghost);
        group.classList.toggle("draining", node.draining || node.silent);
        title.textContent = `${node.node_id}: ${node.running} of ${plural(node.slots, "slot")} in use, ${node.waiting} waiting`;
        for (const circle of [rim, load]) circle.setAttribute("r", size);
        halo.setAttribute("r", size + 6);
        core.setAttribute("r", size * 0.4);
        load.setAttribute("stroke-dasharray", `${share} 100`);
        gone.setAttribute("d", ghost ? `M${-size} ${-size}L${size} ${size}M${size} ${-size}L${-size} ${size}` : "");
        text.toggleAttribute("hidden", !labelled);
        leader.toggleAttribute("hidden", !labelled);
        if (!labelled) return;
        const shift = labelY - y;
        for (const line of text.children) line.setAttribute("x", labelX - x);
        text.setAttribute("y", shift - 2);
        text.setAttribute("text-anchor", side < 0 ? "end" : "start");
        text.children[0].textContent = shorten(node.node_id);
        text.children[1].textContent = ghost ? "left" : `${node.running}/${node.slots}${node.waiting ? `, ${node.waiting} wait` : ""}`;
        for (const [name, value] of [["x1", side * size], ["x2", labelX - x - side * 3], ["y1", 0], ["y2", shift]]) leader.setAttribute(name, value);
        leader.classList.toggle("bent", Math.abs(shift) > 6 || Math.abs(labelX - x) > LABEL_GAP + 4);
      },
    });
  }

  drawHub() {
    const { hub } = this.layers;
    if (!hub.firstChild) hub.append(s("rect", { x: -13, y: -13, width: 26, height: 26, rx: 8 }), s("text", { class: "count", y: 5 }), s("text", { class: "word", y: 29 }, "gateway"));
    hub.querySelector(".count").textContent = String(this.live.requests.size);
    hub.classList.toggle("active", this.live.requests.size > 0);
  }

  summarise(places) {
    const alive = places.filter((place) => !place.ghost);
    const busy = alive.filter(({ node }) => node.running > 0).length;
    this.svg.setAttribute("aria-label", alive.length ? `${plural(alive.length, "node")} on the id ring, ${busy} of them computing; the table below lists them` : "No nodes yet");
  }

  /** Point out a node, from the table. */
  highlight(id) {
    for (const group of this.layers.nodes.children) group.classList.toggle("picked", group.dataset.id === id);
  }
}

/** Keep the children of `parent` in step with `items`, each known by its key. */
function reconcile(parent, items, keyOf, { make, update }) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    if (child) known.delete(key);
    else {
      child = make(item);
      child.dataset.key = key;
      parent.append(child);
    }
    update(child, item);
  }
  for (const child of known.values()) child.remove();
}

/** A slightly bent line, so that a request and a failover between the same two points can be told apart. */
function bend(from, to, amount) {
  const middle = { x: (from.x + to.x) / 2 - (to.y - from.y) * amount, y: (from.y + to.y) / 2 + (to.x - from.x) * amount };
  return `M${from.x} ${from.y}Q${middle.x} ${middle.y} ${to.x} ${to.y}`;
}

/** Where each node is: at the angle of its id, and further out if another one is there already. */
function placeNodes(all, radius) {
  const places = [];
  for (const { node, ghost } of [...all].sort((a, b) => (a.node.id < b.node.id ? -1 : 1))) {
    const angle = angleOf(node.id);
    let place;
    for (let lane = 0; lane < LANES; lane += 1) {
      const out = radius + lane * LANE_PX;
      place = { node, ghost, lane, x: Math.sin(angle) * out, y: -Math.cos(angle) * out };
      if (all.length > LABELLED || !places.slice(-2 * LANES).some((other) => Math.hypot(other.x - place.x, other.y - place.y) < LANE_PX)) break;
    }
    places.push(place);
  }
  return places;
}

/**
 * Give each place a `side` (-1 left, 1 right), and `labelX` and `labelY` outside of the circle `outer`, such that no two
 * labels of one side overlap.
 */
function placeLabels(places, radius, outer) {
  for (const place of places) place.side = place.x < 0 ? -1 : 1;
  for (const pole of [-1, 1]) {
    // Where the ring runs flat, neighbours would have their labels on each other: they share the two sides.
    const flat = places.filter(({ y }) => y * pole > radius * 0.8).sort((a, b) => a.x - b.x);
    if (flat.length > 1) flat.forEach((place, index) => (place.side = index < flat.length / 2 ? -1 : 1));
  }
  for (const side of [-1, 1]) {
    const labels = places.filter((place) => place.side === side).sort((a, b) => a.y - b.y);
    labels.forEach((place, index) => {
      place.labelY = index ? Math.max(place.y, labels[index - 1].labelY + LABEL_HEIGHT) : place.y;
    });
    // What was pushed down too far comes back by half, and pushes those above it up.
    for (let index = labels.length - 1; index >= 0; index -= 1) {
      const ceiling = index < labels.length - 1 ? labels[index + 1].labelY - LABEL_HEIGHT : Infinity;
      const pushed = labels[index].labelY - labels[index].y;
      labels[index].labelY = Math.min(ceiling, labels[index].labelY - Math.max(0, pushed / 2));
    }
    for (const place of labels) {
      const edge = Math.sqrt(Math.max(0, outer ** 2 - place.labelY ** 2));
      place.labelX = side * Math.max(side * place.x, edge) + side * LABEL_GAP;
    }
  }
}

const shorten = (label) => (label.length > LABEL_CHARACTERS ? `${label.slice(0, LABEL_CHARACTERS - 1)}…` : label);
