/** A series in; its most probable states as a path, and how probable each state is at every step. */

import { Panel, fixed, h, number, seed, short, table } from "./dom.js";
import { chart, range, titled } from "./plot.js";
import { column, drawn, features, series } from "./series.js";

const INPUTS = ["x", "lengths"];
const hue = (k) => ({ "--k": k });

export default {
  id: "states",
  title: "States",
  suits: (model) => ["viterbi", "smooth"].every((name) => model.takes(name, INPUTS, ["x"])) &&
    model.gives("viterbi", ["states", "score"]) && model.gives("smooth", ["probs"]),
  make(model) {
    const size = features(model, "viterbi");
    const panel = new Panel("The most probable path of states, behind the series, and how probable each state is at every step.");
    const text = series(size);
    const steps = number("Steps", { value: 100, min: 1, max: 2000, hint: "of an example" });
    const numbers = seed();

    async function decode() {
      const x = text.read();
      const [path, smoothed] = await Promise.all([model.row("viterbi", { x }), model.row("smooth", { x })]);
      show(x, path, smoothed.probs);
    }

    function show(x, { states, score }, probs) {
      const xs = [0.5, x.length + 0.5];
      const runs = runsOf(states);
      const names = probs[0].map((_, k) => k);
      const shares = names.map((k) => states.filter((state) => state === k).length);
      const charts = drawn(size).map((d) => {
        const values = column(x, d);
        const label = `Series of ${x.length} steps in ${runs.length} runs of states.`;
        const picture = chart(label, size > 1 ? 110 : 190, xs, range(values), (plot) => {
          runs.forEach(({ state, from, to }) => plot.column(from + 0.5, to + 0.5, "hue state", hue(state), String(state)));
          plot.line(values.map((v, t) => [t + 1, v]), "line");
        });
        return titled(size > 1 && `Feature ${d + 1}`, picture);
      });
      const stacked = chart("Probabilities of the states at each step, stacked.", 120, xs, [0, 1], (plot) => {
        const below = probs.map(() => 0);
        names.forEach((k) => {
          const band = probs.flatMap((row, t) => [t + 0.5, t + 1.5].map((edge) => [edge, below[t], below[t] + row[k]]));
          plot.band(band, "hue prob", hue(k));
          probs.forEach((row, t) => (below[t] += row[k]));
        });
      });
      const legend = h("ul", { class: "legend" }, names.map((k) =>
        h("li", { class: "hue", style: hue(k) }, `State ${k}: ${shares[k]} of ${x.length} steps`)));
      const rows = x.map((row, t) => [t + 1, ...[row].flat().map((v) => short(v)), states[t], fixed(probs[t][states[t]])]);
      const head = ["Step", ...(size > 1 ? x[0].map((_, d) => `x ${d + 1}`) : ["x"]), "State", "Probability"];
      panel.said.textContent = `${x.length} steps, ${runs.length} runs; log-probability with the path ${short(score, 6)} nats.`;
      const below = titled("Probability of each state", stacked);
      panel.output.replaceChildren(...charts, below, legend, table("States as a table", head, rows));
    }

    async function example() {
      text.write((await model.row("sample", { num_steps: steps.read(), seed: numbers.read() })).x);
      await decode();
    }

    panel.fields(text.element);
    const canDraw = model.takes("sample", ["num_steps", "seed"]) && model.gives("sample", ["x"]);
    if (canDraw) panel.fields(steps.element, numbers.element);
    panel.buttons({ Decode: decode, ...(canDraw && { "Draw an example": example }) });
    return panel.element;
  },
};

/** [{state, from, to}] of a path. */
function runsOf(states) {
  const runs = [];
  states.forEach((state, t) => {
    if (runs.at(-1)?.state === state) runs.at(-1).to = t + 1;
    else runs.push({ state, from: t, to: t + 1 });
  });
  return runs;
}
