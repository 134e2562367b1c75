"use strict";
// Draws the figures when they come into view, in the colours of the page, and lists the sampled pairs.

const read = (id) => JSON.parse(document.getElementById(id)?.textContent || "[]");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const figures = new Map(read("figures").map((figure) => [figure.id, figure]));
const drawn = new Set();

function themed(layout) {
  const axis = { gridcolor: colour("--grid"), zerolinecolor: colour("--line"), linecolor: colour("--line") };
  return {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--soft"), size: 12, family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
}

function draw(element) {
  const figure = figures.get(element.id);
  if (figure.layout.height) element.style.height = figure.layout.height + "px";
  drawn.add(element);
  Plotly.react(element, figure.data, themed(figure.layout), { responsive: true, displayModeBar: false });
}

const watch = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        watch.unobserve(entry.target);
        draw(entry.target);
      }
    }
  },
  { rootMargin: "300px" },
);
document.querySelectorAll(".plot").forEach((element) => watch.observe(element));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(draw));

const samples = read("samples");
const form = document.getElementById("filters");
const PAGE = 20;
let limit = PAGE;

function segmentOf(text) {
  const from = text.indexOf("⟦"), to = text.lastIndexOf("⟧");
  return from < 0 || to < from ? ["", text, ""] : [text.slice(0, from), text.slice(from + 1, to), text.slice(to + 1)];
}

function node(tag, className, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children);
  return element;
}

function half(kind, text) {
  const [before, segment, after] = segmentOf(text);
  const shown = node("div", "text", before, node("mark", "", segment), after);
  return node("div", kind, node("div", "label", kind), shown);
}

const isIdentical = (pair) => segmentOf(pair.chosen)[1] === segmentOf(pair.rejected)[1];
const ageOf = (pair) => pair.age ?? (pair.version >= 0 ? pair.step - 1 - pair.version : null);
const VALUES = { step: (p) => p.step, age: ageOf, margin: (p) => p.margin, edit: (p) => p.edit_fraction,
  logprob: (p) => p.replacement_logprob };

function passes(pair, wanted) {
  for (const [name, value] of Object.entries(VALUES)) {
    for (const [end, sign] of [["min", 1], ["max", -1]]) {
      const bound = wanted.get(`${name}-${end}`);
      if (bound && (value(pair) == null || sign * (value(pair) - Number(bound)) < 0)) return false;
    }
  }
  for (const [name, value] of [["ended", pair.ended], ["identical", isIdentical(pair)]]) {
    const answer = wanted.get(name);
    if (answer && value !== (answer === "yes")) return false;
  }
  const text = (wanted.get("text") || "").toLowerCase();
  return !text || [pair.prompt, pair.chosen, pair.rejected].some((part) => part.toLowerCase().includes(text));
}

function card(pair) {
  const facts = [`step ${pair.step}`, `row ${pair.row}`];
  if (ageOf(pair) != null) facts.push(`weights ${ageOf(pair)} steps old`);
  if (pair.margin != null) facts.push(`margin ${pair.margin}`);
  if (pair.edit_fraction != null) facts.push(`${Math.round(100 * pair.edit_fraction)} % of the segment changed`);
  if (pair.replacement_logprob != null) facts.push(`${pair.replacement_logprob} nats a token`);
  if (pair.ended) facts.push("ended the response");
  if (pair.suffix_kept === false) facts.push("suffix dropped");
  if (pair.actor) facts.push(pair.actor);
  return node(
    "div", "card pair",
    node("div", "facts", ...facts.map((fact) => node("span", "", fact))),
    node("div", "text soft", pair.prompt),
    node("div", "halves", half("chosen", pair.chosen), half("rejected", pair.rejected)),
  );
}

function list() {
  const wanted = new FormData(form);
  const found = samples.filter((pair) => passes(pair, wanted));
  document.getElementById("pairs").replaceChildren(...found.slice(0, limit).map(card));
  document.getElementById("found").textContent = `${found.length} of ${samples.length} pairs`;
  document.getElementById("more-pairs").hidden = found.length <= limit;
}

if (form) {
  form.addEventListener("input", () => { limit = PAGE; list(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("more-pairs").addEventListener("click", () => { limit += PAGE; list(); });
  list();
}
