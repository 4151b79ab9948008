/** Small charts in SVG, drawn again when their width changes; colours come from the style sheet. */

import { h, s, short } from "./dom.js";

const EDGE = { left: 46, right: 10, top: 8, bottom: 24 };

/** A chart as wide as its place: `draw(plot)` fills it; `label` says in words what it shows. */
export function chart(label, height, [x0, x1], [y0, y1], draw) {
  const box = h("div", { class: "chart", style: { height: `${height}px` } });
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.round(box.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    const plot = new Plot(width, height, [x0, x1], y0 < y1 ? [y0, y1] : [y0 - 1, y1 + 1]);
    const svg = s("svg", { role: "img", "aria-label": label, width, height });
    draw(plot);
    svg.append(...plot.back, ...plot.axes(), ...plot.front);
    box.replaceChildren(svg);
  }).observe(box);
  return box;
}

/** Pictures under a title; none where the title is false. */
export const titled = (title, ...pictures) => h("figure", {}, ...(title ? [h("figcaption", {}, title)] : []), ...pictures);

class Plot {
  constructor(width, height, xs, ys) {
    Object.assign(this, { width, height, xs, ys, back: [], front: [] });
  }

  x(value) {
    const [a, b] = this.xs;
    return EDGE.left + ((value - a) / (b - a || 1)) * (this.width - EDGE.left - EDGE.right);
  }

  y(value) {
    const [a, b] = this.ys;
    return this.height - EDGE.bottom - ((value - a) / (b - a)) * (this.height - EDGE.top - EDGE.bottom);
  }

  axes() {
    const right = this.width - EDGE.right;
    const bottom = this.height - EDGE.bottom;
    const across = ticks(...this.ys, this.height / 45).flatMap((v) => [
      s("line", { class: "rule", x1: EDGE.left, x2: right, y1: this.y(v), y2: this.y(v) }),
      s("text", { class: "tick", x: EDGE.left - 6, y: this.y(v) + 4, "text-anchor": "end" }, short(v)),
    ]);
    const along = ticks(...this.xs, this.width / 80).filter(Number.isInteger)
      .map((v) => s("text", { class: "tick", x: this.x(v), y: bottom + 17, "text-anchor": "middle" }, String(v)));
    return [...across, ...along];
  }

  /** A line through [x, y] points, broken where a value is missing. */
  line(points, name) {
    let pen = "M";
    const d = points.map(([x, y]) => {
      if (y === null) {
        pen = "M";
        return "";
      }
      const part = `${pen}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`;
      pen = "L";
      return part;
    });
    this.front.push(s("path", { class: name, d: d.join("") }));
  }

  /** The area between two lines, of [x, low, high]. */
  band(points, name, style) {
    const there = points.map(([x, , high]) => `${this.x(x).toFixed(1)} ${this.y(high).toFixed(1)}`);
    const back = points.map(([x, low]) => `${this.x(x).toFixed(1)} ${this.y(low).toFixed(1)}`).reverse();
    this.back.push(s("path", { class: name, style, d: `M${[...there, ...back].join("L")}Z` }));
  }

  /** Everything from one x to another. */
  column(from, to, name, style, text = "") {
    const width = Math.max(this.x(to) - this.x(from), 0.5);
    const height = this.height - EDGE.top - EDGE.bottom;
    this.back.push(s("rect", { class: name, style, x: this.x(from), y: EDGE.top, width, height }));
    if (width < 8 * text.length + 6) return;
    const middle = this.x(from) + width / 2;
    this.front.push(s("text", { class: "tick", x: middle, y: EDGE.top + 12, "text-anchor": "middle" }, text));
  }
}

/** Round numbers within a range, about `most` of them. */
export function ticks(low, high, most) {
  const rough = (high - low) / Math.max(most, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((m) => m * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** [lowest, highest] of what is a number, and a little more. */
export function range(values) {
  const real = values.filter((v) => v !== null);
  if (!real.length) return [0, 1];
  const [low, high] = real.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  return [low - 0.05 * (high - low), high + 0.05 * (high - low)];
}
