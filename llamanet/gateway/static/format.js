// Numbers and times, as people read them.

export const rate = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));

export function seconds(value) {
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  return value < 100 ? `${value.toFixed(1)} s` : `${Math.round(value)} s`;
}

/** How long something lasts so far: "12 s", "4 min", "3 h", "2 d". */
export function age(value) {
  if (value < 60) return `${Math.max(0, Math.floor(value))} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min`;
  if (value < 86400) return `${Math.floor(value / 3600)} h`;
  return `${Math.floor(value / 86400)} d`;
}

export const clock = (date) => date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

/** "idle", "busy", "full" or "over", by which a node is drawn. */
export function state(node) {
  if (node.waiting > 0) return "over";
  if (node.slots > 0 && node.running >= node.slots) return "full";
  return node.running > 0 ? "busy" : "idle";
}

export const STATE_WORDS = { idle: "idle", busy: "busy", full: "full", over: "full, some wait" };
