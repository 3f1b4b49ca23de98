// Which model is given: promote and roll back, each after a question.

import { ask, every } from "./api.js";
import { count, h, moment, part, put, say, table, when } from "./dom.js";

export const title = "Models";

/** Show the page. */
export function show(main, { signal, fails, confirm }) {
  const lead = h("p", { class: "lead" }, "Asking …");
  const wrong = h("div");
  const all = h("div");
  const follow = h("button", { type: "button", class: "main", hidden: true, onclick: () => give(null) }, "Follow the learner again");
  let known = null;
  main.append(
    h("h1", { tabindex: "-1" }, "Models"), lead, wrong,
    part("Epochs", "One for each time that a learner began anew. Every answer is made from one of them alone.", all, h("p", { class: "buttons" }, follow)),
  );

  function tell(models) {
    known = models;
    const { given, follows, fingerprint } = models;
    lead.textContent = given === null ? "No model was published yet." : follows
      ? `Answers follow the learner: model ${given}.`
      : `Answers are pinned to model ${given}; the learner goes on beside it.`;
    follow.hidden = follows;
    const columns = [
      { name: "model", of: (row) => String(row.epoch) },
      { name: "state", of: (row) => (row.in_view ? `given${row.pinned ? ", pinned" : ""}` : "kept") },
      { name: "step", number: true, of: (row) => count(row.step) },
      { name: "learned up to, UTC", of: (row) => when(row.at_ms) },
      { name: "written, UTC", of: (row) => when(row.published_ms) },
      { name: "", of: (row) => (row.in_view ? "" : h("button", { type: "button", onclick: () => give(row.epoch) }, row.epoch < given ? "Roll back to it" : "Promote it")) },
    ];
    if (all.contains(document.activeElement)) return; // a button that is about to be pressed stays
    put(all,
      models.models.length
        ? table("Models that can be given, the newest first", columns, models.models, { hidden: true, now: (row) => row.in_view })
        : h("p", { class: "nothing" }, "None yet."),
      fingerprint ? h("p", { class: "note" }, "The learner’s model: ", h("code", {}, fingerprint)) : null);
  }

  async function give(epoch) {
    const back = epoch !== null && epoch < known.given;
    const newest = known.models[0];
    const [name, text, yes] = epoch === null
      ? ["Follow the learner again?", `Answers will be made from the newest model (${newest.epoch}, learned up to ${moment(newest.at_ms)} UTC) and from each one after it.`, "Follow the learner"]
      : [back ? "Roll back?" : "Promote?", `All answers will be made from model ${epoch}, from now on and until somebody follows the learner again.`, back ? "Roll back" : "Promote"];
    if (!(await confirm(name, text, yes))) return;
    try {
      wrong.replaceChildren();
      const models = await ask("POST", `v1/model/${back ? "rollback" : "promote"}`, { body: { epoch }, signal });
      document.activeElement?.blur();
      tell(models);
      say(models.follows ? "Answers follow the learner again." : `Answers are made from model ${models.given}.`);
      main.querySelector("h1").focus({ preventScroll: true });
    } catch (error) {
      fails(wrong, error);
    }
  }

  every(3, async () => {
    try {
      tell(await ask("GET", "v1/model", { signal }));
    } catch (error) {
      fails(lead, error);
      throw error;
    }
  }, signal);
}
