/** Elements, forms and tables. No inline handlers and no inline styles, so that a strict Content-Security-Policy holds. */

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element: `on...` attributes are listeners, `style` an object of CSS properties, false leaves an attribute out. */
export const h = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);

/** An SVG element. */
export const s = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, v]) => element.style.setProperty(key, v));
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat());
  return element;
}

let made = 0;

/** A control with its label, and a hint below it. */
export function field(label, control, hint = "") {
  control.id ||= `field-${++made}`;
  if (hint) control.setAttribute("aria-describedby", `${control.id}-hint`);
  const below = hint ? [h("small", { id: `${control.id}-hint` }, hint)] : [];
  const wide = control.localName === "textarea";
  return h("div", { class: wide ? "field wide" : "field" }, h("label", { for: control.id }, label), control, below);
}

/** A field of one number: {element, read()}; `read` throws an error in words. `step` "any" allows fractions. */
export function number(label, { value, min, max, step = 1, hint, empty = false }) {
  const inputmode = step === 1 ? "numeric" : "decimal";
  const control = h("input", { type: "number", value, min, max, step, required: !empty, inputmode });
  const read = () => {
    if (control.validity.valid) return control.value === "" ? null : control.valueAsNumber;
    control.focus();
    throw new Error(`${label} must be a ${step === 1 ? "whole " : ""}number from ${min} to ${max}.`);
  };
  return { element: field(label, control, hint), read };
}

/** A field of a seed: {element, read() -> [2] int32}; a new one each time where it is empty. */
export function seed() {
  const most = 2 ** 31 - 1;
  const { element, read } = number("Seed", { min: 0, max: most, empty: true, value: "", hint: "empty: a new one" });
  return { element, read: () => [read() ?? Math.floor(Math.random() * most), 0] };
}

/** A panel: a form of fields and buttons, what went wrong, and an output. */
export class Panel {
  constructor(intro) {
    const listeners = { onsubmit: (event) => this.#submit(event), onkeydown: (event) => this.#enter(event) };
    this.form = h("form", { novalidate: true, ...listeners });
    this.problem = h("p", { class: "problem", role: "alert" });
    this.said = h("p", { class: "said", role: "status" });
    this.output = h("div", { class: "output" });
    this.element = h("section", {}, h("p", { class: "intro" }, intro), this.form, this.problem, this.said, this.output);
  }

  /** Adds fields; and buttons, of which the first is also what Enter does. */
  fields(...elements) {
    this.form.append(h("div", { class: "fields" }, ...elements));
  }

  buttons(works) {
    const [first, ...others] = Object.entries(works);
    this.row = h("div", { class: "buttons" });
    this.form.append(this.row);
    if (!first) return;
    this.first = first[1];
    this.row.append(h("button", { type: "submit", class: "primary" }, first[0]));
    others.forEach(([label, work]) => this.button(label, () => this.run(work)));
  }

  /** Adds a button that may be pressed at any time. */
  button(label, onclick) {
    const made = h("button", { type: "button", onclick }, label);
    this.row.append(made);
    return made;
  }

  /** Does some work; one at a time, and what goes wrong is said. */
  async run(work) {
    if (this.element.ariaBusy === "true") return;
    this.element.ariaBusy = "true";
    this.problem.textContent = "";
    try {
      await work();
    } catch (error) {
      this.problem.textContent = error.message;
    } finally {
      this.element.ariaBusy = "false";
    }
  }

  #submit(event) {
    event.preventDefault();
    if (this.first) this.run(this.first);
  }

  #enter(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
  }
}

const MOST_ROWS = 1000;

/** A table that opens on demand: what a picture shows, to read. */
export function table(caption, head, rows) {
  const body = rows.slice(0, MOST_ROWS).map((row) => h("tr", {}, row.map((cell) => h("td", {}, String(cell)))));
  const left = rows.length > MOST_ROWS ? [h("p", {}, `${rows.length - MOST_ROWS} more rows are not shown.`)] : [];
  const titles = h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)));
  const inside = h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, titles), h("tbody", {}, body));
  const scroll = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, inside);
  return h("details", { class: "table" }, h("summary", {}, caption), scroll, left);
}

/** A number of a few digits; "–" for what is no number. */
export function short(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return String(value);
  const far = Math.abs(value) >= 1e5 || Math.abs(value) < 1e-4;
  return far ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
}

/** A probability. */
export const fixed = (value) => (value === null ? "–" : value.toFixed(3));

/** The number of a name in order of appearance: which hue it has. */
export function numbering() {
  const seen = new Map();
  return (name) => seen.get(name) ?? seen.set(name, seen.size).get(name);
}
