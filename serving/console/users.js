// One user: what they did, what they are recommended and why, and how feedback changes it.

import { Problem, ask, path, pause } from "./api.js";
import { divided, legend } from "./charts.js";
import { chip, count, digits, facts, h, part, put, say, span, when } from "./dom.js";

export const title = "Users";

const DOES = [
  { word: "like", name: "Like", kind: "explicit_positive" },
  { word: "click", name: "Click", kind: "implicit_positive" },
  { word: "skip", name: "Skip", kind: "implicit_negative" },
  { word: "dislike", name: "Dislike", kind: "explicit_negative" },
];

const MADE_FROM = {
  vector: "the user’s own fresh vector",
  events: "the vectors of the latest events, because the user has none yet",
  attributes: "users who share attributes, because nothing else is known of this one",
  popularity: "what suits anybody, because nothing is known of this user",
  precomputed: "the last popular list, because the table does not answer",
};

const PARTS = [
  { name: "taste", of: "taste", css: "p0" },
  { name: "popularity", of: "popularity", css: "p1" },
  { name: "met together", of: "covisitation", css: "p2" },
];

const PATIENCE_S = 30;

/** Show the page: `parts` may name the user. */
export function show(main, { parts: [user = ""], signal, fails }) {
  const field = h("input", { id: "user-field", name: "user", value: user, required: true, maxlength: 512, autocomplete: "off", autocapitalize: "off", spellcheck: "false" });
  const rest = h("div");
  main.append(
    h("h1", { tabindex: "-1" }, user ? ["User ", h("span", { class: "id" }, user)] : "Users"),
    h("form", { class: "row", role: "search", onsubmit: (event) => {
      event.preventDefault();
      location.hash = `#/users/${encodeURIComponent(field.value.trim())}`;
    } },
    h("div", { class: "wider" }, h("label", { for: "user-field" }, "User id"), field),
    h("button", { class: "main" }, "Look up")),
    rest,
  );
  if (user) new Desk(rest, user, signal, fails).open();
  else suggest(rest, signal);
}

/** Name some users to begin with. */
async function suggest(rest, signal) {
  put(rest, h("p", { class: "lead" }, "Look a user up to see what they did, what they would be recommended now, and why. A user whom nobody knows gets a list, too."));
  try {
    const { rows } = await ask("GET", "v1/users", { query: { limit: 12 }, signal });
    if (rows.length) rest.append(h("p", {}, "Some users with attributes: ", rows.flatMap((row, at) => [at ? ", " : "", h("a", { class: "id", href: `#/users/${encodeURIComponent(row.id)}` }, row.id)])));
  } catch (error) {
    if (!(error instanceof Problem) && error.name !== "AbortError") throw error;
  }
}

class Desk {
  constructor(rest, user, signal, fails) {
    Object.assign(this, { rest, user, signal, fails, n: 10, items: [], history: [], busy: false });
    this.about = h("div");
    this.told = h("p", { class: "told", tabindex: "-1", hidden: true });
    this.list = h("ol", { class: "ranked" });
    this.past = h("ol", { class: "history" });
    this.wrong = h("div");
    this.listWrong = h("div");
  }

  async open() {
    const size = h("select", { id: "n-field", onchange: () => { this.n = Number(size.value); this.load(); } },
      [5, 10, 20, 50].map((n) => h("option", { value: n, selected: n === this.n }, n)));
    this.rest.append(
      this.about,
      h("div", { class: "grid uneven" },
        part("Recommended now", "Say what the user did with an item, and watch the list learn it.",
          h("form", { class: "row", onsubmit: (event) => { event.preventDefault(); this.load(); } },
            h("div", { class: "narrow" }, h("label", { for: "n-field" }, "Items"), size),
            h("button", {}, "Ask again")),
          legend(PARTS), this.told, this.listWrong, this.list),
        part("History", "What the learner holds of this user, newest first.", this.wrong, this.past)),
    );
    await this.load();
  }

  async load() {
    this.told.hidden = true;
    await Promise.all([
      this.recommended().then((answer) => this.showList(answer), (error) => { this.list.replaceChildren(); this.fails(this.listWrong, error); }),
      this.met().then((events) => this.showHistory(events), (error) => this.missing(error)),
    ]);
  }

  recommended() {
    return ask("GET", path`v1/recommendations/${this.user}`, { query: { n: this.n, preview: true }, signal: this.signal });
  }

  async met() {
    return (await ask("GET", path`v1/history/${this.user}`, { signal: this.signal })).events;
  }

  missing(error) {
    if (error.kind !== "unknown-user") return this.fails(this.wrong, error);
    put(this.past, h("li", { class: "nothing" }, "Nothing is known of this user."));
    return null;
  }

  showHistory(events, fresh = null) {
    this.history = events;
    this.wrong.replaceChildren();
    if (!events.length) return put(this.past, h("li", { class: "nothing" }, "Nothing yet."));
    return put(this.past, events.map((event, at) => h("li", { class: at === fresh ? "fresh" : null },
      h("span", { class: "id" }, event.item), chip(event.kind), when(event.ts_ms))));
  }

  /** Show a list, and how it differs from the one before if that is told. */
  showList(answer, { before = null } = {}) {
    const boxes = before && places(this.list);
    this.items = answer.items;
    this.listWrong.replaceChildren();
    put(this.about, facts([
      ["answered by", answer.answered_by, answer.fallback ? "a fallback" : "no fallback"],
      ["model", String(answer.model), `step ${count(answer.step)}`],
      ["age of the vector", span(answer.vector_age_ms === null ? NaN : answer.vector_age_ms / 1000)],
      ["table", answer.stale ? "stale" : "fresh", answer.stale ? "more may have been learned" : null],
      ...(answer.experiments ?? []).map(({ experiment, arm }) => [`experiment ${experiment}`, arm ?? "mixed", "not counted: only you look"]),
    ]), h("p", { class: "note" }, `Made from ${MADE_FROM[answer.answered_by] ?? answer.answered_by}.`));
    if (!answer.items.length) this.list.replaceChildren(h("li", { class: "nothing" }, "No item may be recommended: the user has met all of them."));
    else this.list.replaceChildren(...answer.items.map((item, at) => this.entry(item, at, before)));
    if (boxes) glide(this.list, boxes);
  }

  entry(item, at, before) {
    const was = before ? before.findIndex((each) => each.item === item.item) : at;
    const moved = was < 0 ? "new" : was > at ? `▲ ${was - at}` : was < at ? `▼ ${at - was}` : "";
    const words = was < 0 ? "new in the list" : was > at ? `up ${was - at}` : was < at ? `down ${at - was}` : "";
    const own = item.parts ? PARTS.map(({ name, of, css }) => ({ name, css, value: item.parts[of], words: `${name.replaceAll(" ", "\u00a0")}\u00a0${digits(item.parts[of], 2)}` })) : [];
    return h("li", { class: was < 0 ? "fresh" : moved ? "moved" : null, "data-item": item.item },
      h("span", { class: "rank" }, at + 1),
      h("div", { class: "title" },
        h("span", { class: "id" }, item.item),
        h("span", { class: "score" }, h("span", { class: "unseen" }, "score "), digits(item.score, 3)),
        moved ? h("span", { class: "move" }, h("span", { "aria-hidden": "true" }, moved), h("span", { class: "unseen" }, words)) : null),
      h("div", { class: "why" }, h("span", { class: "reason" }, item.reason), own.length ? [divided(own), own.map((each) => each.words).join(" · ")] : null),
      h("div", { class: "does", role: "group", "aria-label": `Feedback on ${item.item}` }, DOES.map(({ word, name }) =>
        h("button", { type: "button", "data-word": word, onclick: () => this.send(item.item, word) }, name))));
  }

  /** Send feedback, and wait until the learner has learned it. */
  async send(item, word) {
    if (this.busy) return;
    this.busy = true;
    this.list.setAttribute("aria-busy", "true");
    const { kind } = DOES.find((each) => each.word === word);
    const before = this.items;
    const known = newest(this.history, item);
    const started = performance.now();
    const passed = () => (performance.now() - started) / 1000;
    try {
      this.tell(`Sending: ${word} on ${item} …`);
      const body = { user_id: this.user, item_id: item, type: word };
      const { entries: [outcome] } = await ask("POST", "v1/feedback", { body, signal: this.signal });
      if (outcome.outcome !== "stored") throw new Problem(400, "Not taken", outcome.reason);
      this.tell(`The log has it after ${span(passed())}; waiting for the learner …`);
      while (passed() < PATIENCE_S && !this.signal.aborted) {
        const events = await this.met().catch((error) => {
          if (error.kind === "unknown-user") return [];
          throw error;
        });
        const learned = newest(events, item);
        if (learned && (!known || learned.ts_ms > known.ts_ms || learned.kind !== known.kind)) {
          const seconds = passed();
          const answer = await this.recommended();
          this.showHistory(events, events.indexOf(learned));
          this.showList(answer, { before });
          this.changed(seconds, learned.kind, before, item);
          this.refocus(item, word);
          return;
        }
        await pause(200, this.signal);
      }
      if (!this.signal.aborted) this.tell(`The log has it as ${kind.replace("_", " ")}, but after ${PATIENCE_S} s the learner has not learned it. Is it running? Ask again later.`);
    } catch (error) {
      this.told.hidden = true;
      this.fails(this.listWrong, error);
    } finally {
      this.busy = false;
      this.list.removeAttribute("aria-busy");
    }
  }

  changed(seconds, kind, before, item) {
    const now = new Map(this.items.map((each, at) => [each.item, at]));
    const moved = before.filter((each, at) => now.has(each.item) && now.get(each.item) !== at).length;
    const fresh = this.items.filter((each) => !before.some((other) => other.item === each.item)).length;
    const told = [
      now.has(item) ? null : `${item} left the list`,
      moved ? `${moved} moved` : null,
      fresh ? `${fresh} new` : null,
    ].filter(Boolean);
    this.tell(`Learned as ${kind.replace("_", " ")} after ${span(seconds)}: ${told.length ? told.join(", ") : "the order stays, the scores changed"}.`);
  }

  tell(text) {
    this.told.hidden = false;
    this.told.textContent = text;
    say(text, { shown: false });
  }

  /** The button that was pressed is gone or was made anew: go to its heir, or to what was told. */
  refocus(item, word) {
    const heir = [...this.list.children].find((each) => each.dataset.item === item)?.querySelector(`[data-word="${word}"]`);
    (heir ?? this.told).focus({ preventScroll: true });
  }
}

/** Return the newest event with an item. */
function newest(events, item) {
  return events.find((each) => each.item === item);
}

function places(list) {
  return new Map([...list.children].map((each) => [each.dataset.item, each.getBoundingClientRect().top]));
}

/** Let the entries glide from where they were, unless somebody does not want motion. */
function glide(list, boxes) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const each of list.children) {
    const was = boxes.get(each.dataset.item);
    const by = was === undefined ? 0 : was - each.getBoundingClientRect().top;
    each.animate(was === undefined ? [{ opacity: 0 }, { opacity: 1 }] : [{ transform: `translateY(${by}px)` }, { transform: "none" }], { duration: 450, easing: "cubic-bezier(.2, .7, .2, 1)" });
  }
}
