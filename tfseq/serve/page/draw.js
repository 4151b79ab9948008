/** A picture in; what a Boltzmann machine makes of it: reconstructed, dreamt on from, or named. */

import { Panel, h, s, short } from "./dom.js";

const SWEEPS = 5; // between two pictures of a dream
const PAUSE = 150; // ms
const MOST_SIDE = 64;
/** A three, in parts of the side, for those who do not draw. */
const EXAMPLE = [
  [0.32, 0.22], [0.5, 0.12], [0.66, 0.22], [0.62, 0.38], [0.46, 0.48], [0.64, 0.56], [0.7, 0.74], [0.52, 0.88], [0.32, 0.78],
];

/** Pixels of a side where a signature reads a square picture, else 0. */
function side(model, signature, inputs) {
  const shape = model.shape(signature, "inputs", "v");
  const n = Math.sqrt(shape[1]);
  return model.takes(signature, inputs, ["v"]) && shape.length === 2 && n >= 4 && n <= MOST_SIDE && Number.isInteger(n) ? n : 0;
}

const reconstructs = (model) => side(model, "reconstruct", ["v"]);
const dreams = (model) => side(model, "gibbs", ["v", "num_sweeps", "seed"]);
const names = (model) => side(model, "classify", ["v"]);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export default {
  id: "draw",
  title: "Draw",
  suits: (model) => Boolean(reconstructs(model) || dreams(model) || names(model)),
  make(model) {
    const n = reconstructs(model) || dreams(model) || names(model);
    const panel = new Panel("Draw a digit with the pointer, or with the arrow keys and the space bar.");
    const drawing = canvas(n, (row, column, on) => {
      panel.said.textContent = `Row ${row + 1}, column ${column + 1}: ${on ? "ink" : "empty"}.`;
    });
    const answer = grid(n, "What the model makes of it");
    const bars = h("ol", { class: "bars", start: 0 });
    let dreaming = false;

    async function reconstruct() {
      answer.show((await model.row("reconstruct", { v: drawing.values })).v);
      caption.textContent = "The model";
      panel.said.textContent = "Reconstructed.";
    }

    async function classify() {
      const { label, probs } = await model.row("classify", { v: drawing.values });
      const best = probs.indexOf(Math.max(...probs));
      bars.replaceChildren(...probs.map((p, k) => h("li", { style: { "--p": p }, class: k === best && "best" },
        h("span", {}, String(k)), h("b", {}), h("small", {}, `${short(100 * p)} %`))));
      panel.said.textContent = `Label ${label}.`;
    }

    async function dream() {
      const base = Math.floor(Math.random() * 2 ** 31);
      let v = drawing.values.slice();
      for (let i = 0; dreaming; i++) {
        ({ v } = await model.row("gibbs", { v, num_sweeps: SWEEPS, seed: [base, i] }));
        answer.show(reconstructs(model) ? (await model.row("reconstruct", { v })).v : v); // greys are easier on the eye
        answer.element.dataset.sweeps = SWEEPS * (i + 1);
        panel.said.textContent = i ? "" : "Dreaming."; // said once
        caption.textContent = `After ${SWEEPS * (i + 1)} sweeps`;
        await pause(PAUSE);
      }
    }

    async function toggle() {
      if (dreaming) return (dreaming = false);
      if (panel.element.ariaBusy === "true") return false;
      dreaming = true;
      dreamer.textContent = "Wake";
      await panel.run(dream);
      dreaming = false;
      dreamer.textContent = "Dream";
      return true;
    }

    const caption = h("figcaption", {}, "The model");
    panel.buttons({
      ...(reconstructs(model) && { Reconstruct: reconstruct }),
      ...(names(model) && { Classify: classify }),
    });
    const dreamer = dreams(model) ? panel.button("Dream", toggle) : undefined;
    panel.button("Example", () => drawing.example());
    panel.button("Clear", () => drawing.clear());
    const drawn = h("figure", {}, h("figcaption", {}, "Your drawing"), drawing.element);
    const made = reconstructs(model) || dreams(model) ? [h("figure", {}, caption, answer.element)] : [];
    panel.output.append(h("div", { class: "pictures" }, drawn, ...made, ...(names(model) ? [bars] : [])));
    panel.element.insertBefore(panel.output, panel.form);
    panel.element.addEventListener("leave", () => (dreaming = false));
    return panel.element;
  },
};

/** A square of pixels: {element, show(values)}. */
function grid(n, label) {
  const pixels = Array.from({ length: n * n }, (_, i) =>
    s("rect", { class: "pixel", x: i % n, y: Math.floor(i / n), width: 1, height: 1, "fill-opacity": 0 }));
  const element = s("svg", { class: "grid", viewBox: `0 0 ${n} ${n}`, role: "img", "aria-label": label }, pixels);
  const ink = (v) => Math.min(Math.max(v ?? 0, 0), 1).toFixed(3);
  const show = (values) => values.forEach((v, i) => pixels[i].setAttribute("fill-opacity", ink(v)));
  return { element, show };
}

/** A grid to draw on: {element, values, clear(), example()}. */
function canvas(n, say) {
  const { element, show } = grid(n, `Drawing of ${n} by ${n} pixels: arrow keys move, space toggles.`);
  const values = Array(n * n).fill(0);
  const cursor = s("rect", { class: "cell", width: 1, height: 1 });
  const radius = 0.35 + n / 28; // pixels
  let [row, column, last] = [n >> 1, n >> 1, undefined];
  element.append(cursor);
  element.setAttribute("role", "application"); // so that screen readers leave the arrow keys to it
  element.setAttribute("tabindex", 0);
  place();

  function place() {
    cursor.setAttribute("x", column);
    cursor.setAttribute("y", row);
  }

  /** A stroke of a soft pen, from where it was to [x, y], in pixels. */
  function stroke(x, y) {
    const [x0, y0] = last ?? [x, y];
    const parts = Math.ceil(2 * Math.hypot(x - x0, y - y0)) || 1;
    for (let k = 1; k <= parts; k++) {
      const [px, py] = [x0 + ((x - x0) * k) / parts, y0 + ((y - y0) * k) / parts];
      values.forEach((v, i) => {
        const distance = Math.hypot((i % n) + 0.5 - px, Math.floor(i / n) + 0.5 - py);
        values[i] = Math.max(v, Math.min(1, Math.max(0, 1.5 - distance / radius)));
      });
    }
    last = [x, y];
    show(values);
  }

  function at(event) {
    const box = element.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * n, ((event.clientY - box.top) / box.height) * n];
  }

  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    last = undefined;
    stroke(...at(event));
  });
  element.addEventListener("pointermove", (event) => {
    if (element.hasPointerCapture(event.pointerId)) stroke(...at(event));
  });
  element.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], " ": [0, 0] };
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    row = Math.min(Math.max(row + move[0], 0), n - 1);
    column = Math.min(Math.max(column + move[1], 0), n - 1);
    const i = row * n + column;
    if (event.key === " ") values[i] = values[i] > 0.5 ? 0 : 1;
    place();
    show(values);
    say(row, column, values[i] > 0.5);
  });

  const clear = () => show(values.fill(0));
  const example = () => {
    clear();
    last = undefined;
    EXAMPLE.forEach(([x, y]) => stroke(x * n, y * n));
  };
  return { element, values, clear, example };
}
