// Experiments: which there are, how they stand, starting one and stopping one.

import { ask, path } from "./api.js";
import { intervals } from "./charts.js";
import { count, digits, h, moment, part, percent, put, say, span, table, when } from "./dom.js";

export const title = "Experiments";

const VERDICTS = {
  open: "open: nothing can be said yet",
  better: "better than the control",
  worse: "worse than the control",
};

/** Show the page: `parts` may name the experiment of which results are wanted. */
export function show(main, { parts: [name = ""], signal, fails, confirm }) {
  if (name) return one(main, name, signal, fails, confirm);
  const lead = h("p", { class: "lead" }, "Asking …");
  const list = h("div");
  const form = h("div");
  main.append(
    h("h1", { tabindex: "-1" }, "Experiments"), lead,
    h("div", { class: "stack" }, part("All experiments", null, list), part("Start one", "Half of those who take part get the control: what there is today. The same user gets the same arm, always. It cannot be changed once it runs.", form)),
  );
  ask("GET", "v1/experiments", { signal }).then(({ experiments: entries }) => {
    const running = entries.filter((each) => !each.stopped_ms).length;
    lead.textContent = running ? `${count(running)} running, ${count(entries.length - running)} ended.` : entries.length ? "None is running." : "There was none yet.";
    put(list, entries.length ? overview(entries) : h("p", { class: "nothing" }, "Nothing to see here."));
  }, (error) => {
    fails(lead, error);
    if (error.status === 404) for (const each of main.querySelectorAll(".part")) each.hidden = true;
  });
  ask("GET", "v1/model", { signal }).catch(() => ({ models: [] })).then(({ models }) => form.append(starting(models, signal, fails)));
  return null;
}

function overview(entries) {
  return table("Experiments, the newest first", [
    { name: "name", of: ({ experiment }) => h("a", { href: `#/experiments/${experiment.name}` }, experiment.name) },
    { name: "state", of: (entry) => (entry.stopped_ms ? "ended" : "running") },
    { name: "design", of: ({ experiment }) => (experiment.design === "interleave" ? "lists mixed" : "split") },
    { name: "arms", of: ({ experiment }) => experiment.arms.map((arm) => `${arm.name}${arm.shadow ? " (shadow)" : ""}`).join(", ") },
    { name: "started, UTC", of: (entry) => when(entry.started_ms) },
    { name: "ended, UTC", of: (entry) => when(entry.stopped_ms) },
  ], [...entries].reverse(), { hidden: true });
}

function starting(models, signal, fails) {
  const wrong = h("div");
  const field = (id, label, node) => h("div", {}, h("label", { for: id }, label), node);
  const name = h("input", { id: "x-name", required: true, pattern: "[a-z0-9][a-z0-9_\\-]{0,63}", title: "Lower-case letters, digits, _ and -", autocomplete: "off" });
  const arm = h("input", { id: "x-arm", required: true, value: "new", pattern: "[a-z0-9][a-z0-9_\\-]{0,63}", title: "Lower-case letters, digits, _ and -", autocomplete: "off" });
  const design = h("select", { id: "x-design" }, h("option", { value: "split" }, "split: each user gets one arm"), h("option", { value: "interleave" }, "interleave: lists of both are mixed"), h("option", { value: "shadow" }, "shadow: answered beside, shown to nobody"));
  const model = h("select", { id: "x-model" }, h("option", { value: "" }, "the one in view"), models.map((each) => h("option", { value: each.epoch }, each.epoch)));
  const learner = h("input", { id: "x-learner", pattern: "[A-Za-z0-9_.\\-]{1,64}", title: "The namespace under which it publishes", autocomplete: "off", autocapitalize: "off", spellcheck: "false" });
  const settings = h("input", { id: "x-settings", placeholder: '{"diversity": 0.3}', autocomplete: "off", spellcheck: "false" });
  const share = h("input", { id: "x-share", type: "number", min: "0.01", max: "100", step: "any", value: "100", required: true });
  return h("form", { onsubmit: async (event) => {
    event.preventDefault();
    wrong.replaceChildren();
    const treated = { name: arm.value };
    if (model.value) treated.model = Number(model.value);
    if (learner.value) treated.learner = learner.value;
    if (design.value === "shadow") treated.shadow = true;
    try {
      if (settings.value.trim()) treated.settings = JSON.parse(settings.value);
    } catch {
      put(wrong, h("div", { class: "problem", role: "alert" }, "The settings are not JSON, as in {\"diversity\": 0.3}."));
      settings.focus();
      return;
    }
    try {
      await ask("POST", "v1/experiments", { signal, body: { name: name.value, arms: [{ name: "control" }, treated], design: design.value === "interleave" ? "interleave" : "split", share: Number(share.value) / 100 } });
      say(`The experiment ${name.value} is running.`);
      location.hash = `#/experiments/${name.value}`;
    } catch (error) {
      fails(wrong, error);
    }
  } },
  h("div", { class: "fields" },
    field("x-name", "Name, used once and never again", name), field("x-design", "Design", design), field("x-share", "Share of users, %", share),
    field("x-arm", "Name of the new arm", arm), field("x-model", "Its model", model), field("x-learner", "Or another learner’s namespace", learner), field("x-settings", "Its settings, as JSON", settings)),
  wrong, h("p", { class: "buttons" }, h("button", { class: "main" }, "Start")));
}

async function one(main, name, signal, fails, confirm) {
  const lead = h("p", { class: "lead" }, "Asking …");
  const rest = h("div", { class: "stack" });
  const wrong = h("div");
  const stop = h("button", { type: "button", hidden: true, onclick: async () => {
    if (!(await confirm(`Stop ${name}?`, "For good: everybody gets what there is today, and the name cannot be used again. Its results stay.", "Stop it"))) return;
    try {
      await ask("POST", path`v1/experiments/${name}/stop`, { signal });
      say(`The experiment ${name} has ended.`);
      load();
    } catch (error) {
      fails(wrong, error);
    }
  } }, "Stop the experiment …");
  main.append(h("p", {}, h("a", { href: "#/experiments" }, "All experiments")), h("h1", { tabindex: "-1" }, "Experiment ", h("span", { class: "id" }, name)), lead, wrong, h("p", { class: "buttons" }, stop), rest);

  async function load() {
    try {
      const found = await ask("GET", path`v1/experiments/${name}/results`, { signal });
      tell(found);
    } catch (error) {
      fails(lead, error);
    }
  }

  function tell({ entry, as_of_ms: asOf, open_units: open, sample_ratio_p: ratio, arms, effects, shadows, gaps }) {
    const { experiment } = entry;
    stop.hidden = Boolean(entry.stopped_ms);
    const units = `${experiment.unit}s`;
    lead.replaceChildren(`${entry.stopped_ms ? "Ended" : "Running"}; started `, when(entry.started_ms), " UTC", entry.started_by ? ` by ${entry.started_by}` : "", `. ${percent(experiment.share, 0)} of ${units} take part, each counts for ${span(experiment.window_s)} after the first list.`);
    const chart = intervals("Difference to the control in the outcome of a unit, with its always-valid interval", { write: (value) => digits(value, 3) });
    put(rest,
      ratio < 0.001 ? h("div", { class: "problem", role: "alert" }, h("strong", {}, "The arms do not have the units that they should. "), "Trust nothing else here.") : null,
      gaps ? h("div", { class: "problem" }, `Feedback was gone from the log before it was read, ${count(gaps)} times.`) : null,
      effects.length ? part("Effect", "The interval may be looked at at any time: it holds however often.", effects.some(({ difference }) => difference.low !== null) ? chart.node : null,
        table("Effects against the control", [
          { name: "arm", of: (each) => each.arm },
          { name: "verdict", of: (each) => VERDICTS[each.verdict] ?? each.verdict },
          { name: "difference", number: true, of: ({ difference }) => digits(difference.value) },
          { name: "from", number: true, of: ({ difference }) => digits(difference.low) },
          { name: "to", number: true, of: ({ difference }) => digits(difference.high) },
          { name: "relative", number: true, of: (each) => percent(each.relative) },
          { name: "p", number: true, of: (each) => digits(each.p) },
        ], effects, { hidden: true })) : null,
      part("Arms", asOf ? `Feedback until ${moment(asOf)} UTC is in; ${count(open)} ${units} still have time.` : "No feedback was taken in yet.", table("Arms", [
        { name: "arm", of: (each) => each.arm },
        { name: "share", number: true, of: (each) => percent(each.share, 0) },
        { name: "met it", number: true, of: (each) => count(each.exposed) },
        { name: "done", number: true, of: (each) => count(each.units) },
        { name: "mean outcome", number: true, of: ({ mean }) => digits(mean.value) },
      ], arms, { hidden: true })),
      shadows.length ? part("Shadows", "How much of what was shown they would have shown as well.", table("Shadow arms", [
        { name: "arm", of: (each) => each.arm },
        { name: "requests", number: true, of: (each) => count(each.requests) },
        { name: "in common", number: true, of: (each) => percent(each.common) },
      ], shadows, { hidden: true })) : null);
    chart.update(effects.map(({ arm, difference, verdict }) => ({ name: arm, value: difference.value ?? NaN, low: difference.low ?? NaN, high: difference.high ?? NaN, css: verdict === "worse" ? "frozen" : "online" })));
  }

  await load();
}
