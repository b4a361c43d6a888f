// A quantity over the last minutes: an area, its axis, and the value under the pointer.

import { h, s, setText } from "./dom.js";

const SPAN_S = 300;
const GAP_S = 8;
const MARGIN = { left: 34, right: 8, top: 8, bottom: 18 };

export class Chart {
  /** `series`: [{name, of: (point) => number, class}], stacked; the caption tells their values. */
  constructor(figure, live, { title, height, series, format }) {
    Object.assign(this, { live, height, series, format, title });
    this.svg = s("svg", { role: "img", height });
    this.grid = s("g", { class: "grid" });
    this.lines = series.map(({ class: name }) => [s("path", { class: `area ${name}` }), s("path", { class: `line ${name}` })]);
    this.cursor = s("g", { class: "cursor", hidden: true }, s("line"), s("circle", { r: 3.5 }));
    this.svg.append(this.grid, ...this.lines.flat(), this.cursor);
    this.values = series.map(({ class: kind }) => h("span", { class: series.length > 1 ? `key ${kind}` : null }));
    this.ago = h("span", { class: "ago" });
    figure.append(h("figcaption", {}, h("span", { class: "title" }, title), this.ago, ...this.values), this.svg);
    new ResizeObserver(() => this.draw()).observe(figure);
    live.addEventListener("picture", () => this.draw());
    this.svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
  }

  point(x) {
    this.pointed = x;
    this.draw();
  }

  draw() {
    const width = this.svg.clientWidth;
    if (!width) return;
    const { points } = this.live;
    const inner = { width: width - MARGIN.left - MARGIN.right, height: this.height - MARGIN.top - MARGIN.bottom };
    const end = this.live.now();
    const most = niceCeiling(Math.max(1, ...points.map((point) => this.series.reduce((sum, { of }) => sum + of(point), 0))));
    const x = (point) => MARGIN.left + inner.width * (1 - (end - point.at) / SPAN_S);
    const y = (value) => MARGIN.top + inner.height * (1 - value / most);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.drawGrid(width, inner, most, y);
    let floors = points.map(() => 0);
    this.series.forEach(({ of }, number) => {
      // A second line that lies on the first one would only hide it.
      const told = [...points.keys()].filter((index) => number === 0 || of(points[index]) > 0);
      const tops = points.map((point, index) => floors[index] + of(point));
      const [area, line] = this.lines[number];
      const runs = runsOf(points, told);
      line.setAttribute("d", runs.map((run) => `M${run.map((i) => `${x(points[i]).toFixed(1)} ${y(tops[i]).toFixed(1)}`).join("L")}`).join(""));
      area.setAttribute("d", runs.map((run) => {
        const top = run.map((i) => `${x(points[i]).toFixed(1)} ${y(tops[i]).toFixed(1)}`);
        const bottom = run.map((i) => `${x(points[i]).toFixed(1)} ${y(floors[i]).toFixed(1)}`).reverse();
        return `M${[...top, ...bottom].join("L")}Z`;
      }).join(""));
      floors = tops;
    });
    this.drawCursor(points, x, y, end);
  }

  drawGrid(width, inner, most, y) {
    const lines = [0, most / 2, most].flatMap((value) => [
      s("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
      s("text", { x: MARGIN.left - 6, y: y(value) + 3.5, "text-anchor": "end" }, this.format(value)),
    ]);
    const times = [[5, "start"], [2.5, "middle"], [0, "end"]].map(([minutes, anchor]) =>
      s("text", { x: MARGIN.left + inner.width * (1 - minutes / 5), y: this.height - 4, "text-anchor": anchor }, minutes ? `−${minutes} min` : "now"));
    this.grid.replaceChildren(...lines, ...times);
  }

  drawCursor(points, x, y, end) {
    const last = points.at(-1);
    const near = (best, point) => (Math.abs(x(point) - this.pointed) < Math.abs(x(best) - this.pointed) ? point : best);
    const point = this.pointed === null || this.pointed === undefined || !last ? null : points.reduce(near, last);
    this.cursor.toggleAttribute("hidden", !point);
    if (point) {
      const [line, circle] = this.cursor.children;
      for (const [name, value] of [["x1", x(point)], ["x2", x(point)], ["y1", MARGIN.top], ["y2", this.height - MARGIN.bottom]]) line.setAttribute(name, value);
      circle.setAttribute("cx", x(point));
      circle.setAttribute("cy", y(this.series[0].of(point)));
    }
    const shown = point ?? last;
    const told = this.series.map(({ of, name }) => `${shown ? this.format(of(shown)) : "–"} ${name}`);
    told.forEach((text, index) => setText(this.values[index], text));
    const ago = point ? Math.round(end - point.at) : 0;
    setText(this.ago, ago ? `${ago} s ago` : "");
    this.svg.setAttribute("aria-label", `${this.title} over the last five minutes; now ${told.join(", ")}`);
  }
}

/** `indices` of points, in runs that follow each other without a gap. */
function runsOf(points, indices) {
  const runs = [];
  for (const index of indices) {
    const last = runs.at(-1)?.at(-1);
    if (last === index - 1 && points[index].at - points[last].at < GAP_S) runs.at(-1).push(index);
    else runs.push([index]);
  }
  return runs;
}

function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value);
}
