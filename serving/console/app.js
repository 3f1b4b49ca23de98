// The frame of the console: which page the address names, the key, and questions before an action.

import { Problem, ask, every, key, useKey } from "./api.js";
import { h, moment, put, say, span } from "./dom.js";
import * as experiments from "./experiments.js";
import * as letters from "./letters.js";
import * as models from "./models.js";
import * as overview from "./overview.js";
import * as users from "./users.js";

const PAGES = { "": overview, users, letters, models, experiments };
const main = document.getElementById("main");
let leaving = new AbortController();

/** Show the page that the address names. */
function show({ focus = true } = {}) {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const page = PAGES[name];
  leaving.abort();
  leaving = new AbortController();
  const shown = name === "" ? "overview" : name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!page) {
    main.replaceChildren(h("h1", { tabindex: "-1" }, "There is no such page"), h("p", {}, "The pages are named above."));
    return;
  }
  document.title = `${page.title} – tidegraph`;
  main.replaceChildren();
  const parts = rest.map(decoded);
  page.show(main, { parts, signal: leaving.signal, fails, confirm });
  if (focus) main.querySelector("h1")?.focus({ preventScroll: true });
  scrollTo(0, 0);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a percent sign that encodes nothing
  }
}

/** Show what went wrong in place of what an element holds; ask for a key where one is wanted. */
function fails(element, error) {
  if (error?.name === "AbortError") return;
  if (!(error instanceof Problem)) throw error;
  const hint = { 401: " Enter a key above.", 403: " The key in use does not allow it." }[error.status] ?? "";
  put(element, h("div", { class: "problem", role: "alert" },
    h("strong", {}, error.title || `Error ${error.status}`), h("span", {}, ` ${error.detail}${hint}`),
    error.errors.length ? h("ul", {}, error.errors.map((each) => h("li", {}, Object.values(each).join(": ")))) : null));
  if (error.status === 401) askKey("This server wants a key.");
}

/** Ask before something that others notice. Resolves to whether it shall be done. */
function confirm(title, text, yes) {
  const dialog = document.getElementById("confirm-dialog");
  document.getElementById("confirm-title").textContent = title;
  document.getElementById("confirm-text").textContent = text;
  document.getElementById("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

let asked = false;

function askKey(why, { again = false } = {}) {
  const dialog = document.getElementById("key-dialog");
  if (dialog.open || (asked && !again)) return;
  asked = true;
  document.getElementById("key-why").textContent = why;
  document.getElementById("key-field").value = key();
  dialog.showModal();
}

function tellKey() {
  document.getElementById("key-button").textContent = key() ? "API key: set" : "API key";
}

document.getElementById("key-button").addEventListener("click", () => {
  askKey(key() ? "A key is in use." : "No key is in use.", { again: true });
});
document.getElementById("key-dialog").addEventListener("close", (event) => {
  const chosen = event.target.returnValue;
  event.target.returnValue = ""; // Escape leaves what was there
  if (chosen !== "use" && chosen !== "forget") return;
  useKey(chosen === "use" ? document.getElementById("key-field").value.trim() : "");
  document.getElementById("key-field").value = "";
  tellKey();
  say(key() ? "The key is used from now on." : "No key is used any more.");
  show();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
window.addEventListener("hashchange", () => show());

// The foot tells on every page whether the server lives.
let alive = null;
const pulse = document.getElementById("pulse");
every(5, async () => {
  try {
    await ask("GET", "healthz");
    if (alive === false) say("The server answers again.");
    alive = true;
    put(pulse, h("span", { class: "dot good" }), `The server answers; last asked ${moment(Date.now(), { seconds: true })} UTC`);
  } catch (error) {
    if (alive !== false) say("The server does not answer.");
    alive = false;
    put(pulse, h("span", { class: "dot bad" }), `${error.message || error.title}; asked again within ${span(30)}`);
  }
}, new AbortController().signal);

tellKey();
show({ focus: false });
