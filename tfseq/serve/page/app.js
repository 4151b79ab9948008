/** The page: which model, which panels suit its signatures, and which one is shown; the address keeps both, #MODEL/PANEL. */

import { Model, listModels, requests, whyAbsent } from "./api.js";
import { h } from "./dom.js";
import continuing from "./continue.js";
import draw from "./draw.js";
import forecast from "./forecast.js";
import piano from "./piano.js";
import signature from "./signature.js";
import states from "./states.js";
import tags from "./tags.js";

const PANELS = [tags, continuing, piano, states, forecast, draw, signature];
const byId = (id) => document.getElementById(id);
const [select, about, tabs, place, request] = ["model", "about", "tabs", "panel", "request"].map(byId);
const shown = new Map(); // "model/version/panel" -> element, so that nothing typed is lost
let models = [];
let asked = 0;

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // typed by hand
  }
}

function address() {
  const [name, panel] = location.hash.slice(1).split("/").map(decoded);
  return { name: name || models.find((m) => m.versions.length)?.name || models[0]?.name, panel };
}

function goTo(name, panel = "") {
  location.hash = `${encodeURIComponent(name)}/${panel}`;
}

/** Shows something else; what was there ends its sound and its dreams. */
function put(...content) {
  place.firstElementChild?.dispatchEvent(new Event("leave"));
  place.replaceChildren(...content);
}

/** Something to read instead of a panel. */
function say(...content) {
  tabs.replaceChildren();
  about.textContent = "";
  place.removeAttribute("aria-labelledby");
  put(...content);
}

const again = () => h("button", { type: "button", onclick: start }, "Look again");

async function show() {
  if (!models.length) return;
  const turn = ++asked;
  const { name, panel } = address();
  const listed = models.find((m) => m.name === name);
  select.value = name;
  place.ariaBusy = "true";
  try {
    if (!listed) throw new Error(`There is no model ${name} here.`);
    if (!listed.versions.length) throw new Error(`${name} is not served. ${await whyAbsent(name)}`);
    const model = await Model.load(name);
    if (turn !== asked) return;
    const suited = PANELS.filter((p) => p.suits(model));
    const chosen = suited.find((p) => p.id === panel) ?? suited[0];
    about.textContent = `version ${model.version}`;
    document.title = `${name} – tfseq serve`;
    showTabs(suited, chosen, name);
    const key = `${name}/${model.version}/${chosen.id}`;
    if (!shown.has(key)) shown.set(key, chosen.make(model));
    if (place.firstElementChild !== shown.get(key)) put(shown.get(key));
  } catch (error) {
    if (turn === asked) say(h("p", { class: "problem", role: "alert" }, error.message), again());
  } finally {
    if (turn === asked) place.ariaBusy = "false";
  }
}

function showTabs(suited, chosen, name) {
  const focused = tabs.contains(document.activeElement);
  const made = suited.map((p) =>
    h(
      "button",
      {
        type: "button", role: "tab", id: `tab-${p.id}`, "aria-controls": "panel", "aria-selected": String(p === chosen),
        tabindex: p === chosen ? 0 : -1, onclick: () => goTo(name, p.id),
      },
      p.title,
    ),
  );
  tabs.replaceChildren(...made);
  place.setAttribute("aria-labelledby", `tab-${chosen.id}`);
  if (focused) made[suited.indexOf(chosen)].focus();
}

tabs.addEventListener("keydown", (event) => {
  const all = [...tabs.children];
  const now = all.indexOf(document.activeElement);
  const moves = { ArrowRight: now + 1, ArrowLeft: now - 1 + all.length, Home: 0, End: all.length - 1 };
  if (!(event.key in moves)) return;
  event.preventDefault();
  const next = all[moves[event.key] % all.length];
  next.focus();
  next.click();
});

requests.addEventListener("request", ({ detail: { url, body, status, ms } }) => {
  const most = 4000;
  const data = body.replaceAll("'", "'\\''");
  request.hidden = false;
  const how = status === 200 ? "answered" : `refused (${status})`;
  request.firstElementChild.textContent = `Last request: ${how} in ${Math.round(ms)} ms`;
  request.lastElementChild.textContent = `curl ${url} \\\n  -d '${data.length > most ? `${data.slice(0, most)} …` : data}'`;
});

async function start() {
  say(h("p", {}, "Looking for models …"));
  try {
    models = await listModels();
  } catch (error) {
    return say(h("p", { class: "problem", role: "alert" }, error.message), again());
  }
  select.replaceChildren(
    ...models.map((m) => h("option", { value: m.name }, m.versions.length ? m.name : `${m.name} (not served)`)),
  );
  if (models.length) return show();
  return say(h("p", {}, "There is no model in the folder yet: tfseq export writes one, NAME/VERSION/saved_model.pb."), again());
}

select.addEventListener("change", () => goTo(select.value));
addEventListener("hashchange", show);
start();
