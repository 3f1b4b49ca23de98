// Charts as SVG drawn at the size that they are shown at, each with its numbers as a table.

import { h, put, s, short, table } from "./dom.js";

const LEFT = 46;
const BOTTOM = 22;
const TOP = 8;
const RIGHT = 10;

/** Return a figure that draws itself anew when its data or its width changes.
 *
 *  draw(svg, data, width, height) fills the svg; tell(data) gives {label, columns, rows}: what the
 *  chart says in words, and its numbers, which are left out where they stand beside it anyway.
 *  update(data) shows other data.
 */
function figure(caption, height, draw, tell, { numbered = true } = {}) {
  const svg = s("svg", { role: "img", height });
  const numbers = h("details", {}, h("summary", {}, "Numbers"));
  const held = h("div");
  numbers.append(held);
  const node = h("figure", {}, svg, h("figcaption", {}, caption), numbered ? numbers : null);
  let data = null;
  const redraw = () => {
    const width = Math.floor(svg.getBoundingClientRect().width);
    if (data === null || width < 40) return;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    const { label } = tell(data);
    svg.setAttribute("aria-label", label);
    draw(svg, data, width, height);
  };
  const retell = () => {
    if (data === null || !numbers.open) return;
    const { columns, rows } = tell(data);
    put(held, table(caption, columns, rows, { hidden: true }));
  };
  numbers.addEventListener("toggle", retell);
  new ResizeObserver(redraw).observe(svg);
  return {
    node,
    update(fresh) {
      data = fresh;
      redraw();
      retell();
    },
  };
}

/** Return round values between which `most` lies, from 0: for the marks of an axis. */
export function marks(most, wanted = 4) {
  if (!(most > 0)) return [0, 1];
  const rough = most / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((each) => each * power >= rough * 0.999) * power;
  const found = [];
  for (let at = 0; at < Math.ceil(most / step - 1e-9) + 1; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

function axis(svg, values, y, width) {
  for (const value of values) {
    svg.append(
      s("line", { class: value === 0 ? "axis" : "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      s("text", { class: "mark-text", x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    );
  }
}

/** Lines over time. Data: {series: [{name, css, points: [[ms, value or null]]}], write, tick}. */
export function lines(caption, { height = 190, write = short, tick, whole = false }) {
  const draw = (svg, series, width) => {
    const points = series.flatMap((each) => each.points).filter(([, value]) => value !== null);
    if (!points.length) return empty(svg, width, height);
    const [first, last] = [Math.min(...points.map(([at]) => at)), Math.max(...points.map(([at]) => at))];
    let scale = marks(Math.max(...points.map(([, value]) => value)), height < 120 ? 2 : 4);
    if (whole) scale = scale.filter(Number.isInteger);
    const x = (at) => LEFT + ((width - LEFT - RIGHT) * (at - first)) / Math.max(last - first, 1);
    const y = (value) => height - BOTTOM - ((height - BOTTOM - TOP) * value) / scale.at(-1);
    axis(svg, scale, y, width);
    const ticks = width < 420 ? 2 : 4;
    for (let at = 0; at <= ticks; at += 1) {
      if (last === first && at > 0) break;
      const when = first + ((last - first) * at) / ticks;
      const anchor = at === 0 ? "start" : at === ticks ? "end" : "middle";
      svg.append(s("text", { class: "mark-text", x: x(when), y: height - 5, "text-anchor": anchor }, tick(when)));
    }
    for (const each of series) {
      let path = "";
      let pen = "M";
      for (const [at, value] of each.points) {
        if (value === null) { pen = "M"; continue; }
        path += `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = "L";
      }
      svg.append(s("path", { class: `line ${each.css}`, d: path }));
      const end = each.points.findLast(([, value]) => value !== null);
      if (end) svg.append(s("circle", { class: `end ${each.css}`, cx: x(end[0]), cy: y(end[1]), r: 3.5 }));
    }
    follow(svg, series, x, y, width, height, write, tick);
    return null;
  };
  const tell = (series) => {
    const ends = series.map((each) => {
      const end = each.points.findLast(([, value]) => value !== null);
      return end ? `${each.name} now ${write(end[1])}` : `${each.name}: nothing yet`;
    });
    const times = [...new Set(series.flatMap((each) => each.points.map(([at]) => at)))].sort((a, b) => b - a);
    const values = series.map((each) => new Map(each.points));
    return {
      label: `${caption}. ${ends.join("; ")}. The numbers are in the table below.`,
      columns: [
        { name: "time, UTC", of: (at) => tick(at) },
        ...series.map((each, at) => ({ name: each.name, number: true, of: (time) => write(values[at].get(time) ?? NaN) })),
      ],
      rows: times,
    };
  };
  return figure(caption, height, draw, tell);
}

/** Show the values at the time that the pointer is at. */
function follow(svg, series, x, y, width, height, write, tick) {
  const times = [...new Set(series.flatMap((each) => each.points.map(([at]) => at)))].sort((a, b) => a - b);
  const group = s("g", { class: "pointer", "aria-hidden": "true" });
  svg.append(group);
  svg.onpointerleave = () => group.replaceChildren();
  svg.onpointermove = (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const time = times.reduce((best, each) => (Math.abs(x(each) - at) < Math.abs(x(best) - at) ? each : best));
    const told = series.flatMap((each) => {
      const value = each.points.find(([when]) => when === time)?.[1];
      return value === null || value === undefined ? [] : [`${series.length > 1 ? `${each.name} ` : ""}${write(value)}`];
    });
    const right = x(time) > width / 2;
    group.replaceChildren(
      s("line", { x1: x(time), x2: x(time), y1: TOP, y2: height - BOTTOM }),
      s("text", { x: x(time) + (right ? -8 : 8), y: TOP + 12, "text-anchor": right ? "end" : "start" }, `${tick(time)} · ${told.join(" · ")}`),
    );
  };
}

function empty(svg, width, height) {
  svg.append(s("text", { class: "mark-text", x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing to show yet"));
}

/** Bars, one beside the other. Data: [{name, value}]. */
export function bars(caption, { height = 190, write = short, of = "count" }) {
  const draw = (svg, data, width) => {
    if (!data.some(({ value }) => value > 0)) return empty(svg, width, height);
    const scale = marks(Math.max(...data.map(({ value }) => value)));
    const y = (value) => height - BOTTOM - ((height - BOTTOM - TOP) * value) / scale.at(-1);
    axis(svg, scale, y, width);
    const step = (width - LEFT - RIGHT) / data.length;
    const room = Math.ceil(44 / step);
    data.forEach(({ name, value }, at) => {
      const left = LEFT + step * at;
      svg.append(s("rect", { class: "column", x: left + Math.min(step * 0.12, 4), width: Math.max(step - 2 * Math.min(step * 0.12, 4), 1),
        y: y(value), height: Math.max(height - BOTTOM - y(value), 0), rx: 1.5 }, s("title", {}, `${name}: ${write(value)}`)));
      if (at % room === 0) svg.append(s("text", { class: "mark-text", x: left + step / 2, y: height - 5, "text-anchor": "middle" }, name));
    });
    return null;
  };
  const tell = (data) => {
    const total = data.reduce((sum, { value }) => sum + value, 0);
    const top = data.reduce((best, each) => (each.value > best.value ? each : best), { name: "", value: 0 });
    return {
      label: `${caption}. ${total ? `Most at ${top.name}: ${write(top.value)} of ${write(total)}.` : "Nothing yet."} The numbers are in the table below.`,
      columns: [{ name: "up to", of: (row) => row.name }, { name: of, number: true, of: (row) => write(row.value) }],
      rows: data,
    };
  };
  return figure(caption, height, draw, tell);
}

/** Estimates with intervals, one under the other; whoever shows it shows the numbers. Data: [{name, value, low, high, css}]. */
export function intervals(caption, { write, zero = 0 }) {
  const node = h("div");
  return {
    node,
    update(data) {
      const height = 34 * data.length + BOTTOM + TOP;
      const inner = figure(caption, height, (svg, rows, width) => {
        const named = Math.min(130, width / 3);
        const ends = rows.flatMap(({ low, high }) => [low, high]).filter(Number.isFinite);
        const [least, most] = [Math.min(zero, ...ends), Math.max(zero, ...ends)];
        const x = (value) => named + 14 + ((width - named - 14 - 30) * (value - least)) / Math.max(most - least, 1e-12);
        svg.append(s("line", { class: "axis", x1: x(zero), x2: x(zero), y1: TOP, y2: height - BOTTOM }));
        for (const value of new Set([least, zero, most])) {
          svg.append(s("text", { class: "mark-text", x: x(value), y: height - 5, "text-anchor": "middle" }, write(value)));
        }
        rows.forEach(({ name, value, low, high, css = "online" }, at) => {
          const y = TOP + 34 * at + 17;
          svg.append(s("text", { class: "row-text", x: named, y: y + 4, "text-anchor": "end" }, name));
          if (Number.isFinite(low) && Number.isFinite(high)) svg.append(s("line", { class: `line ${css}`, x1: x(low), x2: x(high), y1: y, y2: y }));
          if (Number.isFinite(value)) svg.append(s("circle", { class: `end ${css}`, cx: x(value), cy: y, r: 4.5 }));
        });
      }, (rows) => ({
        label: `${caption}. ${rows.map(({ name, value, low, high }) => `${name}: ${write(value)}, ${write(low)} to ${write(high)}`).join("; ")}.`,
      }), { numbered: false });
      node.replaceChildren(inner.node);
      inner.update(data);
    },
  };
}

/** Return a bar that is divided by shares, for the eye only: [{css, value, words}]; what is below 0 is
 *  hatched. */
export function divided(shares) {
  const total = shares.reduce((sum, { value }) => sum + Math.abs(value), 0);
  const bar = h("div", { class: "divided", "aria-hidden": "true" });
  for (const { css, value, words } of shares) {
    if (!value || !total) continue;
    const piece = h("i", { class: value < 0 ? `${css} minus` : css, title: words });
    piece.style.flexGrow = Math.abs(value) / total;
    bar.append(piece);
  }
  return bar;
}

/** Return what the colours of lines mean. */
export function legend(series) {
  return h("ul", { class: "legend" }, series.map(({ name, css }) => h("li", {}, h("i", { class: css, "aria-hidden": "true" }), name)));
}
