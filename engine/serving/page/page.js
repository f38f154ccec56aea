// The page: who asks -> POST /v1/recommend -> the answer, and what a like or dislike changes in it.
// The address holds who asks: ?user=405, or ?guest=1&like=50&dislike=7 with the oldest first.

import * as service from "./service.js";
import * as view from "./view.js";

const SUGGESTIONS = 12;
const FOUND = 8;
const WISHED = 10;
const MAX_HISTORY = 1000;
const TYPING_MS = 200;

const $ = (id) => document.getElementById(id);
const state = {
  user: "",               // empty: nobody is chosen
  guest: null,            // [{item_id, label}], oldest first; null: not a guest
  address: "",            // the part of the address that says so
  facts: null,            // GET /v1/catalogue
  answer: null,           // the answer that is shown
  sending: new Map(),     // events that were sent and not confirmed, by user, item and label
  titles: new Map(),      // by item id, of everything seen
};

// Return a function that begins a call: what began before it is cancelled.
function latest() {
  let controller = new AbortController();
  return () => {
    controller.abort();
    controller = new AbortController();
    return controller.signal;
  };
}
const [beginAsking, beginSuggesting, beginSearching] = [latest(), latest(), latest()];

// Do some work when nobody has typed for a moment.
function pause(work) {
  let timer;
  const stop = () => clearTimeout(timer);
  return { stop, wait: () => { stop(); timer = setTimeout(work, TYPING_MS); } };
}
const [suggesting, searching] = [pause(suggest), pause(search)];

const isAsked = () => state.guest !== null || state.user !== "";
const hasRatings = () => state.facts?.rating_min != null;
const titleOf = (itemId) => state.titles.get(itemId) || itemId;

// Who asks

function readAddress() {
  state.address = location.search;
  const query = new URLSearchParams(state.address);
  state.user = query.get("user") ?? "";
  state.guest = null;
  if (query.has("guest")) {
    state.user = "";
    state.guest = [...query]
      .filter(([name]) => name === "like" || name === "dislike")
      .map(([name, itemId]) => ({ item_id: itemId, label: name === "like" ? 1 : 0 }));
  }
  showAsker();
}

function writeAddress(method) {
  const query = new URLSearchParams();
  if (state.guest !== null) query.set("guest", "1");
  else if (state.user) query.set("user", state.user);
  for (const item of state.guest ?? []) query.append(item.label ? "like" : "dislike", item.item_id);
  const text = query.toString();
  history[method](null, "", text ? `?${text}` : location.pathname);
  state.address = location.search;
}

function showAsker() {
  const isGuest = state.guest !== null;
  document.querySelector(`[name=kind][value=${isGuest ? "guest" : "user"}]`).checked = true;
  $("user-form").hidden = isGuest;
  $("guest-words").hidden = !isGuest;
  $("suggestions").hidden = isGuest;
  $("user").value = state.user;
  document.title = isGuest ? "Guest - Lifelora" : state.user ? `${state.user} - Lifelora` : "Lifelora";
}

function choose(user, guest) {
  Object.assign(state, { user, guest });
  writeAddress("pushState");
  showAsker();
  begin();
}

// Show who was chosen anew; nothing of the one before is left.
function begin() {
  clearAlert();
  $("text").value = "";
  $("found").replaceChildren();
  $("found-words").textContent = "";
  $("status").textContent = "";
  $("result").hidden = true;
  $("rating").hidden = !isAsked();
  $("welcome").hidden = isAsked();
  state.answer = null;
  suggesting.stop();
  searching.stop();
  beginSearching();
  if (isAsked()) {
    beginSuggesting();
    $("suggestions").replaceChildren();
    ask();
  } else {
    beginAsking();
    setBusy(false);
    suggest();
  }
}

async function suggest() {
  const signal = beginSuggesting();
  try {
    const found = await service.users($("user").value, SUGGESTIONS, signal);
    const chips = found.map((user) => view.button(user, () => choose(user, null)));
    const none = view.element("span", { className: "quiet", textContent: "No stored user begins so." });
    $("suggestions").replaceChildren(...(chips.length ? chips : [none]));
  } catch (error) {
    if (signal.aborted) return;
    if (!error.wantsKey) return report(error, suggest);
    const words = view.element("span", { className: "quiet", textContent: "The list of users needs a key." });
    $("suggestions").replaceChildren(words, view.button("Enter it", () => askForKey(suggest)));
  }
}

// The answer

async function ask(said = "") {
  const signal = beginAsking();
  const before = state.answer;
  const asker = state.guest === null ? { user_id: state.user } : { history: state.guest };
  setBusy(true);
  try {
    const answer = await service.recommend(asker, Math.min(WISHED, state.facts?.max_k ?? WISHED), signal);
    if (signal.aborted) return;
    clearAlert();
    show(answer, before, said);
  } catch (error) {
    if (signal.aborted) return;
    $("status").textContent = said;
    report(error, () => ask(said));
  }
  setBusy(false);
}

function setBusy(isBusy) {
  $("result").ariaBusy = String(isBusy);
  document.body.classList.toggle("busy", isBusy);
  if (isBusy && state.answer === null) $("status").textContent = "Asking for recommendations ...";
}

function show(answer, before, said) {
  const explanation = answer.explanation;
  for (const each of [...answer.items, ...answer.history.newest, ...(explanation?.past ?? [])]) {
    state.titles.set(each.item_id, each.title);
  }
  state.answer = answer;
  showItems(answer, before);
  showMode(answer);
  showExplanation(explanation);
  showHistory(answer.history);
  const change = before === null ? "" : view.changeWords(answer.items, ranksOf(before));
  const count = `${answer.items.length} recommendations, ${Math.round(answer.stage_ms.total)} ms.`;
  $("status").textContent = [said, change || count].filter(Boolean).join(" ");
  $("result").hidden = false;
}

function showItems(answer, before) {
  const place = focusedButton();
  const isKnown = answer.mode !== "popular" || state.guest !== null || answer.history.length > 0;
  $("unknown").hidden = isKnown;
  $("unknown").textContent = isKnown ? "" :
    `Nobody is known by the id "${state.user}": no events and no profile. A first like makes them known.`;
  const buttons = (item) => rateButtons(item, answer.request_id);
  const rows = view.itemRows(answer.items, before && ranksOf(before), buttons);
  const none = view.element("li", { className: "quiet", textContent: "No item is left to recommend." });
  $("items").replaceChildren(...(rows.length ? rows : [none]));
  if (place) focusButton(place);
}

function ranksOf(answer) {
  return new Map(answer.items.map((item, place) => [item.item_id, place + 1]));
}

function showMode(answer) {
  $("mode").textContent = answer.mode;
  $("mode").className = `badge ${answer.mode}`;
  $("mode-words").textContent = view.modeWords(answer.mode);
  $("stages").replaceChildren(...view.stageRows(answer.stage_ms));
  showFacts(answer.release_id);
}

function showExplanation(explanation) {
  const weights = explanation?.gate_weights ?? null;
  $("gates-words").textContent = weights === null
    ? "None: the language model was not asked."
    : `The weight of each of ${weights.length} in the language model; an even mix is ${even(weights)}.`;
  $("gates").replaceChildren(...(weights === null ? [] : view.gateRows(weights)));
  const past = explanation?.past ?? [];
  $("past-card").hidden = past.length === 0;
  $("past").replaceChildren(view.pastList(past, hasRatings()));
}

const even = (weights) => `${(100 / weights.length).toFixed(1)}%`;

function showHistory({ length, newest }) {
  $("history-length").textContent = length;
  if (state.guest !== null) return showGuestHistory();
  const list = view.historyList(newest, hasRatings());
  if (length > newest.length) list.append(view.button("Show all", showWholeHistory, { className: "small" }));
  $("history").replaceChildren(length ? list : "Nothing yet.");
}

function showGuestHistory() {
  const newest = state.guest.map((item) => ({ ...item, title: titleOf(item.item_id) })).reverse();
  const list = view.historyList(newest, false, (place) => remove(newest.length - 1 - place));
  $("history").replaceChildren(newest.length ? list : "Nothing yet: like something, here or by its title.");
}

async function showWholeHistory() {
  const shown = state.answer;
  try {
    const events = await service.history(state.user, MAX_HISTORY);
    if (state.answer === shown) $("history").replaceChildren(view.historyList(events, hasRatings()));
  } catch (error) {
    report(error, showWholeHistory);
  }
}

// Likes and dislikes

function rateButtons(item, requestId) {
  const title = item.title || item.item_id;
  const rated = (label, text) => {
    const made = view.button(text, () => rate(item, label, requestId), { ariaLabel: `${text} ${title}` });
    made.dataset.label = label;
    return made;
  };
  const buttons = view.element("div", { className: "rate" }, rated(1, "Like"));
  if (state.facts?.labels.includes(0) ?? true) buttons.append(rated(0, "Dislike"));
  return buttons;
}

async function rate(item, label, requestId) {
  state.titles.set(item.item_id, item.title);
  const said = `${label ? "Liked" : "Disliked"}: ${item.title || item.item_id}.`;
  if (state.guest === null) return store(state.user, item, label, requestId, said);
  state.guest = [...state.guest, { item_id: item.item_id, label }]
    .slice(-(state.facts?.max_history ?? MAX_HISTORY));
  writeAddress("replaceState");
  await ask(said);
}

// Send an event of the user, the same one again if it was not confirmed, and ask anew.
async function store(user, item, label, requestId, said) {
  const name = JSON.stringify([user, item.item_id, label]);
  const event = state.sending.get(name) ?? service.eventOf(user, item.item_id, label, requestId);
  state.sending.set(name, event);
  setBusy(true);
  try {
    await service.send(event);
    state.sending.delete(name);
  } catch (error) {
    if (error.status === 422) state.sending.delete(name);
    setBusy(false);
    return report(error, () => store(user, item, label, requestId, said));
  }
  if (state.user === user) await ask(`${said} Stored.`);
}

async function remove(place) {
  const [item] = state.guest.splice(place, 1);
  writeAddress("replaceState");
  await ask(`Removed: ${titleOf(item.item_id)}.`);
  ($("history").querySelector("button") ?? $("text")).focus();
}

async function search() {
  const text = $("text").value.trim();
  const signal = beginSearching();
  try {
    const found = text ? await service.titles(text, FOUND, signal) : [];
    if (signal.aborted) return;
    $("found").replaceChildren(...found.map(foundRow));
    $("found-words").textContent = text ? view.foundWords(found.length, FOUND) : "";
  } catch (error) {
    if (!signal.aborted) report(error, search);
  }
}

function foundRow(item) {
  const facts = Object.values(item.fields).flat().join(", ");
  return view.element("li", { className: "found" },
    view.element("div", { className: "name" },
      view.element("span", { className: "title", textContent: item.title || item.item_id }), " ",
      view.element("span", { className: "quiet small", textContent: facts })),
    rateButtons(item, null));
}

function focusedButton() {
  const row = document.activeElement.closest("#items .item");
  const label = document.activeElement.dataset?.label;
  return row && label && { place: [...document.querySelectorAll("#items .item")].indexOf(row), label };
}

function focusButton({ place, label }) {
  const rows = document.querySelectorAll("#items .item");
  rows[Math.min(place, rows.length - 1)]?.querySelector(`[data-label="${label}"]`)?.focus();
}

// What goes wrong

function report(error, again) {
  if (!(error instanceof service.ServiceError)) throw error;
  $("alert").replaceChildren(
    view.element("p", { textContent: error.message }),
    view.button("Try again", () => { clearAlert(); again(); }), view.button("Dismiss", clearAlert)
  );
  $("alert").hidden = false;
  if (error.wantsKey) askForKey(again);
}

function clearAlert() {
  $("alert").hidden = true;
  $("alert").replaceChildren();
}

let withKey = () => {};

function askForKey(again) {
  withKey = again;
  $("key-form").hidden = false;
  $("key").focus();
}

function showFacts(releaseId) {
  const items = state.facts ? `${state.facts.items.toLocaleString("en")} items, ` : "";
  $("facts").textContent = releaseId ? `${items}release ${releaseId}` : "";
}

async function start() {
  readAddress();
  try {
    state.facts = await service.catalogue();
    showFacts(state.facts.release_id);
  } catch (error) {
    return report(error, start);
  }
  begin();
}

$("user-form").onsubmit = (event) => {
  event.preventDefault();
  choose($("user").value, null);
};
$("user").oninput = suggesting.wait;
$("user").onfocus = () => { if ($("suggestions").childElementCount === 0) suggest(); };
$("text").oninput = searching.wait;
for (const radio of document.querySelectorAll("[name=kind]")) {
  radio.onchange = () => choose("", radio.value === "guest" ? [] : null);
}
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  service.storeKey($("key").value);
  $("key").value = "";
  $("key-form").hidden = true;
  clearAlert();
  withKey();
};
$("key-forget").onclick = () => {
  service.storeKey("");
  $("key-form").hidden = true;
};
window.onpopstate = () => {
  if (location.search === state.address) return;        // a link within the page
  readAddress();
  begin();
};
start();
