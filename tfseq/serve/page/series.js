/** A series as text: numbers of one step after another. */

import { field, h, short } from "./dom.js";

/** Features of a step that a signature reads: 0 for symbols. */
export const features = (model, signature) => model.shape(signature, "inputs", "x")[2] ?? 0;

/** What a text says: [T][D], or [T] symbols; throws an error in words. */
export function parse(text, size) {
  const lines = text.split("\n").map((line) => line.split(/[\s,;]+/).filter(Boolean)).filter((line) => line.length);
  const numbers = lines.map((line, i) => line.map((word) => {
    const value = Number(word);
    if (Number.isFinite(value) && (size || Number.isInteger(value))) return value;
    throw new Error(`Line ${i + 1}: “${word.slice(0, 20)}” is no ${size ? "number" : "whole number"}.`);
  }));
  if (!numbers.length) throw new Error("Type a series first, or draw an example.");
  if (size === 0) return numbers.flat();
  if (size === 1) return numbers.flat().map((value) => [value]);
  const wrong = numbers.findIndex((row) => row.length !== size);
  if (wrong < 0) return numbers;
  const found = numbers[wrong].length;
  throw new Error(`Line ${wrong + 1} has ${found} numbers; this model reads ${size} a step, and a line is a step.`);
}

/** A field of a series: {element, read() -> x, write(x)}. */
export function series(size) {
  const hint = size > 1 ? `a line is a step: ${size} numbers` : `${size ? "numbers" : "symbols 0, 1, ..."}, one a step`;
  const control = h("textarea", { rows: size > 1 ? 8 : 4, spellcheck: "false", class: "code", inputmode: "text" });
  const write = (x) => {
    const words = x.map((row) => [row].flat().map((v) => short(v, 4)).join(", "));
    control.value = words.join(size > 1 ? "\n" : ", ");
  };
  return { element: field("Series", control, hint), read: () => parse(control.value, size), write };
}

/** A feature of each step; a symbol is its own. */
export const column = (x, d) => x.map((row) => (Array.isArray(row) ? row[d] : row));

/** Features that are drawn: no more than can be looked at. */
export const drawn = (size) => Array.from({ length: Math.min(Math.max(size, 1), 8) }, (_, d) => d);
