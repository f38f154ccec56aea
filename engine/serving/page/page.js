// The page: who asks -> POST /v1/recommend -> the answer, and what a like or dislike changes in it.
// The address holds who asks, in the part that browsers do not send: #user=405, or
// #guest=1&like=50&dislike=7 with the oldest first.

import * as service from "./service.js";
import * as view from "./view.js";

const SUGGESTIONS = 12;
const FOUND = 8;
const WISHED = 10;
const NAMED = 100;
const MAX_HISTORY = 1000;
const MAX_ID = 200;
const TYPING_MS = 200;

const $ = (id) => document.getElementById(id);
const state = {
  user: "",               // empty: nobody is chosen
  guest: null,            // [{item_id, label}], oldest first, each item once; null: not a guest
  address: "",            // the part of the address that says so
  busy: 0,                // what is under way
  wish: null,             // {about, again}: what waits for a key
  facts: null,            // GET /v1/catalogue
  answer: null,           // the answer that is shown
  sending: new Map(),     // events that were sent and not confirmed, by user, item and label
  rated: new Map(),       // items that are not rated again before the next answer -> is it stored
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
const [beginAsking, beginSuggesting] = [latest(), latest()];
const [beginSearching, beginNaming] = [latest(), latest()];

// Do some work when nobody has typed for a moment.
function pause(work) {
  let timer;
  const stop = () => clearTimeout(timer);
  return { stop, wait: () => { stop(); timer = setTimeout(work, TYPING_MS); } };
}
const [suggesting, searching] = [pause(suggest), pause(search)];

const isAsked = () => state.guest !== null || state.user !== "";
const hasRatings = () => state.facts?.rating_min != null;
const maxHistory = () => state.facts?.max_history ?? MAX_HISTORY;
const isId = (text) => text !== "" && [...text].length <= MAX_ID && !text.includes("\0");
const titleOf = (itemId) => state.titles.get(itemId) || itemId;

// Who asks

function readAddress() {
  state.address = location.hash;
  const query = new URLSearchParams(state.address.slice(1));
  const isGuest = query.has("guest");
  state.user = isGuest ? "" : query.get("user") ?? "";
  state.guest = isGuest ? guestOf(query) : null;
  showAsker();
}

// Return the history of an address, without what can be no item's id.
function guestOf(query) {
  const labels = new Map();
  for (const [name, id] of query) {
    if (!["like", "dislike"].includes(name) || !isId(id)) continue;
    labels.delete(id);                // what is said last counts, and stands last
    labels.set(id, name === "like" ? 1 : 0);
  }
  return [...labels].map(([item_id, label]) => ({ item_id, label }));
}

// Return a history in which an item has a new label, and no other any more.
function withLabel(guest, itemId, label) {
  return [...guest.filter((item) => item.item_id !== itemId), { item_id: itemId, label }];
}

function writeAddress(method) {
  const query = new URLSearchParams();
  if (state.guest !== null) query.set("guest", "1");
  else if (state.user) query.set("user", state.user);
  for (const item of state.guest ?? []) query.append(item.label ? "like" : "dislike", item.item_id);
  const text = query.toString();
  history[method](null, "", text ? `#${text}` : location.pathname + location.search);
  state.address = location.hash;
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

// Show who was chosen anew; nothing of the one before is left but what was not stored.
function begin() {
  for (const notice of [...$("alerts").children]) {
    if (!("stays" in notice.dataset)) notice.remove();
  }
  dropWish();
  $("text").value = "";
  $("found").replaceChildren();
  $("found-words").textContent = "";
  $("status").textContent = "";
  $("result").hidden = true;
  $("rating").hidden = !isAsked();
  $("welcome").hidden = isAsked();
  Object.assign(state, { answer: null, rated: new Map() });
  suggesting.stop();
  searching.stop();
  for (const stop of [beginSearching, beginNaming, beginSuggesting, beginAsking]) stop();
  if (isAsked()) {
    $("suggestions").replaceChildren();
    ask();
  } else {
    suggest();
    showFacts();
  }
}

async function suggest() {
  const signal = beginSuggesting();
  const prefix = $("user").value;
  try {
    const found = await service.users(prefix, SUGGESTIONS, signal);
    if (signal.aborted) return;
    const chips = found.map((user) => view.button(user, () => choose(user, null)));
    clearAlert("suggest");
    $("suggestions").replaceChildren(...(chips.length ? chips : [view.noUsers(prefix)]));
  } catch (error) {
    if (signal.aborted) return;
    if (!error.wantsKey) return report("suggest", error, suggest);
    const words = view.element("span", { className: "quiet", textContent: "The list of users needs a key." });
    const enter = view.button("Enter it", () => askForKey("suggest", suggest));
    $("suggestions").replaceChildren(words, enter);
  }
}

// The answer

async function ask(said = "") {
  const signal = beginAsking();
  const before = state.answer;
  const done = busy();
  if (before === null) $("status").textContent = "Asking for recommendations ...";
  try {
    const trouble = await loadFacts();
    if (signal.aborted) return;
    state.guest = state.guest?.slice(-maxHistory()) ?? null;
    const asker = state.guest === null ? { user_id: state.user } : { history: state.guest };
    const answer = await service.recommend(asker, Math.min(WISHED, state.facts?.max_k ?? WISHED), signal);
    if (signal.aborted) return;
    clearAlert("ask");
    show(answer, before, said);
    if (trouble !== null) report("facts", trouble, ask);
    nameItems();
  } catch (error) {
    if (!signal.aborted) showFailure(error, said);
  } finally {
    done();
  }
}

// A guest can always remove what the service cannot use.
function showFailure(error, said) {
  $("status").textContent = said;
  if (state.guest !== null) {
    unrate(() => true);
    showGuestHistory();
    if (state.answer === null) {
      $("result").classList.add("bare");
      $("result").hidden = state.guest.length === 0;
    }
    if (error.status === 404) nameItems();
  }
  report("ask", error, () => ask(said));
}

// Say that something is under way; return what says that it is done.
function busy() {
  const show = (step) => {
    state.busy += step;
    $("result").ariaBusy = String(state.busy > 0);
    document.body.classList.toggle("busy", state.busy > 0);
  };
  show(1);
  return () => show(-1);
}

// Read the facts of the catalogue while they are unknown; return what went wrong, or null.
async function loadFacts() {
  if (state.facts !== null) return null;
  try {
    state.facts = await service.catalogue();
    clearAlert("facts");
    return null;
  } catch (error) {
    return error;
  }
}

async function showFacts() {
  const trouble = await loadFacts();
  if (trouble !== null) return report("facts", trouble, () => (isAsked() ? ask() : showFacts()));
  const { items, release_id: releaseId } = state.facts;
  $("facts").textContent = view.factWords(items, state.answer?.release_id ?? releaseId);
}

function show(answer, before, said) {
  const explanation = answer.explanation;
  for (const each of [...answer.items, ...answer.history.newest, ...(explanation?.past ?? [])]) {
    state.titles.set(each.item_id, each.title);
  }
  state.answer = answer;
  showItems(answer, before);
  unrate((isStored) => isStored);
  showMode(answer);
  showExplanation(explanation);
  showHistory(answer.history);
  const change = before === null ? "" : view.changeWords(answer.items, ranksOf(before));
  const count = `${answer.items.length} recommendations, ${Math.round(answer.stage_ms.total)} ms.`;
  $("status").textContent = [said, change || count].filter(Boolean).join(" ");
  $("result").classList.remove("bare");
  $("result").hidden = false;
}

function showItems(answer, before) {
  const place = focusedButton();
  const isKnown = answer.mode !== "popular" || state.guest !== null || answer.history.length > 0;
  $("unknown").hidden = isKnown;
  $("unknown").textContent = isKnown ? "" :
    `"${state.user}" has no events yet; popular items. A like or dislike is the first event.`;
  const rows = view.itemRows(answer.items, before && ranksOf(before), rateButtons);
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
  $("mode-words").textContent = view.modeWords(answer.mode, answer.history.length);
  $("stages").replaceChildren(...view.stageRows(answer.stage_ms));
  $("facts").textContent = view.factWords(state.facts?.items, answer.release_id);
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
  if (state.guest !== null) return showGuestHistory();
  const isPart = newest.length < length;
  $("history-length").textContent = isPart ? `the newest ${newest.length} of ${length}` : length;
  const list = view.historyList(newest, hasRatings());
  const words = length > MAX_HISTORY ? `Show the newest ${view.count(MAX_HISTORY)}` : "Show all";
  if (isPart) list.append(view.button(words, showWholeHistory, { className: "small" }));
  redraw($("history"), length ? list : "Nothing yet.");
}

function showGuestHistory() {
  const shown = [...state.guest].reverse();
  const newest = shown.map((item) => ({ ...item, title: titleOf(item.item_id) }));
  const list = view.historyList(newest, false, (place) => remove(shown[place]));
  $("history-length").textContent = shown.length;
  redraw($("history"), shown.length ? list : "Nothing yet: like something, here or by its title.");
}

// Replace a list; focus and what is unfolded stay where they are.
function redraw(holder, content) {
  const controls = () => [...holder.querySelectorAll("button, summary")];
  const place = controls().indexOf(document.activeElement);
  const isOpen = holder.querySelector("details")?.open ?? false;
  holder.replaceChildren(content);
  const rest = holder.querySelector("details");
  if (rest) rest.open = isOpen;
  if (place < 0 || document.activeElement !== document.body) return;
  (controls()[Math.min(place, controls().length - 1)] ?? $("text")).focus();
}

async function showWholeHistory() {
  const shown = state.answer;
  const done = busy();
  try {
    const events = await service.history(state.user, MAX_HISTORY);
    if (state.answer !== shown) return;
    clearAlert("history");
    const isPart = events.length === MAX_HISTORY;
    $("history-length").textContent = isPart ? `the newest ${view.count(MAX_HISTORY)}` : events.length;
    $("history").replaceChildren(view.historyList(events, hasRatings()));
    unfold($("history").querySelector("details"));
  } catch (error) {
    if (state.answer === shown) report("history", error, showWholeHistory);
  } finally {
    done();
  }
}

function unfold(rest) {
  if (rest === null) return;
  rest.open = true;
  if (document.activeElement === document.body) rest.querySelector("summary").focus();
}

// Look up the titles of a guest's items that no answer has named, the newest ones.
async function nameItems() {
  const signal = beginNaming();
  const ids = (state.guest ?? []).map((item) => item.item_id);
  const unknown = ids.filter((id) => !state.titles.has(id)).slice(-NAMED);
  try {
    for (const id of unknown) {
      const [found] = await service.titles(id, 1, signal);
      state.titles.set(id, found?.item_id === id ? found.title : "");
    }
    if (unknown.length && !signal.aborted) showGuestHistory();
  } catch (error) {
    if (!signal.aborted) report("titles", error, nameItems);
  }
}

// Likes and dislikes

function rateButtons(item) {
  const title = item.title || item.item_id;
  const rated = (label, text) => {
    const made = view.button(text, () => rate(item, label), { ariaLabel: `${text} ${title}` });
    made.dataset.label = label;
    return made;
  };
  const buttons = view.element("div", { className: "rate" }, rated(1, "Like"));
  buttons.dataset.item = item.item_id;
  if (state.facts?.labels.includes(0) ?? true) buttons.append(rated(0, "Dislike"));
  return buttons;
}

async function rate(item, label) {
  if (state.rated.has(item.item_id)) return;
  state.titles.set(item.item_id, item.title);
  if (state.guest === null) return store(state.user, item, label);
  state.rated.set(item.item_id, true);
  showRated();
  state.guest = withLabel(state.guest, item.item_id, label).slice(-maxHistory());
  writeAddress("replaceState");
  await ask(`${label ? "Liked" : "Disliked"}: ${titleOf(item.item_id)}.`);
}

// Let items be rated again. `isMeant` tells of which, by whether their rating is stored.
function unrate(isMeant) {
  for (const [itemId, isStored] of [...state.rated]) {
    if (isMeant(isStored)) state.rated.delete(itemId);
  }
  showRated();
}

// A button that is disabled would lose the focus.
function showRated() {
  for (const buttons of document.querySelectorAll(".rate")) {
    for (const each of buttons.children) each.ariaDisabled = String(state.rated.has(buttons.dataset.item));
  }
}

// Send an event of the user, the same one again if it was not confirmed, and ask anew.
async function store(user, item, label) {
  const about = JSON.stringify([user, item.item_id, label]);
  const event = state.sending.get(about) ?? service.eventOf(user, item.item_id, label);
  const rated = state.user === user ? state.rated : new Map();
  const done = busy();
  state.sending.set(about, event);
  rated.set(item.item_id, false);
  showRated();
  clearAlert(about);
  try {
    await service.send(event);
    state.sending.delete(about);
    rated.set(item.item_id, true);
    const said = `${label ? "Liked" : "Disliked"}: ${titleOf(item.item_id)}. Stored`;
    if (state.user === user) ask(`${said}.`);
    else $("status").textContent = `${said} for "${user}".`;
  } catch (error) {
    if (error.status === 422) state.sending.delete(about);
    rated.delete(item.item_id);
    showRated();
    report(about, error, () => store(user, item, label), view.unstoredWords(user, item, label, error));
  } finally {
    done();
  }
}

async function remove(item) {
  if (!state.guest?.includes(item)) return;       // it is gone already
  state.guest = state.guest.filter((each) => each !== item);
  writeAddress("replaceState");
  showGuestHistory();
  await ask(`Removed: ${titleOf(item.item_id)}.`);
}

async function search() {
  const text = $("text").value.trim();
  const signal = beginSearching();
  try {
    const found = text ? await service.titles(text, FOUND, signal) : [];
    if (signal.aborted) return;
    clearAlert("search");
    $("found").replaceChildren(...found.map(foundRow));
    showRated();
    $("found-words").textContent = text ? view.foundWords(found.length, FOUND) : "";
  } catch (error) {
    if (!signal.aborted) report("search", error, search);
  }
}

function foundRow(item) {
  const facts = Object.values(item.fields).flat().join(", ");
  return view.element("li", { className: "found" },
    view.element("div", { className: "name" },
      view.element("span", { className: "title", textContent: item.title || item.item_id }), " ",
      view.element("span", { className: "quiet small", textContent: facts })),
    rateButtons(item));
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

// Show what went wrong about something. `words` say what it was where that is not to be seen any
// more: such a notice stays until it is tried again or dismissed.
function report(about, error, again, words = "") {
  const isKnown = error instanceof service.ServiceError;
  if (!isKnown) console.error(error);
  const said = isKnown ? error.message : `The page failed: ${error}`;
  const notice = view.element("div", { className: "notice" },
    view.element("p", { textContent: `${words} ${said}`.trim() }),
    view.button("Try again", () => { clearAlert(about); again(); }),
    view.button("Dismiss", () => { clearAlert(about); if (state.wish?.about === about) dropWish(); }));
  notice.setAttribute("role", "alert");
  notice.dataset.about = about;
  if (words) notice.dataset.stays = "";
  clearAlert(about);
  $("alerts").append(notice);
  if (error.wantsKey) askForKey(about, again);
}

function clearAlert(about) {
  [...$("alerts").children].find((notice) => notice.dataset.about === about)?.remove();
}

function askForKey(about, again) {
  state.wish = { about, again };
  $("key-form").hidden = false;
  $("key").focus();
}

function dropWish() {
  state.wish = null;
  $("key").value = "";
  $("key-form").hidden = true;
}

function useKey(key) {
  const { wish } = state;
  service.storeKey(key);
  showKey();
  dropWish();
  if (wish === null) return;
  clearAlert(wish.about);
  wish.again();
}

function showKey() {
  $("key-used").hidden = !service.hasKey();
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
  useKey($("key").value);
};
$("key-cancel").onclick = dropWish;
$("key-forget").onclick = () => {
  service.storeKey("");
  showKey();
};
$("skip").onclick = (event) => {          // the address is for who asks
  event.preventDefault();
  $("result").focus();
};
window.onhashchange = () => {
  if (location.hash === state.address) return;
  readAddress();
  begin();
};
showKey();
readAddress();
begin();
