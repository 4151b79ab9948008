/** A prompt in, its continuation out. */

import { Panel, field, h, number, seed } from "./dom.js";

const INPUTS = ["prompt", "max_tokens", "temperature", "top_k", "top_p", "seed", "label"];

export default {
  id: "continue",
  title: "Continue",
  suits: (model) => model.takes("generate", INPUTS, ["prompt"]) && model.gives("generate", ["text"]),
  make(model) {
    const panel = new Panel("The model goes on from what you type, drawing one token after the other.");
    const prompt = h("textarea", { rows: 3, spellcheck: "false" }, "The ");
    const most = number("Tokens", { value: 120, min: 1, max: 2000, hint: "at most" });
    const temperature = number("Temperature", { value: 0.8, min: 0, max: 10, step: "any", hint: "0: the most probable" });
    const topK = number("Top k", { value: 0, min: 0, max: 1e6, hint: "0: all tokens" });
    const topP = number("Top p", { value: 1, min: 0, max: 1, step: "any", hint: "1: all tokens" });
    const numbers = seed();
    const label = h("input", { type: "text" });
    const has = (name) => name in model.signatures.generate.inputs;

    async function go() {
      const given = {
        prompt: prompt.value, max_tokens: most.read(), temperature: temperature.read(), top_k: topK.read(), top_p: topP.read(),
        seed: numbers.read(), label: label.value,
      };
      const { text, length } = await model.row("generate", given);
      const sizes = [[...text].length, new TextEncoder().encode(text).length]; // tokens are characters, bytes, or else words
      const between = sizes.includes(length) || !given.prompt || /\s$/.test(given.prompt) ? "" : " ";
      panel.said.textContent = text ? `${length ?? "Some"} tokens.` : "The model ends the text here.";
      panel.output.replaceChildren(h("p", { class: "text" }, given.prompt + between, h("mark", {}, text)));
    }

    async function keep() {
      prompt.value = panel.output.textContent || prompt.value;
      await go();
    }

    panel.fields(field("Text", prompt, "Ctrl+Enter continues"));
    panel.fields(
      ...[[most, "max_tokens"], [temperature, "temperature"], [topK, "top_k"], [topP, "top_p"], [numbers, "seed"]]
        .filter(([, name]) => has(name)).map(([made]) => made.element),
      ...(has("label") ? [field("Label", label, "what kind of text; empty: any")] : []),
    );
    panel.buttons({ Continue: go, "Go on from there": keep });
    return panel.element;
  },
};
