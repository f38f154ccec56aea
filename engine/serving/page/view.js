// Data of the API -> elements. Text becomes text nodes alone: nothing of it is ever read as HTML.

const MODES = {
  full: "CRM and language model together, the language model under this history's own mix of adapters.",
  crm: "The CRM alone: the language model had no time, or could not be asked.",
};
const NO_EVENTS = "No events yet, so these are the items that most people like.";
const FAILED = "The models failed, so these are the items that most people like; the log of the service says why.";
const STAGES = {
  history: "History", candidates: "Candidates", crm: "CRM", prompts: "Prompts",
  llm: "Language model", total: "Total",
};
const SHOWN = 8;

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function button(text, onclick, properties = {}) {
  return element("button", { type: "button", textContent: text, onclick, ...properties });
}

// `length`: of the history that the answer used.
export function modeWords(mode, length) {
  if (mode === "popular") return length > 0 ? FAILED : NO_EVENTS;
  return MODES[mode] ?? "";
}

// The ranked items. `before`: rank by item id of the list that this one follows, or null.
export function itemRows(items, before, rateButtons) {
  const rows = items.map((item, place) => itemRow(item, place + 1, before, rateButtons(item)));
  const border = items.findIndex((item) => item.llm_score === null);
  if (border > 0) {
    const words = "From here on in the CRM's order, not read by the language model";
    rows.splice(border, 0, element("li", { className: "border", textContent: words }));
  }
  return rows;
}

function itemRow(item, rank, before, buttons) {
  const change = before === null ? null : changeOf(before.get(item.item_id), rank);
  const row = element("li", { className: "item" },
    element("span", { className: "rank", textContent: rank }),
    element("div", { className: "name" },
      element("span", { className: "title", textContent: item.title || item.item_id }), " ",
      ...(change === null ? [] : [changeMark(change)])),
    scores(item), buttons);
  row.dataset.item = item.item_id;
  if (change?.kind === "new") row.classList.add("is-new");
  return row;
}

function scores(item) {
  const list = element("dl", { className: "scores" });
  for (const [name, value] of [
    ["Score", item.score], ["CRM", item.crm_score], ["LM", item.llm_score],
  ]) {
    const number = value === null ? "\u2013" : value.toFixed(2);
    const words = value === null ? "not asked" : "";
    list.append(element("div", {},
      element("dt", { textContent: name }), element("dd", { textContent: number, title: words })));
  }
  return list;
}

function changeOf(before, rank) {
  if (before === undefined) return { kind: "new", by: 0 };
  if (before === rank) return null;
  return { kind: before > rank ? "rose" : "fell", by: Math.abs(before - rank) };
}

function changeMark({ kind, by }) {
  const sign = { new: "new", rose: `\u2191 ${by}`, fell: `\u2193 ${by}` }[kind];
  const words = kind === "new" ? "new in the list" : `${kind} by ${by}`;
  return element("span", { className: `change ${kind}`, title: words },
    element("span", { ariaHidden: "true", textContent: sign }),
    element("span", { className: "unseen", textContent: words }));
}

export function count(number) {
  return number.toLocaleString("en");
}

// `items`: undefined if it is not known how many there are.
export function factWords(items, releaseId) {
  return items === undefined ? `release ${releaseId}` : `${count(items)} items, release ${releaseId}`;
}

export function unstoredWords(user, item, label, error) {
  const done = error.isRefusal ? "is not stored" : "may not be stored";
  return `The ${label ? "like" : "dislike"} of "${item.title || item.item_id}" by "${user}" ${done}.`;
}

export function noUsers(prefix) {
  const words = prefix ? "No stored user begins so."
    : "No event is stored. python -m jobs.seed_state fills the database with the histories of a run.";
  return element("span", { className: "quiet", textContent: words });
}

// What changed between two lists, in words.
export function changeWords(items, before) {
  const kinds = items.map((item, place) => changeOf(before.get(item.item_id), place + 1)?.kind);
  const number = (kind) => kinds.filter((each) => each === kind).length;
  const gone = before.size - items.filter((item) => before.has(item.item_id)).length;
  const parts = [
    [number("new"), "new"], [number("rose"), "rose"], [number("fell"), "fell"], [gone, "gone"],
  ].filter(([many]) => many > 0);
  if (parts.length === 0) return "The list is the same.";
  return `In the list: ${parts.map((part) => part.join(" ")).join(", ")}.`;
}

export function foundWords(number, limit) {
  if (number === 0) return "No title contains that.";
  return number < limit ? `${number} found.` : `The ${limit} most popular that contain it.`;
}

export function stageRows(stages) {
  const longest = Math.max(...Object.values(stages));
  return Object.entries(stages).map(([name, ms]) => (
    bar(STAGES[name] ?? name, ms / longest, milliseconds(ms), name === "total" ? "total" : "")
  ));
}

export function gateRows(weights) {
  const largest = Math.max(...weights);
  return weights.map((weight, place) => bar(`${place + 1}`, weight / largest, percent(weight)));
}

export function pastList(past, ratings) {
  const largest = Math.max(...past.map((event) => event.attention), 0) || 1;
  return folded(past.map((event) => {
    const row = bar(event.title || event.item_id, event.attention / largest, percent(event.attention));
    const facts = element("span", { className: "facts" });
    if (ratings) facts.append(readAs(event.rating));
    if (event.is_in_prompt) facts.append(element("span", { className: "tag", textContent: "in the prompt" }));
    row.classList.add("past");
    row.append(facts);
    return row;
  }), "bars");
}

// The events of a history, newest first; `rating` is shown where the data have ratings.
export function historyList(events, ratings, remove = null) {
  return folded(events.map((event, place) => {
    const facts = element("span", { className: "facts" }, labelMark(event.label));
    if (ratings) facts.append(readAs(event.rating));
    if (remove === null) facts.append(day(event.timestamp_s));
    const row = element("li", { className: "event" },
      element("span", { className: "title", textContent: event.title || event.item_id }), facts);
    if (remove !== null) {
      const label = `Remove ${event.title || event.item_id}`;
      row.append(button("Remove", () => remove(place), { className: "small", ariaLabel: label }));
    }
    return row;
  }), "rows");
}

function labelMark(label) {
  const kind = label ? "liked" : "disliked";
  return element("span", { className: `tag ${kind}`, textContent: kind });
}

// The models read a rating of every event; where only a label is stored, it stands for the label.
function readAs(rating) {
  return `read as ${Number(rating.toFixed(2))}`;
}

function day(timestamp_s) {
  const text = new Date(timestamp_s * 1000).toISOString().slice(0, 10);
  return element("time", { dateTime: text, textContent: text });
}

function bar(name, share, value, kind = "") {
  const fill = element("span", { className: "fill" });
  fill.style.width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
  return element("li", { className: `bar ${kind}` },
    element("span", { className: "label", textContent: name }),
    element("span", { className: "track", ariaHidden: "true" }, fill),
    element("span", { className: "value", textContent: value }));
}

// The first rows of a list, and the rest behind a click.
function folded(rows, kind) {
  const parts = element("div", {}, element("ul", { className: kind }, ...rows.slice(0, SHOWN)));
  if (rows.length > SHOWN) {
    parts.append(element("details", {},
      element("summary", { textContent: `${rows.length - SHOWN} more` }),
      element("ul", { className: kind }, ...rows.slice(SHOWN))));
  }
  return parts;
}

function milliseconds(ms) {
  return ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

function percent(share) {
  return `${(share * 100).toFixed(1)}%`;
}
