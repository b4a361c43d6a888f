// The swarm as `/live` tells it: kept up to date here, and announced to whatever draws it.
//
// Events: "picture" after each look at the swarm, "request" with what happened to one, "moves" with nodes that came or
// left, "link" when the connection is made or lost.

import { ask, eventsOf } from "./api.js";

const HISTORY_S = 300;
const HIDDEN_MS = 30000;
const RETRY_MS = [500, 1000, 2000, 5000];
const MAX_REQUESTS = 2000;
const GIVEN_UP = new Set([401, 403]);

export class Live extends EventTarget {
  nodes = new Map();
  models = [];
  points = [];
  /** Requests that run, by id: {model, node, since}. `node` is a label, or null before one answers. */
  requests = new Map();
  trouble = null;
  dhtSize = 0;
  link = "connecting";
  /** What is to be added to the page's clock (seconds) to get the gateway's. */
  skew = 0;

  constructor() {
    super();
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.hiding);
      // Nobody looks at a hidden page, so nobody need ask the swarm for it.
      if (document.hidden) this.hiding = setTimeout(() => this.stop(), HIDDEN_MS);
      else if (this.aborter.signal.aborted) this.run();
    });
  }

  now() {
    return performance.now() / 1000 + this.skew;
  }

  stop() {
    this.aborter?.abort();
  }

  /** Follow the feed for as long as the page is looked at. */
  async run() {
    this.stop();
    this.aborter = new AbortController();
    const { signal } = this.aborter;
    for (let failures = 0; !signal.aborted; failures += 1) {
      try {
        const response = await ask("live", { signal });
        failures = 0;
        for await (const { event, data } of eventsOf(response)) this.take(event, JSON.parse(data));
        this.setLink("lost");
      } catch (error) {
        if (signal.aborted) return;
        this.setLink(GIVEN_UP.has(error.status) ? "locked" : "lost");
        if (GIVEN_UP.has(error.status)) return;
      }
      await new Promise((wake) => setTimeout(wake, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]));
    }
  }

  setLink(link) {
    if (this.link === link) return;
    this.link = link;
    this.tell("link");
  }

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  take(event, data) {
    if (event === "picture") this.takePicture(data);
    else if (event === "request") this.takeRequest(data);
  }

  takePicture(news) {
    this.skew = news.now - performance.now() / 1000;
    if (news.whole) {
      this.nodes.clear();
      this.requests.clear();
      this.points = [];
    }
    const gone = news.left.map((id) => this.nodes.get(id));
    for (const id of news.left) this.nodes.delete(id);
    for (const node of news.nodes) this.nodes.set(node.id, node);
    if (news.models) this.models = news.models;
    this.dhtSize = news.dht_size;
    this.points.push(...news.points.map(([at, tokensPerSecond, running, waiting]) => ({ at, tokensPerSecond, running, waiting })));
    this.points = this.points.filter((point) => point.at > news.now - HISTORY_S);
    this.trouble = news.trouble;
    this.setLink("live");
    if (news.moves.length) this.tell("moves", { moves: news.moves, gone, past: news.whole });
    this.tell("picture");
  }

  takeRequest(event) {
    const id = event.request_id;
    const known = this.requests.get(id);
    if (event.kind === "started") {
      this.requests.set(id, { model: event.model, node: null, since: this.now() });
      if (this.requests.size > MAX_REQUESTS) this.requests.delete(this.requests.keys().next().value);
    } else if (event.kind === "ended") this.requests.delete(id);
    else {
      const node = event.kind === "moved" ? event.to_node : event.node_id;
      this.requests.set(id, { ...(known ?? { since: this.now() }), model: event.model, node });
    }
    this.tell("request", event);
  }
}
