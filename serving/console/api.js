// Asks the API beside which the console is served. The key is kept in this tab's session only.

const BASE = new URL("../", import.meta.url);
const KEY = "tidegraph-key";

/** An answer that is an error, as RFC 9457 tells it, or no answer at all (status 0). */
export class Problem extends Error {
  constructor(status, title, detail, { kind = "", errors = [] } = {}) {
    super(detail || title);
    Object.assign(this, { status, title, detail, kind, errors });
  }
}

/** Return the key that is in use, or an empty text. */
export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** Use a key from now on; an empty text forgets it. */
export function useKey(text) {
  if (text) sessionStorage.setItem(KEY, text);
  else sessionStorage.removeItem(KEY);
}

/** Return a path of the API with each part of it encoded: path`v1/items/${item}/similar`. */
export function path(texts, ...parts) {
  return String.raw({ raw: texts }, ...parts.map((each) => encodeURIComponent(each)));
}

/** Ask, and return the JSON of the answer. Raises Problem. */
export async function ask(method, where, { query = {}, body, signal } = {}) {
  const url = new URL(where, BASE);
  for (const [name, value] of Object.entries(query)) {
    for (const each of [value].flat()) if (each !== "" && each !== undefined && each !== null) url.searchParams.append(name, each);
  }
  const headers = { Accept: "application/json" };
  if (key()) {
    if (/^[\w-]+\.[\w-]+\.[\w-]+$/.test(key())) headers.Authorization = `Bearer ${key()}`;
    else headers["X-API-Key"] = key();
  }
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(url, {
      method, headers, signal, credentials: "omit", cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, "No answer", "the server does not answer; is it running?");
  }
  const text = await answer.text();
  let told = null;
  try {
    told = text ? JSON.parse(text) : null;
  } catch {
    told = null;
  }
  if (answer.ok) return told;
  throw new Problem(answer.status, told?.title ?? answer.statusText, told?.detail ?? "", {
    kind: (told?.type ?? "").replace("/problems/", ""), errors: told?.errors ?? [],
  });
}

/** Do a task now and again `seconds` after it ended, until the signal; not while nobody looks.
 *  The wait doubles while it fails, up to half a minute. */
export function every(seconds, task, signal) {
  let failures = 0;
  let timer = 0;
  const next = async () => {
    if (signal.aborted) return;
    if (!document.hidden) {
      try {
        await task();
        failures = 0;
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof Problem)) throw error;
        failures += 1;
      }
    }
    if (!signal.aborted) timer = setTimeout(next, 1000 * Math.min(seconds * 2 ** failures, 30));
  };
  signal.addEventListener("abort", () => clearTimeout(timer));
  next();
}

/** Wait so many milliseconds, or less if the signal comes. */
export function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); });
  });
}
