// The chat: a conversation with the swarm, streamed, with the node that answers and each move to another one.

import { ask, eventsOf } from "./api.js";
import { Conversations, titleOf } from "./conversations.js";
import { announce, byId, h, setText } from "./dom.js";
import { plural, rate, seconds } from "./format.js";
import { copy, render } from "./markdown.js";

const NEAR_END_PX = 80;
const KNOBS = ["temperature", "top_p", "max_tokens", "seed"];

export class Chat {
  constructor(live) {
    this.live = live;
    this.store = new Conversations();
    /** What runs: {message, view, aborter, requestId}, or null. */
    this.running = null;
    this.list = byId("messages");
    this.form = byId("composer");
    this.text = byId("composer-text");
    this.model = byId("model");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    this.text.addEventListener("input", () => this.grow());
    byId("chat").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.running) this.stop();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("chat-new").addEventListener("click", () => this.begin());
    byId("conversations").addEventListener("beforetoggle", (event) => event.newState === "open" && this.listConversations());
    this.form.addEventListener("change", () => this.readSettings());
    live.addEventListener("picture", () => this.offerModels());
    live.addEventListener("request", ({ detail }) => this.takeRequest(detail));
    this.show();
  }

  get conversation() {
    return this.store.current;
  }

  // --- settings ----------------------------------------------------------------------------------------------------

  offerModels() {
    const names = ["auto", ...this.live.models.map(({ name }) => name)];
    if (!names.includes(this.conversation.model)) names.push(this.conversation.model);
    if (names.join("\n") === this.offered) return;
    this.offered = names.join("\n");
    this.model.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    this.model.value = this.conversation.model;
  }

  readSettings() {
    const fields = this.form.elements;
    this.conversation.model = fields.model.value;
    this.conversation.settings = Object.fromEntries(["system", ...KNOBS].map((name) => [name, fields[name].value]));
    this.store.save();
  }

  showSettings() {
    for (const name of ["system", ...KNOBS]) this.form.elements[name].value = this.conversation.settings[name] ?? "";
    this.offered = null;
    this.offerModels();
  }

  // --- conversations -----------------------------------------------------------------------------------------------

  begin() {
    this.stop();
    this.store.begin();
    this.show();
    this.text.focus();
  }

  listConversations() {
    const list = byId("conversations").querySelector("ul");
    const close = () => byId("conversations").hidePopover();
    const items = this.store.all.map((conversation) => {
      const title = titleOf(conversation);
      const open = h("button", { type: "button", class: "open", "aria-current": conversation.id === this.conversation.id ? "true" : null, onclick: () => {
        this.stop();
        this.store.open(conversation.id);
        this.show();
        close();
      } }, title);
      const remove = h("button", { type: "button", class: "quiet", "aria-label": `Delete ${title}`, onclick: () => {
        if (conversation.id === this.conversation.id) this.stop();
        this.store.remove(conversation.id);
        this.show();
        this.listConversations();
      } }, "Delete");
      return h("li", {}, open, remove);
    });
    list.replaceChildren(...(items.length ? items : [h("li", { class: "none" }, "Nothing was said yet")]));
  }

  show() {
    this.showSettings();
    this.views = this.conversation.messages.map((message, index) => this.makeView(message, index));
    this.list.replaceChildren(...(this.views.length ? this.views.map(({ element }) => element) : [this.welcome()]));
    this.list.scrollTop = this.list.scrollHeight;
    this.showRunning();
  }

  welcome() {
    return h("div", { class: "welcome" }, h("p", {}, "Whatever node will answer soonest answers."), h("p", {}, "Should it die in the middle, another one goes on from the same word."));
  }

  // --- messages ----------------------------------------------------------------------------------------------------

  makeView(message, index) {
    const mine = message.role === "user";
    const body = h("div", { class: "body" });
    const meta = h("p", { class: "meta" });
    const actions = h("p", { class: "actions" });
    const element = h("article", { class: `message ${message.role}`, "aria-label": mine ? "You" : "Answer" }, body, meta, actions);
    const view = { element, body, meta, actions, message, index };
    this.update(view);
    return view;
  }

  update(view) {
    const { message, body, meta, actions, index } = view;
    const runs = this.running?.message === message;
    if (message.role === "user") setText(body, message.content);
    else render(body, message.content);
    view.element.classList.toggle("running", runs);
    const parts = message.role === "user" ? [] : this.metaOf(message, runs);
    meta.hidden = !parts.length;
    if (meta.parts !== JSON.stringify(parts)) {
      meta.parts = JSON.stringify(parts);
      meta.replaceChildren(...parts.map(([kind, text]) => h("span", { class: kind }, text)));
    }
    const wanted = runs ? "" : `${message.role} ${index === this.conversation.messages.length - 1} ${Boolean(message.content)}`;
    if (actions.wanted === wanted) return;
    actions.wanted = wanted;
    const button = (name, onclick) => h("button", { type: "button", class: "quiet", onclick }, name);
    const last = index === this.conversation.messages.length - 1;
    const copyButton = button("Copy", async () => {
      copyButton.textContent = (await copy(message.content)) ? "Copied" : "Not allowed";
      setTimeout(() => (copyButton.textContent = "Copy"), 1500);
    });
    if (runs) actions.replaceChildren();
    else if (message.role === "user") actions.replaceChildren(button("Edit", () => this.edit(index)));
    else actions.replaceChildren(...(message.content ? [copyButton] : []), ...(last ? [button("Retry", () => this.retry())] : []));
  }

  metaOf(message, runs) {
    const parts = [];
    for (const hop of message.hops ?? []) parts.push(["hop", movedText(hop)]);
    if (message.error) parts.push(["error", message.error]);
    if (message.node) parts.push(["node", message.node]);
    if (message.model) parts.push(["model", message.model]);
    if (runs && !message.content) parts.push(["wait", "waiting for the first token"]);
    if (message.tokens > 1 && message.rate) parts.push(["fact", `${rate(message.rate)} tokens/s`]);
    if (message.ttft) parts.push(["fact", `first token ${seconds(message.ttft)}`]);
    if (message.tokens && !runs) parts.push(["fact", plural(message.tokens, "token")]);
    if (message.stopped) parts.push(["fact", "stopped"]);
    if (message.finish === "length") parts.push(["fact", "cut at max tokens"]);
    return parts;
  }

  edit(index) {
    this.stop();
    const [message] = this.conversation.messages.splice(index);
    this.store.save();
    this.show();
    this.text.value = message.content;
    this.grow();
    this.text.focus();
  }

  retry() {
    this.stop();
    while (this.conversation.messages.at(-1)?.role === "assistant") this.conversation.messages.pop();
    this.show();
    this.answer();
    this.text.focus();
  }

  // --- asking ------------------------------------------------------------------------------------------------------

  send() {
    const content = this.text.value.trim();
    if (!content || this.running) return;
    this.text.value = "";
    this.grow();
    this.conversation.messages.push({ role: "user", content });
    this.show();
    this.answer();
  }

  stop() {
    this.running?.aborter.abort();
  }

  request() {
    const { model, settings, messages } = this.conversation;
    const said = messages.filter(({ content }) => content).map(({ role, content }) => ({ role, content }));
    const body = { model, stream: true, stream_options: { include_usage: true }, messages: settings.system ? [{ role: "system", content: settings.system }, ...said] : said };
    for (const name of KNOBS) if (settings[name]) body[name] = Number(settings[name]);
    return body;
  }

  async answer() {
    const body = this.request();
    const message = { role: "assistant", content: "", hops: [] };
    this.conversation.messages.push(message);
    const view = this.makeView(message, this.conversation.messages.length - 1);
    const running = { message, view, aborter: new AbortController(), requestId: newRequestId() };
    this.running = running;
    this.views.push(view);
    this.list.append(view.element);
    this.update(view);
    this.showRunning();
    this.list.scrollTop = this.list.scrollHeight;
    this.store.save();
    announce("Answering");
    const conversation = this.conversation;
    try {
      await this.read(running, body);
    } catch (error) {
      if (error.name === "AbortError") message.stopped = true;
      else message.error = error.message;
    }
    if (this.running === running) this.running = null;
    if (this.conversation === conversation) this.update(view);
    this.showRunning();
    this.store.save(conversation);
    announce(message.error ? `No answer: ${message.error}` : message.stopped ? "Stopped" : `Answer complete: ${message.content.slice(0, 500)}`);
  }

  async read({ message, view, aborter, requestId }, body) {
    const begun = performance.now();
    let first = null;
    let pieces = 0;
    const response = await ask("v1/chat/completions", { body, signal: aborter.signal, headers: { "x-request-id": requestId } });
    for await (const { data } of eventsOf(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const [choice] = chunk.choices ?? [];
      message.model = chunk.model ?? message.model;
      message.finish = choice?.finish_reason ?? message.finish;
      if (choice?.delta?.content) {
        const now = performance.now();
        if (first === null) message.ttft = ((first = now) - begun) / 1000;
        pieces += 1;
        message.content += choice.delta.content;
        if (pieces > 1) message.rate = (pieces - 1) / ((now - first) / 1000);
        message.tokens = pieces;
        this.last = now;
      }
      if (chunk.usage) {
        message.tokens = chunk.usage.completion_tokens;
        if (first !== null && message.tokens > 1) message.rate = (message.tokens - 1) / ((this.last - first) / 1000);
      }
      this.soon(view);
    }
    throw new Error("The answer broke off");
  }

  /** Show what came, once for each frame. */
  soon(view) {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      const atEnd = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < NEAR_END_PX;
      this.update(view);
      if (atEnd) this.list.scrollTop = this.list.scrollHeight;
    });
  }

  takeRequest(event) {
    const running = this.running;
    if (!running || event.request_id !== running.requestId) return;
    const { message, view } = running;
    if (event.kind === "answered") message.node = event.node_id;
    if (event.kind === "moved") {
      const hop = { from: event.from_node, to: event.to_node, reason: event.reason };
      message.hops.push(hop);
      message.node = event.to_node ?? message.node;
      announce(movedText(hop));
    }
    if (event.kind === "ended") message.node = event.node_id ?? message.node;
    this.soon(view);
  }

  showRunning() {
    const runs = this.running !== null;
    const hadFocus = document.activeElement === byId("stop") || document.activeElement === byId("send");
    byId("send").hidden = runs;
    byId("stop").hidden = !runs;
    if (hadFocus) byId(runs ? "stop" : "send").focus();
  }

  grow() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight + 2, 220)}px`;
  }
}

const movedText = ({ from, to, reason }) => `moved from ${from}${to ? ` to ${to}` : ""}: ${reason}`;

// `crypto.randomUUID` is not there on plain HTTP from another machine.
const newRequestId = () => `page-${[...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
