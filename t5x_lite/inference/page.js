"use strict";
// Text from the model or the run is inserted as text, never as markup: it may contain HTML.
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function element(name, content, className) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (content !== undefined) node.textContent = content;
  return node;
}

function svgElement(name, attributes, content) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (content !== undefined) node.textContent = content;
  return node;
}

function showState(text, bad = false) {
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
    const shown = output.filled ?? output.text;
    item.append(element("div", shown || "(nothing)", shown ? "text" : "text empty"));
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
  showState("generating …");
  const start = performance.now();
  try {
    const answer = await fetch("/generate", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text: at("prefix").value + at("text").value, settings: settings() }),
    });
    const result = await answer.json();
    if (!answer.ok) throw new Error(result.error);
    showOutputs(result);
    const cut = result.truncated ? ", the end was cut" : "";
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    showState(`${result.input_tokens} tokens read${cut}, ${seconds} s`);
  } catch (error) {
    showState(error.message, true);
  }
  at("go").disabled = false;
}

function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const values = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step / 1e6; x += step) values.push(x);
  return values;
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
  const picture = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  picture.append(svgElement("title", {}, "loss by step"));
  for (const loss of ticks(low, high, 5)) {
    picture.append(svgElement("line", { class: "grid", x1: left, x2: width - 12, y1: y(loss), y2: y(loss) }));
    picture.append(svgElement("text", { x: left - 8, y: y(loss) + 4, "text-anchor": "end" }, String(+loss.toFixed(3))));
  }
  for (const step of ticks(0, highestStep, 8)) {
    picture.append(svgElement("text", { x: x(step), y: height - 6, "text-anchor": "middle" }, step.toLocaleString("en")));
  }
  curves.forEach((curve, i) => {
    const line = curve.points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`);
    picture.append(svgElement("polyline", { class: `curve c${i % 6}`, points: line.join(" ") }));
    const item = element("li", undefined, `c${i % 6}`);
    const last = curve.points.at(-1)[1].toFixed(3);
    item.append(element("span", `${curve.name} ${last}`));
    at("legend").append(item);
  });
  at("curves").append(picture);
  at("run").hidden = false;
}

async function load() {
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
    showState("a model without a decoder cannot generate text", true);
  }
  showCurves(await (await fetch("/curves")).json());
}

at("method").addEventListener("change", showSettings);
at("ask").addEventListener("submit", generate);
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate(event);
});
showSettings();
load().catch((error) => showState(error.message, true));
