"use strict";
// All that comes from the model or the run is put in as text, never as markup.
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function element(name, content, className) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (content !== undefined) made.textContent = content;
  return made;
}

function drawn(name, attributes, content) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (content !== undefined) made.textContent = content;
  return made;
}

function say(text, bad = false) {
  at("state").textContent = text;
  at("state").className = bad ? "bad" : "";
}

const NUMBERS = {
  greedy: ["max_length", "min_length"],
  beam: ["max_length", "min_length", "num_beams", "length_penalty", "num_returns"],
  sample: ["max_length", "min_length", "temperature", "top_k", "top_p", "seed", "num_returns"],
};

function settings() {
  const names = NUMBERS[at("method").value];
  return Object.fromEntries(names.map((name) => [name, Number(at(name).value)]));
}

function showSettings() {
  for (const label of document.querySelectorAll("[data-for]")) {
    label.hidden = !label.dataset.for.split(" ").includes(at("method").value);
  }
}

function showOutputs(answer) {
  const best = Math.max(...answer.outputs.map((output) => output.score));
  at("outputs").replaceChildren(...answer.outputs.map((output) => {
    const item = element("li");
    const said = output.filled ?? output.text;
    item.append(element("div", said || "(nothing)", said ? "text" : "text empty"));
    if (output.filled !== undefined) item.append(element("div", output.text, "filled"));
    const line = element("div", undefined, "score");
    line.append(element("span", `score ${output.score.toFixed(3)}`));
    if (answer.outputs.length > 1) {
      const bar = element("progress");
      bar.max = 1;
      bar.value = Math.exp(output.score - best);
      line.append(bar);
    }
    item.append(line);
    return item;
  }));
}

async function generate(event) {
  event?.preventDefault();
  at("go").disabled = true;
  say("generating …");
  const began = performance.now();
  try {
    const answer = await fetch("/generate", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text: at("prefix").value + at("text").value, settings: settings() }),
    });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    showOutputs(found);
    const cut = found.truncated ? ", the text's end was cut off" : "";
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    say(`${found.input_tokens} tokens read${cut}, ${seconds} s`);
  } catch (error) {
    say(error.message, true);
  }
  at("go").disabled = false;
}

function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step / 1e6; x += step) found.push(x);
  return found;
}

function showCurves(curves) {
  const points = curves.flatMap((curve) => curve.points);
  if (points.length < 2) return;
  const [width, height, left, bottom, top] = [960, 260, 44, 24, 8];
  const highestStep = Math.max(...points.map((p) => p[0]));
  const low = Math.min(...points.map((p) => p[1]));
  const high = Math.max(...points.map((p) => p[1]));
  const span = high - low || 1;
  const x = (step) => left + (step / (highestStep || 1)) * (width - left - 12);
  const y = (loss) => top + ((high - loss) / span) * (height - top - bottom);
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  picture.append(drawn("title", {}, "loss by step"));
  for (const loss of ticks(low, high, 5)) {
    picture.append(drawn("line", { class: "grid", x1: left, x2: width - 12, y1: y(loss), y2: y(loss) }));
    picture.append(drawn("text", { x: left - 8, y: y(loss) + 4, "text-anchor": "end" }, String(+loss.toFixed(3))));
  }
  for (const step of ticks(0, highestStep, 8)) {
    picture.append(drawn("text", { x: x(step), y: height - 6, "text-anchor": "middle" }, step.toLocaleString("en")));
  }
  curves.forEach((curve, i) => {
    const line = curve.points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`);
    picture.append(drawn("polyline", { class: `curve c${i % 6}`, points: line.join(" ") }));
    const item = element("li", undefined, `c${i % 6}`);
    const last = curve.points.at(-1)[1].toFixed(3);
    item.append(element("span", `${curve.name} ${last}`));
    at("legend").append(item);
  });
  at("curves").append(picture);
  at("run").hidden = false;
}

async function begin() {
  const about = await (await fetch("/about")).json();
  const [encoder, decoder] = about.layers;
  at("about").textContent =
    `${about.name} · ${about.parameters.toLocaleString("en")} parameters · ` +
    `${encoder} encoder and ${decoder} decoder layers · ${about.vocabulary.toLocaleString("en")} pieces`;
  document.title = `t5x_lite · ${about.name}`;
  at("prefixes").append(...about.prefixes.map((prefix) => {
    const option = element("option");
    option.value = prefix;
    return option;
  }));
  at("max_length").max = about.most_tokens;
  if (!about.generates) {
    at("go").disabled = true;
    say("a model without a decoder generates nothing", true);
  }
  showCurves(await (await fetch("/curves")).json());
}

at("method").addEventListener("change", showSettings);
at("ask").addEventListener("submit", generate);
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate(event);
});
showSettings();
begin().catch((error) => say(error.message, true));
