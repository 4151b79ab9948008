/** A series in; how it may go on, as the median and bands of the model's samples. */

import { Panel, h, number, seed, short, table } from "./dom.js";
import { chart, range, titled } from "./plot.js";
import { column, drawn, features, series } from "./series.js";

const LEVELS = [0.05, 0.25, 0.5, 0.75, 0.95];
const HEAD = ["Step", "5 %", "25 %", "median", "75 %", "95 %"];
const MOST_FEATURES = 32;
const WANTED = 100; // samples: a model makes a fixed number of each row, so that the series is sent several times
const MOST_COPIES = 8;

/** Quantiles of numbers, interpolated linearly as NumPy does. */
export function quantiles(values, levels) {
  const sorted = values.filter((v) => v !== null).sort((a, b) => a - b);
  return levels.map((level) => {
    const at = level * (sorted.length - 1);
    const below = Math.floor(at);
    return sorted.length ? sorted[below] + (at - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]) : null;
  });
}

export default {
  id: "forecast",
  title: "Forecast",
  suits(model) {
    const shape = model.shape("forecast", "inputs", "x");
    return model.takes("forecast", ["x", "lengths", "num_steps", "seed"], ["x", "num_steps"]) && shape.length === 3 &&
      shape[2] > 0 && shape[2] <= MOST_FEATURES && model.shape("forecast", "outputs", "x").length === 4;
  },
  make(model) {
    const size = features(model, "forecast");
    const panel = new Panel("How the series may go on: the median of the model's samples, and their middle 50 % and 90 %.");
    const copies = Math.min(Math.ceil(WANTED / Math.max(model.shape("forecast", "outputs", "x")[1], 1)), MOST_COPIES);
    const text = series(size);
    const ahead = number("Steps ahead", { value: 20, min: 1, max: 500 });
    const steps = number("Steps", { value: 60, min: 1, max: 2000, hint: "of an example" });
    const numbers = seed();

    async function forecast() {
      const x = text.read();
      const [first, second] = numbers.read();
      const rows = Array.from({ length: copies }, (_, k) => ({ x, num_steps: ahead.read(), seed: [first, second + k] }));
      show(x, (await model.rows("forecast", rows)).flatMap((row) => row.x));
    }

    function show(x, samples) {
      const steps = samples[0].map((_, i) => i);
      const charts = drawn(size).map((d) => {
        const past = column(x, d);
        const bands = steps.map((i) => quantiles(samples.map((path) => path[i][d]), LEVELS));
        const start = [x.length, ...LEVELS.map(() => past.at(-1))];
        const points = [start, ...bands.map((band, i) => [x.length + 1 + i, ...band])];
        const label = `Series of ${x.length} steps, and bands of ${samples.length} samples for the next ${steps.length}.`;
        const [height, xs, ys] = [size > 1 ? 150 : 240, [1, x.length + steps.length], range([...past, ...bands.flat()])];
        const picture = chart(label, height, xs, ys, (plot) => {
          plot.band(points.map(([t, low, , , , high]) => [t, low, high]), "band outer");
          plot.band(points.map(([t, , low, , high]) => [t, low, high]), "band inner");
          plot.line(past.map((v, t) => [t + 1, v]), "line");
          plot.line(points.map(([t, , , median]) => [t, median]), "line median");
        });
        const rows = bands.map((band, i) => [x.length + 1 + i, ...band.map((v) => short(v, 4))]);
        const name = size > 1 ? `Feature ${d + 1}` : "Forecast";
        return titled(size > 1 && name, picture, table(`${name} as a table`, HEAD, rows));
      });
      const left = size > charts.length ? `; the first ${charts.length} of ${size} features` : "";
      panel.said.textContent = `${steps.length} steps from ${samples.length} samples${left}.`;
      panel.output.replaceChildren(legend(), ...charts);
    }

    async function example() {
      text.write((await model.row("sample", { num_steps: steps.read(), seed: numbers.read() })).x);
      await forecast();
    }

    panel.fields(text.element);
    const canDraw = model.takes("sample", ["num_steps", "seed"]) && model.gives("sample", ["x"]);
    panel.fields(ahead.element, ...(canDraw ? [steps.element] : []), numbers.element);
    panel.buttons({ Forecast: forecast, ...(canDraw && { "Draw an example": example }) });
    return panel.element;
  },
};

function legend() {
  const keys = { past: "series", median: "median", inner: "50 %", outer: "90 %" };
  return h("ul", { class: "legend" }, Object.entries(keys).map(([name, text]) => h("li", { class: `key ${name}` }, text)));
}
