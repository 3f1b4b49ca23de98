// Whether all is well: rates, classes, lag, freshness, quality by hour, drift.

import { ask, every } from "./api.js";
import { bars, divided, legend, lines } from "./charts.js";
import { KINDS, chip, count, digits, facts, h, hour, moment, part, percent, put, say, short, span, table, when } from "./dom.js";

export const title = "Overview";

const KEPT_MS = 10 * 60 * 1000;
const RATE_MS = 30 * 1000;
const SILENT_MS = 10 * 1000; // a learner tells of itself every second

// What was seen since the console was opened: rates need a past, whichever page is shown.
let seen = [];

/** Show the page. */
export function show(main, { signal, fails }) {
  const headline = h("h1", { tabindex: "-1" }, "Overview");
  const lead = h("p", { class: "lead" }, "Asking …");
  const numbers = h("div");
  const classes = h("div");
  const health = h("div");
  const alarms = h("div");
  const told = h("p", { class: "note" });
  const clock = (ms) => moment(ms, { seconds: true }).slice(11);
  const rate = lines("Events learned per second, since this page was opened, UTC", { tick: clock });
  const lag = lines("Records that wait for the learner, UTC", { tick: clock, whole: true });
  const quality = lines("Lists ranked before each event was learned, by hour of event time, UTC", { tick: hour, write: (value) => digits(value, 4), height: 220 });
  const qualityLegend = h("div");
  const fresh = bars("Records by the time they took, seconds", { of: "records" });
  const stage = h("select", { id: "stage-field", onchange: () => showStage() });
  let stages = {};

  main.append(
    headline, lead, numbers,
    h("div", { class: "grid" },
      h("div", { class: "stack" }, part("Rate", null, rate.node), part("Lag", null, lag.node)),
      h("div", { class: "stack" },
        part("Feedback classes", "Events since the learner started.", classes),
        part("Freshness", null,
          h("form", { class: "row" }, h("div", {}, h("label", { for: "stage-field" }, "Stage"), stage)), fresh.node, told)),
      h("div", { class: "span-2" }, part("Quality", "Of lists of ten items, at the moment when each liked item was met.", qualityLegend, quality.node)),
      part("Drift", "Changes of level that detectors saw, the newest first.", alarms),
      part("Health", null, health)),
  );

  function showStage() {
    const { bounds_s: bounds = [], counts = [] } = stages[stage.value] ?? {};
    fresh.update(counts.map((value, at) => ({ value, name: at < bounds.length ? short(bounds[at]) : "more" })));
    put(told, within(bounds, counts));
  }

  let before = "";
  every(2, async () => {
    let status;
    try {
      status = await ask("GET", "v1/status", { signal });
    } catch (error) {
      headline.textContent = "Overview";
      fails(lead, error);
      throw error;
    }
    const [state, words] = judge(status);
    headline.textContent = state;
    lead.textContent = words;
    if (before && before !== state) say(`${state} ${words}`, { shown: false });
    before = state;
    note(status);
    put(numbers, figures(status));
    put(health, checks(status));
    put(classes, byClass(status));
    rate.update([{ name: "events per second", css: "online", points: seen.map((each) => [each.at, each.rate]) }]);
    lag.update([{ name: "records", css: "online", points: seen.map((each) => [each.at, each.lag]) }]);
  }, signal);

  every(10, async () => {
    let performance;
    let drift;
    try {
      [performance, drift] = await Promise.all([ask("GET", "v1/performance", { signal }), ask("GET", "v1/drift", { signal })]);
    } catch (error) {
      if (error.status === 503) put(alarms, h("p", { class: "nothing" }, error.detail));
      else fails(alarms, error);
      throw error;
    }
    const series = curves(performance.hours);
    put(qualityLegend, legend(series));
    quality.update(series);
    stages = performance.freshness;
    const names = Object.keys(stages);
    const chosen = stage.value || (names.includes("total") ? "total" : names[0]);
    put(stage, names.map((name) => h("option", { value: name }, name.replaceAll("_", " "))));
    stage.value = chosen;
    showStage();
    put(alarms, drifts(drift.drifts));
  }, signal);
}

/** Return how everything is, in one word or two and in one sentence. */
function judge({ ready, table: rows, learner, now_ms: now }) {
  const age = span((now - rows.published_ms) / 1000);
  if (rows.epoch === null) return ["Not ready.", rows.error || "Nothing was read from the published table yet."];
  if (rows.error) return ["The table is away.", `Lists come from the last good copy, written ${age} ago: ${rows.error}`];
  if (!ready) return ["Stale.", `Nothing was published for ${age}. Does the learner run?`];
  if (!learner) return ["Served.", `The newest rows were written ${age} ago; the learner has told nothing of itself yet.`];
  if (silent(now, learner)) return ["The learner is silent.", `It told of itself last ${span((now - learner.told_ms) / 1000)} ago; lists are made from what it published.`];
  return ["All is well.", `The newest rows were written ${age} ago.`];
}

function silent(now, learner) {
  return now - learner.told_ms > SILENT_MS;
}

function note({ now_ms: now, learner }) {
  if (!learner || seen.at(-1)?.at === now) return;
  seen.push({ at: now, rate: learner.events_per_s, lag: learner.lag_records, classes: learner.classes });
  seen = seen.filter((each) => each.at > now - KEPT_MS);
}

function figures({ table: rows, learner }) {
  return facts([
    ["events a second", learner ? short(learner.events_per_s) : "–", learner ? `${count(learner.events)} so far` : null],
    ["records waiting", learner ? count(learner.lag_records) : "–"],
    ["newest event, UTC", learner ? moment(learner.watermark_ms).slice(5) : "–", learner ? moment(learner.watermark_ms).slice(0, 4) : null],
    ["hit ratio@10", learner ? percent(learner.hit_ratio_at_10) : "–"],
    ["NDCG@10", learner ? digits(learner.ndcg_at_10, 4) : "–"],
    ["items served", count(rows.items), `${count(rows.users_kept)} users in memory`],
  ]);
}

/** Return events by class: all, their share, and how many a second come now. */
function byClass({ now_ms: now, learner }) {
  if (!learner) return h("p", { class: "nothing" }, "The learner has told nothing yet.");
  const total = Object.values(learner.classes).reduce((sum, each) => sum + each, 0);
  const then = seen.find((each) => each.at > now - RATE_MS);
  const rows = KINDS.filter(({ name }) => name in learner.classes || !["none", "retraction"].includes(name));
  const of = ({ name }) => learner.classes[name] ?? 0;
  const perSecond = (kind) => (then && now > then.at ? (of(kind) - (then.classes[kind.name] ?? 0)) / ((now - then.at) / 1000) : NaN);
  return [
    divided(rows.map((kind) => ({ css: kind.name, value: of(kind), words: `${kind.words}: ${count(of(kind))}` }))),
    table("Events by feedback class", [
      { name: "class", of: ({ name }) => chip(name) },
      { name: "events", number: true, of: (kind) => count(of(kind)) },
      { name: "share", number: true, of: (kind) => percent(total ? of(kind) / total : NaN) },
      { name: "a second", number: true, of: (kind) => short(Math.max(perSecond(kind), 0)) },
    ], rows, { hidden: true, stacks: false }),
  ];
}

function checks({ version, up_s: up, now_ms: now, ready, table: rows, learner }) {
  const lines = [
    ["good", "Server", `version ${version}, up for ${span(up)}`],
    [rows.error ? "bad" : "good", "Published table", rows.error || `answered ${span((now - rows.heard_ms) / 1000)} ago`],
    [ready ? "good" : rows.epoch === null ? "bad" : "warm", "Rows", rows.epoch === null ? "none were read yet" : `model ${rows.epoch}, step ${count(rows.step)}, ${ready ? "fresh" : "stale"}`],
    [learner && !silent(now, learner) ? "good" : "warm", "Learner", learner ? `${learner.phase || "at work"}, told ${span((now - learner.told_ms) / 1000)} ago; model ${learner.model.slice(0, 12)}` : "has told nothing yet"],
  ];
  if (learner?.snapshot_age_s) lines.push(["good", "Snapshot", `${span(learner.snapshot_age_s)} old`]);
  const words = { good: "well", warm: "to watch", bad: "wrong" };
  return h("ul", { class: "alarms" }, lines.map(([state, name, text]) =>
    h("li", {}, h("span", {}, h("span", { class: `dot ${state}`, "aria-hidden": "true" }), name, h("span", { class: "unseen" }, `: ${words[state]}`)), h("span", { class: "aside-text" }, text))));
}

/** Return the curves of quality; the same model frozen goes beside it where it is told. */
function curves(hours) {
  const series = [
    { name: "NDCG@10, online", css: "online", of: "ndcg_at_10" },
    { name: "NDCG@10, frozen", css: "frozen", of: "frozen_ndcg_at_10" },
    { name: "hit ratio@10, online", css: "third", of: "hit_ratio_at_10" },
  ];
  return series
    .map(({ name, css, of }) => ({ name, css, points: hours.map((each) => [each.hour_ms, each[of] ?? null]) }))
    .filter(({ css, points }) => css !== "frozen" || points.some(([, value]) => value !== null));
}

function drifts(found) {
  if (!found.length) return h("p", { class: "nothing" }, "None so far.");
  return h("ul", { class: "alarms" }, found.slice(-8).reverse().map(({ signal, at_ms: at, event }) =>
    h("li", {}, h("span", {}, h("span", { class: "dot warm", "aria-hidden": "true" }), signal.replaceAll("_", " ")),
      h("span", { class: "aside-text" }, `after ${count(event)} events · `, when(at)))));
}

/** Say within which time half, and nearly all, of the counts lie. */
function within(bounds, counts) {
  const total = counts.reduce((sum, each) => sum + each, 0);
  if (!total) return "";
  const bound = (share) => {
    let sum = 0;
    const at = counts.findIndex((each) => (sum += each) >= share * total);
    return at < bounds.length ? `within ${span(bounds[at])}` : `beyond ${span(bounds.at(-1))}`;
  };
  return `Half ${bound(0.5)}, 99 of 100 ${bound(0.99)}, of ${count(total)} records.`;
}
