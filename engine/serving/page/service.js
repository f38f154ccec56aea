// Calls of the API. What goes wrong is a ServiceError whose message can be shown.

const HOME = new URL("..", import.meta.url);      // above page/: the service may have a route prefix
const KEY = "lifelora.key";
const MEANINGS = {
  401: "The service asks for a key",
  403: "The key is not good for this",
  404: "There is no such thing",
  408: "The answer took too long",
  413: "The request is too large",
  422: "The service cannot use this",
  429: "Too many requests are waiting",
  503: "The service cannot answer now",
};

export class ServiceError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }

  get wantsKey() {
    return this.status === 401 || this.status === 403;
  }

  // Whether nothing was done; else nobody knows.
  get isRefusal() {
    return this.status >= 400 && this.status < 500 && this.status !== 408;
  }
}

let key = inStorage((storage) => storage.getItem(KEY)) ?? "";

// Use what the browser keeps for this tab; null where it forbids that.
function inStorage(use) {
  try {
    return use(sessionStorage);
  } catch {
    return null;
  }
}

export const hasKey = () => key !== "";

export function storeKey(text) {
  key = text;
  inStorage((storage) => (text ? storage.setItem(KEY, text) : storage.removeItem(KEY)));
}

export function catalogue() {
  return call("v1/catalogue");
}

export async function users(prefix, limit, signal) {
  const query = new URLSearchParams({ prefix, limit });
  return (await call(`v1/users?${query}`, { signal })).user_ids;
}

export async function titles(text, limit, signal) {
  const query = new URLSearchParams({ text, limit });
  return (await call(`v1/items?${query}`, { signal })).items;
}

export function recommend(asker, k, signal) {
  return call("v1/recommend", { body: { ...asker, k, explain: true, record: false }, signal });
}

export async function history(userId, limit, signal) {
  const query = new URLSearchParams({ limit });
  const path = `v1/users/${encodeURIComponent(userId)}/history?${query}`;
  return (await call(path, { signal })).events;
}

// A new event. Its id is what lets the same one be sent again; randomUUID is missing where the page
// comes by plain HTTP from another machine.
export function eventOf(userId, itemId, label) {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return {
    event_id: `page-${hex}`, user_id: userId, item_id: itemId, label,
    timestamp_s: Math.floor(Date.now() / 1000),
  };
}

// Store an event; one that is stored already is as good.
export async function send(event) {
  const [status] = (await call("v1/events", { body: { events: [event] } })).events;
  if (status.status === "rejected") throw new ServiceError(`${MEANINGS[422]}: ${status.reason}`, 422);
}

async function call(path, { body, signal } = {}) {
  const [response, text] = await fetched(path, body, signal);
  const answer = parsed(text);
  if (!response.ok) throw failure(response, answer?.message ?? text.slice(0, 200));
  if (answer === undefined) throw new ServiceError(`The service answered ${path} without JSON.`);
  return answer;
}

async function fetched(path, body, signal) {
  const headers = hasKey() ? { authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  try {
    const response = await fetch(new URL(path, HOME), options);
    return [response, await response.text()];
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ServiceError("The service does not answer. It may be starting, or gone.");
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function failure(response, said) {
  const meaning = MEANINGS[response.status] ?? `The service failed (${response.status})`;
  const later = response.headers.get("retry-after");
  const advice = later ? ` Try again in ${later} s.` : "";
  const end = /[.!?]$/.test(said) ? "" : ".";
  return new ServiceError(
    said ? `${meaning}: ${said}${end}${advice}` : `${meaning}.${advice}`, response.status
  );
}
