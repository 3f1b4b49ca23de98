// Dead letters: what died of what, and sending it once more, after a look at what that would do.

import { ask } from "./api.js";
import { count, h, part, put, say, table, when } from "./dom.js";

export const title = "Dead letters";

/** Show the page: `parts` may name reason and place of a fault. */
export function show(main, { parts: [reason = "", place = ""], signal, fails, confirm }) {
  const lead = h("p", { class: "lead", tabindex: "-1" }, "Reading the letters …");
  const wrong = h("div");
  const groups = h("div");
  const list = h("div");
  const plan = h("div");
  const chosen = { reason, place };
  const about = reason ? `“${reason}${place ? ` at ${place}` : ""}”` : "all faults";
  const fix = h("textarea", { id: "fix-field", rows: 4, spellcheck: "false", placeholder: '{"scale": {"ts_ms": 1000}}' });
  const fresh = h("select", { id: "redriven-field", onchange: () => load() }, [["", "all"], ["false", "not yet sent again"], ["true", "sent again"]].map(([value, text]) => h("option", { value }, text)));

  main.append(
    h("h1", { tabindex: "-1" }, "Dead letters"), lead, wrong,
    h("div", { class: "stack" },
      part("By fault", "Records that could never be processed. Choose a fault to see its letters alone.", groups),
      part("Send once more", `Of ${about}. A letter is sent once, however often and by whomever; one that would die again is not sent.`,
        h("form", { onsubmit: (event) => { event.preventDefault(); redrive(); } },
          h("label", { for: "fix-field" }, "Correction of each record before, as JSON; leave it empty to send them as they are"), fix,
          h("p", { class: "note" }, "rename: field and new name · scale: field and factor · cast: field and “text” or “number” · set: field and value. Fields as in ts_ms, signals.click or signals.*"),
          h("p", { class: "buttons" }, h("button", { class: "main" }, "See what would be sent"))),
        plan),
      part("Letters", reason ? `Of ${about}, the newest first.` : "The newest first.",
        h("form", { class: "row" }, h("div", {}, h("label", { for: "redriven-field" }, "Show"), fresh)), list)),
  );

  async function load() {
    try {
      const found = await ask("GET", "v1/dead-letters", { query: { ...chosen, redriven: fresh.value, limit: 50 }, signal });
      wrong.replaceChildren();
      const all = found.groups.reduce((sum, each) => sum + each.letters, 0);
      const open = found.groups.reduce((sum, each) => sum + each.letters - each.redriven, 0);
      lead.textContent = all === 0 ? "No record has died." : `${count(all)} records died; ${open ? `${count(open)} of them were not sent again yet` : "all of them were sent again"}.`;
      put(groups, all === 0 ? h("p", { class: "nothing" }, "Nothing to see here.") : byFault(found.groups));
      put(list, found.letters.length ? found.letters.map(letter) : h("p", { class: "nothing" }, "No letter like that."));
      if (found.total > found.letters.length) list.append(h("p", { class: "note" }, `${count(found.total - found.letters.length)} older ones are not shown; “tidegraph dead-letters list” shows all.`));
    } catch (error) {
      if (error.kind !== "no-broker") return fails(wrong, error);
      lead.textContent = error.detail;
      for (const each of main.querySelectorAll(".part")) each.hidden = true;
    }
    return null;
  }

  function byFault(found) {
    const link = (group) => h("a", { href: `#/letters/${encodeURIComponent(group.reason)}/${encodeURIComponent(group.place)}`, "aria-current": group.reason === reason && group.place === place ? "true" : null }, group.reason, group.place ? [" at ", h("code", {}, group.place)] : null);
    return [
      table("Dead letters by fault", [
        { name: "fault", of: link },
        { name: "letters", number: true, of: (group) => count(group.letters) },
        { name: "sent again", number: true, of: (group) => count(group.redriven) },
        { name: "newest, UTC", of: (group) => when(group.newest_ms) },
      ], found, { hidden: true }),
      reason ? h("p", {}, h("a", { href: "#/letters" }, "Show all faults")) : null,
    ];
  }

  async function redrive() {
    plan.replaceChildren();
    const wanted = { ...chosen };
    if (fix.value.trim()) {
      try {
        wanted.fix = JSON.parse(fix.value);
      } catch (error) {
        put(plan, h("div", { class: "problem", role: "alert" }, h("strong", {}, "The correction is not JSON."), ` ${error.message}`));
        fix.focus();
        return;
      }
    }
    try {
      const would = await ask("POST", "v1/dead-letters:redrive", { body: { ...wanted, dry_run: true }, signal });
      const send = h("button", { type: "button", class: "main", disabled: would.ready === 0, onclick: () => really(wanted, would) }, `Send ${count(would.ready)} once more …`);
      plan.replaceChildren(h("div", { class: "told" }, h("p", {}, sentence(would))), hopeless(would), h("p", { class: "buttons" }, send));
      say(sentence(would), { shown: false });
      send.focus();
    } catch (error) {
      fails(plan, error);
    }
  }

  async function really(wanted, would) {
    if (!(await confirm(`Send ${count(would.ready)} records?`, `They go back to the log of interactions. ${sentence(would)}`, "Send them"))) return;
    try {
      const did = await ask("POST", "v1/dead-letters:redrive", { body: { ...wanted, dry_run: false }, signal });
      plan.replaceChildren(h("div", { class: "told", tabindex: "-1" }, `${count(did.sent)} were sent once more.`), hopeless(did));
      say(`${count(did.sent)} were sent once more.`);
      plan.firstChild.focus();
      await load();
    } catch (error) {
      fails(plan, error);
    }
  }

  load();
}

function sentence(would) {
  return [
    `${count(would.ready)} can be sent`,
    would.late ? `, ${count(would.late)} of them too late for the graph` : "",
    `; ${count(would.redriven_before)} were sent before; ${count(would.would_die_again)} would die again.`,
  ].join("");
}

function hopeless(would) {
  if (!would.hopeless.length) return "";
  return h("details", {}, h("summary", {}, "Why they would die again"), table("Letters that would die again", [
    { name: "letter", of: (each) => h("code", {}, each.letter) },
    { name: "at", of: (each) => h("code", {}, each.place || "–") },
    { name: "because", of: (each) => each.message },
  ], would.hopeless, { hidden: true }));
}

function letter(each) {
  return h("details", { class: "letter" },
    h("summary", {}, h("code", {}, each.letter), ` ${each.message}`),
    h("p", { class: "note" }, "Died ", when(each.time_ms), ` UTC · from ${each.origin}`, each.user_id === null ? "" : [" · user ", h("a", { class: "id", href: `#/users/${encodeURIComponent(each.user_id)}` }, each.user_id)], each.redriven ? " · sent again" : ""),
    h("pre", { tabindex: "0", "aria-label": "The record" }, each.original + (each.cut ? " …" : "")));
}
