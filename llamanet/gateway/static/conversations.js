// Conversations, kept in this browser and nowhere else. The newest come first; the oldest make room.

const NAME = "llamanet-conversations";
const KEPT = 50;

export class Conversations {
  removed = new Set();

  constructor() {
    try {
      this.all = JSON.parse(localStorage.getItem(NAME) ?? "[]");
    } catch {
      this.all = []; // Storage may be forbidden, or written by something else.
    }
    if (!Array.isArray(this.all)) this.all = [];
    this.current = this.all[0] ?? this.begin();
  }

  /** A new conversation, with the settings of the one before. It is kept once something was said in it. */
  begin() {
    const { model = "auto", settings = {} } = this.current ?? {};
    this.current = { id: Date.now(), model, settings: { ...settings }, messages: [] };
    return this.current;
  }

  open(id) {
    this.current = this.all.find((conversation) => conversation.id === id) ?? this.current;
  }

  remove(id) {
    this.removed.add(id);
    this.all = this.all.filter((conversation) => conversation.id !== id);
    if (this.current.id === id) this.begin();
    this.write();
  }

  /** Keep a conversation; one that was removed stays so, whatever still ends in it. */
  save(conversation = this.current) {
    if (!conversation.messages.length || this.removed.has(conversation.id)) return;
    this.all = [conversation, ...this.all.filter(({ id }) => id !== conversation.id)].slice(0, KEPT);
    this.write();
  }

  write() {
    while (true) {
      try {
        localStorage.setItem(NAME, JSON.stringify(this.all));
        return;
      } catch {
        if (this.all.length < 2) return;
        this.all.pop();
      }
    }
  }
}

export function titleOf({ messages }) {
  const first = messages.find(({ role }) => role === "user")?.content.trim().split("\n")[0] ?? "";
  return first ? (first.length > 48 ? `${first.slice(0, 47)}…` : first) : "New conversation";
}
