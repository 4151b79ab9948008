/** TF Serving's REST API, https://www.tensorflow.org/tfx/serving/api_rest; only the list of models is this server's own. */

/** What the page sends is announced here: events "request" with {url, body, status, ms}. */
export const requests = new EventTarget();

/** JSON with NaN and Infinity, which the API has and `JSON.parse` has not: they become null. */
export function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return JSON.parse(text.replace(/"(?:[^"\\]|\\.)*"|-?Infinity|NaN/g, (found) => (found[0] === '"' ? found : "null")));
  }
}

async function ask(path, body) {
  const url = new URL(path, location.href.split("#")[0]);
  const start = performance.now();
  let response, text;
  try {
    const headers = { "Content-Type": "application/json" };
    response = await fetch(url, body === undefined ? {} : { method: "POST", headers, body });
    text = await response.text();
  } catch {
    throw new Error("The server does not answer. Is tfseq serve still running?");
  }
  const detail = { url, body, status: response.status, ms: performance.now() - start };
  if (body !== undefined) requests.dispatchEvent(new CustomEvent("request", { detail }));
  let answer;
  try {
    answer = parse(text);
  } catch {
    throw new Error(`The server answered ${response.status}, and no JSON: ${text.slice(0, 200)}`);
  }
  if (!response.ok) throw new Error(answer.error ?? `The server answered ${response.status}.`);
  return answer;
}

/** [{name, versions, labels}] of what is in the folder; `versions` is empty where none could be loaded. */
export const listModels = async () => (await ask("models")).models;

/** Why a model has no version that is served, in the server's words. */
export async function whyAbsent(name) {
  const { model_version_status: versions } = await ask(`v1/models/${encodeURIComponent(name)}`);
  const said = versions.map((v) => `Version ${v.version}: ${v.status.error_message || v.state.toLowerCase()}`);
  return said.join(" ") || "No version was found.";
}

/** A model that is served: its signatures, {name: {inputs, outputs}} with {dtype, shape} of each tensor, and how to ask it. */
export class Model {
  static async load(name) {
    const answer = await ask(`v1/models/${encodeURIComponent(name)}/metadata`);
    const definitions = Object.entries(answer.metadata.signature_def.signature_def);
    const signatures = {};
    for (const [key, { inputs, outputs }] of definitions.sort(([a], [b]) => rank(a) - rank(b) || (a < b ? -1 : 1))) {
      if (!key.startsWith("__")) signatures[key] = { inputs: tensors(inputs), outputs: tensors(outputs) };
    }
    return new Model(name, answer.model_spec.version, signatures);
  }

  constructor(name, version, signatures) {
    Object.assign(this, { name, version, signatures });
  }

  /** Shape of an input or output, [] where there is none of that name; a size that is open is -1. */
  shape(signature, part, name) {
    return this.signatures[signature]?.[part][name]?.shape ?? [];
  }

  /** Whether a signature exists, takes nothing but these inputs, and among them the `needed` ones. */
  takes(signature, inputs, needed = []) {
    const taken = Object.keys(this.signatures[signature]?.inputs ?? {});
    return taken.length > 0 && taken.every((name) => inputs.includes(name)) && needed.every((name) => taken.includes(name));
  }

  /** Whether a signature exists and has these outputs. */
  gives(signature, outputs) {
    const given = this.signatures[signature]?.outputs ?? {};
    return outputs.every((name) => name in given);
  }

  /** Columns in, columns out: {name: [B, ...]}. */
  async predict(signature, inputs) {
    const path = `v1/models/${encodeURIComponent(this.name)}:predict`;
    const { outputs } = await ask(path, JSON.stringify({ signature_name: signature, inputs }));
    const names = Object.keys(this.signatures[signature].outputs);
    return names.length === 1 ? { [names[0]]: outputs } : outputs; // the name of a single output is left out
  }

  /** Rows in, rows out: [{name: ...}]; `lengths` and inputs that the signature does not take are seen to. */
  async rows(signature, given) {
    const values = given.map((row) => ({ lengths: row.x?.length, ...row }));
    const names = Object.keys(this.signatures[signature].inputs);
    const columns = Object.fromEntries(names.map((name) => [name, values.map((row) => row[name])]));
    const outputs = await this.predict(signature, columns);
    return given.map((_, i) => Object.fromEntries(Object.entries(outputs).map(([name, column]) => [name, column[i]])));
  }

  /** The same of one row. */
  async row(signature, given) {
    return (await this.rows(signature, [given]))[0];
  }
}

const rank = (name) => (name === "serving_default" ? 0 : 1);

function tensors(infos) {
  const named = Object.entries(infos ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(
    named.map(([name, { dtype, tensor_shape: shape }]) => [
      name,
      { dtype: dtype.replace("DT_", "").toLowerCase(), shape: (shape.dim ?? []).map((d) => Number(d.size)) },
    ]),
  );
}
