/** Any signature: its inputs as JSON, its outputs as JSON. */

import { Panel, field, h } from "./dom.js";

const ONE = ["lengths", "num_steps", "max_tokens", "num_sweeps", "temperature", "top_p"]; // zero would ask for nothing
const ZERO = { string: "", bool: false };
const described = (tensors) => Object.entries(tensors).map(([name, { dtype, shape }]) =>
  h("li", {}, h("code", {}, `${name}: ${dtype} [${shape.map((n) => (n < 0 ? "any" : n)).join(", ")}]`)));

/** One row of zeros, of one step where the number of steps is open. */
function template({ dtype, shape }, name) {
  const leaf = ONE.includes(name) ? 1 : (ZERO[dtype] ?? 0);
  return shape.reduceRight((inner, size) => Array(Math.max(size, 1)).fill(inner), leaf);
}

/** JSON, indented, with each innermost list on one line. */
function written(value, indent = "") {
  const isNested = (v) => typeof v === "object" && v !== null;
  if (!isNested(value)) return JSON.stringify(value);
  if (Array.isArray(value) && !value.some(isNested)) return `[${value.map((v) => JSON.stringify(v)).join(", ")}]`;
  const inner = `${indent} `;
  const parts = Array.isArray(value)
    ? value.map((v) => inner + written(v, inner))
    : Object.entries(value).map(([name, v]) => `${inner}${JSON.stringify(name)}: ${written(v, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return `${open}\n${parts.join(",\n")}\n${indent}${close}`;
}

export default {
  id: "signature",
  title: "Any signature",
  suits: () => true,
  make(model) {
    const panel = new Panel("Every signature of the model, in JSON as the REST API takes it. The first axis is the batch.");
    const names = Object.keys(model.signatures);
    const select = h("select", { onchange: choose }, names.map((name) => h("option", {}, name)));
    const inputs = h("textarea", { rows: 10, spellcheck: "false", class: "code" });
    const shapes = h("div", { class: "shapes" });

    function choose() {
      const { inputs: wanted, outputs } = model.signatures[select.value];
      const example = Object.fromEntries(Object.entries(wanted).map(([name, info]) => [name, template(info, name)]));
      inputs.value = written(example);
      shapes.replaceChildren(
        h("div", {}, h("h2", {}, "Inputs"), h("ul", {}, described(wanted))),
        h("div", {}, h("h2", {}, "Outputs"), h("ul", {}, described(outputs))),
      );
      panel.output.replaceChildren();
      panel.said.textContent = panel.problem.textContent = "";
    }

    async function ask() {
      let given;
      try {
        given = JSON.parse(inputs.value);
      } catch (error) {
        throw new Error(`The inputs are no JSON: ${error.message}.`);
      }
      const outputs = await model.predict(select.value, given);
      const text = written(outputs);
      const most = 100_000;
      const shown = text.length > most ? `${text.slice(0, most)} …` : text;
      panel.said.textContent = text.length > most ? `The first ${most} of ${text.length} characters.` : "";
      panel.output.replaceChildren(h("pre", { tabindex: 0, "aria-label": "Outputs" }, shown));
    }

    panel.fields(field("Signature", select));
    panel.form.append(shapes);
    panel.fields(field("Inputs", inputs, "Ctrl+Enter sends"));
    panel.buttons({ Predict: ask });
    if (names.length) choose();
    return panel.element;
  },
};
