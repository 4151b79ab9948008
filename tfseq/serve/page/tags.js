/** Text in, its tokens out, each with its tag and how probable that is. */

import { Panel, field, fixed, h, numbering, table } from "./dom.js";

const OUTPUTS = ["tokens", "tags", "score", "length"];
const fits = (model, name) =>
  model.takes(name, ["text"]) && model.gives(name, OUTPUTS) && model.shape(name, "outputs", "tags").length === 2;
const find = (model) => Object.keys(model.signatures).find((name) => fits(model, name));

const percent = (p) => `${(100 * p).toFixed(p < 0.995 ? 0 : 1)} %`;

export default {
  id: "tags",
  title: "Tag",
  suits: (model) => find(model) !== undefined,
  make(model) {
    const panel = new Panel("Each word gets the most probable tag; the stronger its colour, the surer the model.");
    const text = h("textarea", { rows: 3, spellcheck: "false" }, "The old man fishes off the coast of Norway .");
    const hue = numbering();

    async function tag() {
      const lines = text.value.split("\n").filter((line) => line.trim());
      if (!lines.length) throw new Error("Type a text first.");
      const found = await model.predict(find(model), { text: lines });
      const rows = lines.map((_, i) =>
        found.tokens[i].slice(0, found.length[i]).map((token, t) => [token, found.tags[i][t], found.score[i][t]]));
      const flat = rows.flat();
      const cells = flat.map(([token, name, score]) => [token, name, fixed(score)]);
      panel.said.textContent = `${flat.length} tokens, the least sure at ${percent(Math.min(...flat.map((row) => row[2])))}.`;
      panel.output.replaceChildren(
        ...rows.map((row) => h("ol", { class: "tokens" }, row.map(chip))),
        table("Tags as a table", ["Token", "Tag", "Probability"], cells),
      );
    }

    function chip([token, name, score]) {
      const kind = name.replace(/^[BIESLU]-/, ""); // the parts of an entity have one hue
      const style = { "--k": hue(kind), "--p": score };
      const title = `${name}, ${percent(score)}`;
      return h("li", { class: kind === "O" ? "token" : "token hue", style, title }, h("span", {}, token), h("small", {}, name));
    }

    panel.fields(field("Text", text, "a line is a sentence; Ctrl+Enter tags"));
    panel.buttons({ Tag: tag });
    return panel.element;
  },
};
