/** New music, or how it goes on, on a piano roll; and played. */

import { Panel, h, number, s, seed, table } from "./dom.js";
import { play } from "./sound.js";

const KEYS = 88;
const LOWEST = 21; // MIDI pitch of key 0
const NAMES = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];
const [CELL, ROW, KEYBOARD] = [22, 9, 40]; // pixels

const nameOf = (pitch) => `${NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}`;
const pitchesOf = (step) => step.flatMap((on, key) => (on > 0.5 ? [key + LOWEST] : []));

/** [{pitch, start, length}] of a roll [T][88]: a key that stays down is one note. */
export function notesOf(roll) {
  const notes = [];
  const held = new Map();
  roll.forEach((step, t) => {
    const down = pitchesOf(step);
    for (const pitch of [...held.keys()]) if (!down.includes(pitch)) held.delete(pitch);
    for (const pitch of down) {
      if (!held.has(pitch)) notes.push(held.set(pitch, { pitch, start: t, length: 0 }).get(pitch));
      held.get(pitch).length += 1;
    }
  });
  return notes;
}

const composes = (model) =>
  model.takes("sample", ["num_steps", "seed"], ["num_steps"]) && model.shape("sample", "outputs", "x")[2] === KEYS;
const continues = (model) =>
  model.takes("forecast", ["x", "lengths", "num_steps", "seed"], ["x", "num_steps"]) &&
  model.shape("forecast", "inputs", "x")[2] === KEYS && model.shape("forecast", "outputs", "x").length === 4;

export default {
  id: "piano",
  title: "Compose",
  suits: composes,
  make(model) {
    const panel = new Panel("The model composes on the 88 keys of a piano, step by step.");
    const steps = number("Steps", { value: 32, min: 1, max: 512 });
    const tempo = number("Tempo", { value: 80, min: 10, max: 600, hint: "steps a minute" });
    const numbers = seed();
    let roll = []; // [T][88]
    let drawn; // the picture of it
    let sound;

    async function compose() {
      const num_steps = steps.read();
      show((await model.row("sample", { num_steps, seed: numbers.read() })).x, num_steps);
    }

    async function goOn() {
      if (!roll.length) throw new Error("Compose something first.");
      const num_steps = steps.read();
      const { x: samples } = await model.row("forecast", { x: roll, num_steps, seed: numbers.read() });
      show([...roll, ...samples[0]], roll.length);
    }

    function show(music, given) {
      stop();
      roll = music;
      const notes = notesOf(roll);
      drawn = picture(roll.length, notes, given);
      const rows = roll.map((step, t) => [t + 1, pitchesOf(step).map(nameOf).join(" ") || "rest"]);
      panel.said.textContent = `${notes.length} notes in ${roll.length} steps.`;
      panel.output.replaceChildren(drawn.element, table("Notes as a table", ["Step", "Notes"], rows));
      player.disabled = !notes.length;
    }

    function toggle() {
      if (sound) return stop();
      panel.run(async () => {
        sound = play(notesOf(roll), 60 / tempo.read());
        player.textContent = "Stop";
        requestAnimationFrame(follow);
      });
    }

    function follow() {
      if (!sound) return;
      const at = sound.elapsed();
      if (at > roll.length + 0.3) return stop();
      drawn.cursor(at);
      requestAnimationFrame(follow);
    }

    function stop() {
      sound?.stop();
      sound = undefined;
      drawn?.cursor(-1);
      player.textContent = "Play";
    }

    panel.fields(steps.element, tempo.element, numbers.element);
    panel.buttons({ Compose: compose, ...(continues(model) && { "Go on": goOn }) });
    const player = panel.button("Play", toggle);
    player.disabled = true;
    panel.element.addEventListener("leave", stop);
    return panel.element;
  },
};

/** {element, cursor(step)}: keys at the left, notes along time; those after `given` steps have the accent colour. */
function picture(length, notes, given) {
  const pitches = notes.map((note) => note.pitch);
  const low = Math.max(Math.min(48, ...pitches) - 2, LOWEST);
  const high = Math.min(Math.max(72, ...pitches) + 2, LOWEST + KEYS - 1);
  const all = Array.from({ length: high - low + 1 }, (_, i) => high - i);
  const [width, height] = [length * CELL, all.length * ROW];
  const y = (pitch) => (high - pitch) * ROW;
  const black = all.filter((pitch) => NAMES[pitch % 12].length > 1);
  const each4 = Array.from({ length: Math.floor(length / 4) + 1 }, (_, i) => i * 4 * CELL);
  const label = `${notes.length} notes in ${length} steps.`;

  const keys = s("svg", { class: "keys", width: KEYBOARD, height, "aria-hidden": "true" },
    black.map((pitch) => s("rect", { y: y(pitch), width: KEYBOARD * 0.6, height: ROW })),
    all.filter((pitch) => pitch % 12 === 0).map((pitch) =>
      s("text", { x: KEYBOARD - 3, y: y(pitch) + ROW - 1, "text-anchor": "end" }, nameOf(pitch))),
  );
  const cursor = s("line", { class: "cursor", y1: 0, y2: height, visibility: "hidden" });
  const paper = s("svg", { width, height, role: "img", "aria-label": label },
    black.map((pitch) => s("rect", { class: "lane", y: y(pitch), width, height: ROW })),
    each4.map((x) => s("line", { class: "rule", x1: x, x2: x, y1: 0, y2: height })),
    notes.map((note) => s("rect", {
      class: note.start < given ? "note" : "note added", x: note.start * CELL + 1, y: y(note.pitch) + 0.5, rx: 2,
      width: note.length * CELL - 2, height: ROW - 1,
      "data-pitch": note.pitch, "data-start": note.start, "data-length": note.length,
    }, s("title", {}, nameOf(note.pitch)))),
    cursor,
  );
  const element = h("div", { class: "roll", tabindex: 0, role: "region", "aria-label": "Piano roll" }, keys, paper);
  return {
    element,
    cursor(at) {
      cursor.setAttribute("visibility", at < 0 || at > length ? "hidden" : "visible");
      if (at < 0 || at > length) return;
      const x = at * CELL;
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      const seen = element.clientWidth - KEYBOARD;
      if (x < element.scrollLeft || x > element.scrollLeft + seen - CELL) element.scrollLeft = x - CELL;
    },
  };
}
