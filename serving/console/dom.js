// Makes elements, and writes numbers and times. Text goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** Return an HTML element: `on…` are listeners, other attributes are set as they are. */
export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Return an SVG element. */
export function s(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Put these in place of what an element holds, unless they would look the same. */
export function put(element, ...children) {
  const fresh = document.createElement("div");
  fresh.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  if (fresh.innerHTML !== element.innerHTML) element.replaceChildren(...fresh.childNodes);
}

/** Say something to whoever listens rather than looks, and show it for a while. */
export function say(text, { shown = true } = {}) {
  const said = document.getElementById("said");
  said.textContent = text;
  said.classList.toggle("shown", shown && text !== "");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => said.classList.remove("shown"), 8000);
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Write a count: 12,345. */
export function count(value) {
  return known(value) ? whole.format(value) : "–";
}

/** Write a number with some digits behind the point. */
export function digits(value, places = 3) {
  return known(value) ? value.toFixed(places).replace(/^-(?=.*[1-9])/, "−").replace("-", "") : "–";
}

/** Write a number of any size shortly: 0.25, 31, 12 k, 1.2 M. */
export function short(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${trim(value / 1e6)} M`;
  if (size >= 1e4) return `${trim(value / 1e3)} k`;
  if (size >= 100 || Number.isInteger(value)) return whole.format(value);
  return trim(value);
}

function trim(value) {
  return String(Number(value.toPrecision(2)));
}

/** Write a share as a percentage. */
export function percent(value, places = 1) {
  return known(value) ? `${(100 * value).toFixed(places)} %`.replace("-", "−") : "–";
}

/** Write a length of time given in seconds. */
export function span(seconds) {
  if (!known(seconds)) return "–";
  const size = Math.max(seconds, 0);
  if (size < 0.001) return "0 s";
  if (size < 0.9995) return `${Math.round(1000 * size)} ms`;
  if (size < 10) return `${size.toFixed(1)} s`;
  if (size < 90) return `${Math.round(size)} s`;
  if (size < 5400) return `${Math.round(size / 60)} min`;
  if (size < 172800) return `${Math.round(size / 3600)} h`;
  return `${whole.format(size / 86400)} days`;
}

/** Write a moment, UTC. */
export function moment(ms, { seconds = false } = {}) {
  if (!known(ms) || ms <= 0) return "–";
  return new Date(ms).toISOString().slice(0, seconds ? 19 : 16).replace("T", " ");
}

/** Write the hour of a moment, UTC: 04-24 13 h. */
export function hour(ms) {
  return `${new Date(ms).toISOString().slice(5, 13).replace("T", " ")} h`;
}

/** Return a `time` element for a moment, with its age where that says more. */
export function when(ms) {
  if (!known(ms) || ms <= 0) return h("span", {}, "–");
  return h("time", { datetime: new Date(ms).toISOString(), title: `${moment(ms, { seconds: true })} UTC` }, moment(ms));
}

function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** Return a table. A column is {name, of: row => text or node, number: whether it is one}; `now` tells
 *  which rows stand out. */
export function table(caption, columns, rows, { hidden = false, now = () => false, stacks = columns.length > 3 } = {}) {
  // On a phone a table that `stacks` is shown row by row; the roles keep it a table to the ear.
  const kind = (column) => ({ class: column.number ? "number" : null, "data-name": column.name || null });
  return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    h("table", { class: stacks ? "stacks" : null, role: "table" },
      h("caption", { class: hidden ? "unseen" : null }, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((each) => h("th", { scope: "col", role: "columnheader", ...kind(each) }, each.name || h("span", { class: "unseen" }, "actions"))))),
      h("tbody", { role: "rowgroup" }, rows.map((row) => h("tr", { role: "row", class: now(row) ? "now" : null }, columns.map((each, at) =>
        at === 0 ? h("th", { scope: "row", role: "rowheader", ...kind(each) }, each.of(row)) : h("td", { role: "cell", ...kind(each) }, each.of(row))))))));
}

/** Return a list of named facts. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, value, note]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value, note ? h("small", {}, note) : null))));
}

/** Return a part of a page under a heading. */
export function part(title, note, ...children) {
  const id = `part-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return h("section", { class: "part", "aria-labelledby": id },
    h("h2", { id }, title), note ? h("p", { class: "note" }, note) : null, ...children);
}

/** The feedback classes and what else an event may be, in the order of the wire. */
export const KINDS = [
  { name: "explicit_positive", words: "explicit positive", sign: "++" },
  { name: "implicit_positive", words: "implicit positive", sign: "+" },
  { name: "implicit_negative", words: "implicit negative", sign: "−" },
  { name: "explicit_negative", words: "explicit negative", sign: "−−" },
  { name: "none", words: "no feedback", sign: "0" },
  { name: "retraction", words: "retraction", sign: "↺" },
];

/** Return a label for a feedback class: a colour, a sign and its words. */
export function chip(name) {
  const kind = KINDS.find((each) => each.name === name) ?? { name: "none", words: String(name), sign: "?" };
  return h("span", { class: `chip ${kind.name}` }, h("b", { "aria-hidden": "true" }, kind.sign), kind.words);
}
