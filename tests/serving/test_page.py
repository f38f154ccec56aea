"""The page at `/`, in Chromium."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

from engine.serving.pages import FILES
from tests.serving.conftest import Service

pytestmark = pytest.mark.ray

HOSTILE = """<img src=x onerror="hacked=1"><script>hacked=1</script>'; DROP TABLE events; --"""
PHONE = {"width": 360, "height": 740}
GUEST, USER = "input[value=guest]", "input[value=user]"


def chromium() -> str:
    path = shutil.which("chromium")
    if path is None:
        message = "there is no `chromium` on the PATH"
        if os.environ.get("LIFELORA_REQUIRE_CHROMIUM") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start one browser; each test has a profile of its own in it."""
    path = chromium()
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--no-proxy-server"]         # root may not use the sandbox
        running = playwright.chromium.launch(executable_path=path, args=options)
        yield running
        running.close()


class Watched:
    """A tab, and what it did that it should not have done."""

    def __init__(self, page: Page, service: Service) -> None:
        self.page, self.service = page, service
        self.faults: list[str] = []
        page.on("request", self._check_request)
        page.on("console", self._check_message)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: self.faults.append(dialog.message))

    def _check_request(self, request: Request) -> None:
        if not request.url.startswith(f"{self.service.url}/"):
            self.faults.append(f"asked for {request.url}")

    def _check_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def open(self, asker: str = "") -> None:
        self.page.goto(f"{self.service.url}/{asker}")

    def open_user(self, user_id: str) -> dict[str, Any]:
        """Show a user; return the answer that the page got."""
        with self.page.expect_response("**/v1/recommend") as found:
            self.open(f"#user={quote(user_id, safe='')}")
        self.see_items()
        answer: dict[str, Any] = found.value.json()
        return answer

    def see_items(self) -> None:
        expect(self.page.locator("#items .item").first).to_be_visible()

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()

    def says(self, text: str) -> None:
        expect(self.page.locator("#status")).to_contain_text(text)

    def hold(self, path: str) -> list[Route]:
        """Keep requests from being answered; return the list of them, which grows."""
        held: list[Route] = []
        self.page.route(path, lambda route: held.append(route))
        return held

    def wait(self, held: list[Route], number: int) -> None:
        deadline = time.monotonic() + 20
        while len(held) < number:
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(20)

    def forgive(self, times: int) -> None:
        """Take it that this many requests failed, and Chromium said so."""
        assert len(self.faults) == times
        assert all("Failed to load resource" in fault for fault in self.faults)
        self.faults.clear()


@pytest.fixture
def tab(browser: Browser, service: Service) -> Iterator[Watched]:
    context = browser.new_context()
    context.set_default_timeout(20_000)
    watched = Watched(context.new_page(), service)
    yield watched
    context.close()
    assert watched.faults == []


def somebody(service: Service, name: str) -> str:
    """Store a history of three items for a user of this name."""
    sent = service.post("/v1/events", {"events": [
        {"event_id": f"{name[:100]} {number}", "user_id": name, "timestamp_s": 10**9 + number,
         "item_id": service.world.catalogue.item_ids[number], "label": 1}
        for number in (1, 2, 3)
    ]})
    assert {event["status"] for event in sent.json()["events"]} <= {"stored", "duplicate"}
    return name


def stored(service: Service, name: str) -> list[tuple[str, int]]:
    """Return the item and the label of each event of a user, newest first."""
    answer = service.client.get(f"/v1/users/{quote(name, safe='')}/history").json()
    return [(event["item_id"], event["label"]) for event in answer["events"]]


def sent_body(request: Request) -> Any:
    return request.post_data_json


def number(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.2f}"


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["item_id"] for item in items]


def test_the_page_shows_what_the_api_answers(tab: Watched, service: Service) -> None:
    name = sorted(service.world.histories)[8]
    answer = tab.open_user(name)
    assert answer["items"] == service.recommend(user_id=name)["items"]
    assert tab.texts("#items .title") == [item["title"] for item in answer["items"]]
    assert tab.texts("#items dd") == [
        number(item[score]) for item in answer["items"]
        for score in ("score", "crm_score", "llm_score")
    ]
    expect(tab.page.locator("#items li").nth(6)).to_have_class("border")    # 6 were re-ranked
    expect(tab.page.locator("#mode")).to_have_text("full")
    assert len(tab.texts("#stages .value")) == len(answer["stage_ms"])
    assert tab.texts("#stages .label")[-1] == "Total"

    weights = answer["explanation"]["gate_weights"]
    assert tab.texts("#gates .value") == [f"{weight:.1%}" for weight in weights]
    widths = tab.page.eval_on_selector_all("#gates .fill", "all => all.map(e => e.style.width)")
    assert [float(width.rstrip("%")) for width in widths] == pytest.approx(
        [100 * weight / max(weights) for weight in weights], abs=0.01
    )
    past = answer["explanation"]["past"]
    assert tab.texts("#past .label") == [event["title"] for event in past]
    assert tab.texts("#past .tag") == ["in the prompt" for event in past if event["is_in_prompt"]]
    assert tab.texts("#history .title") == [
        event["title"] for event in answer["history"]["newest"]
    ]
    assert tab.texts("#history .tag") == [
        "liked" if event["label"] else "disliked" for event in answer["history"]["newest"]
    ]
    length, rows = answer["history"]["length"], len(answer["history"]["newest"])
    assert tab.texts("#history-length") == [
        str(length) if rows == length else f"the newest {rows} of {length}"
    ]
    assert f"read as {past[0]['rating']:g}" in tab.texts("#past .facts")[0]
    assert tab.texts("#facts") == [f"40 items, release {answer['release_id']}"]

    tab.page.get_by_role("link", name="Skip").focus()
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#result")).to_be_focused()
    expect(tab.page.locator("#status")).to_contain_text("10 recommendations")


def test_a_dislike_is_stored_and_changes_the_list(tab: Watched, service: Service) -> None:
    name = somebody(service, "page/disliker?&=%41")
    first = tab.open_user(name)
    disliked = first["items"][0]
    with (tab.page.expect_response("**/v1/recommend") as found,
          tab.page.expect_request("**/v1/events") as sent):
        tab.page.get_by_role("button", name=f"Dislike {disliked['title']}", exact=True).click()
    tab.says(f"Disliked: {disliked['title']}. Stored. In the list:")
    [event] = sent_body(sent.value)["events"]
    assert "request_id" not in event            # the answer is not kept
    assert sent_body(found.value.request)["record"] is False
    assert stored(service, name)[0] == (disliked["item_id"], 0)

    second = found.value.json()["items"]
    assert disliked["item_id"] not in ids(second)
    expect(tab.page.locator("#items .title").first).to_have_text(second[0]["title"])
    expect(tab.page.locator("#history .title").first).to_have_text(disliked["title"])
    ranks = {item_id: rank for rank, item_id in enumerate(ids(first["items"]))}
    marks = []
    for rank, item_id in enumerate(ids(second)):
        before = ranks.get(item_id)
        if before is None:
            marks.append("new in the list")
        elif before != rank:
            marks.append(f"{'rose' if before > rank else 'fell'} by {abs(before - rank)}")
    assert "new in the list" in marks
    assert tab.texts("#items .change .unseen") == marks
    focused = tab.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == f"Dislike {second[0]['title']}"


def test_a_guest_builds_a_history_by_search(tab: Watched, service: Service) -> None:
    tab.open()
    tab.page.focus(USER)
    tab.page.keyboard.press("ArrowRight")
    tab.see_items()
    expect(tab.page.locator("#mode")).to_have_text("popular")
    tab.page.get_by_label("Find a title to rate").fill("no such title")
    expect(tab.page.get_by_text("No title contains that.")).to_be_visible()
    tab.page.get_by_label("Find a title to rate").fill("tItLe 7")
    tab.page.get_by_role("button", name="Like Title 7", exact=True).click()
    tab.says("Liked: Title 7.")
    tab.page.fill("#text", "title 12")
    tab.page.get_by_role("button", name="Dislike Title 12", exact=True).click()
    tab.says("Disliked: Title 12.")
    history = [{"item_id": "7", "label": 1}, {"item_id": "12", "label": 0}]
    expected = service.recommend(history=history)
    assert expected["mode"] == "full"
    assert tab.texts("#items .title") == [item["title"] for item in expected["items"]]
    assert tab.texts("#history .title") == ["Title 12", "Title 7"]
    assert urlsplit(tab.page.url).fragment == "guest=1&like=7&dislike=12"
    tab.page.fill("#text", "title 7")
    again = tab.page.get_by_role("button", name="Dislike Title 7", exact=True)
    again.click()
    tab.says("Disliked: Title 7.")
    assert urlsplit(tab.page.url).fragment == "guest=1&dislike=12&dislike=7"
    tab.page.get_by_role("button", name="Remove Title 7").click()
    tab.says("Removed: Title 7.")
    tab.page.get_by_role("button", name="Like Title 7", exact=True).click()
    tab.says("Liked: Title 7.")
    history.reverse()
    expected = service.recommend(history=history)

    tab.page.reload()
    tab.see_items()
    assert tab.texts("#items .title") == [item["title"] for item in expected["items"]]
    tab.page.get_by_role("button", name="Remove Title 12").click()
    tab.says("Removed: Title 12.")
    alone = service.recommend(history=history[1:])
    assert tab.texts("#items .title") == [item["title"] for item in alone["items"]]


def test_two_items_are_removed_in_a_row(tab: Watched, service: Service) -> None:
    tab.open("#guest=1&" + "&".join(f"like={item}" for item in (3, 5, 7, 9)))
    tab.see_items()
    held = tab.hold("**/v1/recommend")
    tab.page.get_by_role("button", name="Remove Title 9").click()
    tab.wait(held, 1)
    expect(tab.page.get_by_role("button", name="Remove Title 7")).to_be_focused()
    tab.page.keyboard.press("Enter")
    assert tab.texts("#history .title") == ["Title 5", "Title 3"]
    assert tab.texts("#history-length") == ["2"]
    assert urlsplit(tab.page.url).fragment == "guest=1&like=3&like=5"
    tab.page.focus("#text")
    tab.wait(held, 2)
    held[1].continue_()
    tab.says("Removed: Title 7.")
    assert sent_body(held[1].request)["history"] == [
        {"item_id": "3", "label": 1}, {"item_id": "5", "label": 1}
    ]
    expect(tab.page.locator("#text")).to_be_focused()
    held[0].fulfill(json={})                    # nobody waits for it any more


def test_a_guest_can_remove_what_the_service_does_not_know(tab: Watched) -> None:
    tab.open("#guest=1&like=&like=7&like=gone&like=" + "x" * 201)
    alert = tab.page.get_by_role("alert")
    expect(alert).to_contain_text("There is no such thing: ")
    expect(tab.page.locator("#history .title")).to_have_text(["gone", "Title 7"])
    expect(tab.page.locator("#list-title")).to_be_hidden()
    tab.page.get_by_role("button", name="Remove gone").click()
    tab.see_items()
    expect(alert).to_be_hidden()
    tab.forgive(1)


def test_of_a_long_address_the_newest_items_are_used(tab: Watched, service: Service) -> None:
    items = [str(item) for item in range(1, 40)] * 2
    facts = service.client.get("/v1/catalogue").json() | {"max_history": 10}
    tab.page.route("**/v1/catalogue", lambda route: route.fulfill(json=facts))
    with tab.page.expect_request("**/v1/recommend") as sent:
        tab.open("#guest=1&" + "&".join(f"like={item}" for item in items))
    assert ids(sent_body(sent.value)["history"]) == items[-10:]
    tab.see_items()
    assert tab.texts("#history-length") == ["10"]
    rows = [f"Title {item}" for item in reversed(items[-10:])]
    expect(tab.page.locator("#history .title")).to_have_text(rows)


@pytest.mark.parametrize("place", ["#items", "#found"])
def test_a_double_click_stores_one_event(tab: Watched, service: Service, place: str) -> None:
    name = somebody(service, f"double {place}")
    tab.open_user(name)
    if place == "#found":
        tab.page.fill("#text", "title 2")
    held = tab.hold("**/v1/events")
    row = tab.page.locator(f"{place} li").first
    title = row.locator(".title").inner_text()
    like, dislike = (row.locator(f"[data-label='{label}']") for label in (1, 0))
    like.dblclick()
    expect(like).to_have_attribute("aria-disabled", "true")
    dislike.click(force=True)
    tab.wait(held, 1)
    held[0].continue_()
    tab.says(f"Liked: {title}. Stored.")
    assert len(held) == 1
    assert len(stored(service, name)) == 4
    expect(tab.page.locator("[aria-disabled=true]")).to_have_count(0)


def test_an_event_that_was_not_confirmed_is_sent_again_with_its_id(
    tab: Watched, service: Service
) -> None:
    name, other = somebody(service, "unlucky"), somebody(service, "unlucky neighbour")
    sent: list[dict[str, Any]] = []

    def lose(route: Route) -> None:
        sent.extend(sent_body(route.request)["events"])
        if len(sent) < 3:
            route.fetch()
            route.abort()
        else:
            route.continue_()

    tab.page.route("**/v1/events", lose)
    title = tab.open_user(name)["items"][0]["title"]
    like = tab.page.get_by_role("button", name=f"Like {title}", exact=True)
    like.click()
    alert = tab.page.get_by_role("alert")
    words = f'The like of "{title}" by "{name}" may not be stored.'
    expect(alert).to_contain_text(words)
    expect(like).to_have_attribute("aria-disabled", "false")
    like.click()
    expect(alert).to_contain_text(words)
    expect(alert).to_have_count(1)
    tab.page.fill("#user", other)
    tab.page.keyboard.press("Enter")
    tab.see_items()
    expect(alert).to_contain_text(words)
    alert.get_by_role("button", name="Try again").click()
    tab.says(f'Liked: {title}. Stored for "{name}".')
    expect(alert).to_be_hidden()
    expect(tab.page.locator("#user")).to_have_value(other)
    assert len(sent) == 3
    assert sent[0] == sent[1] == sent[2]
    assert len(stored(service, name)) == 4
    tab.forgive(2)


def test_the_whole_history_is_shown_unfolded(tab: Watched, service: Service) -> None:
    name = "page archivist"
    service.post("/v1/events", {"events": [
        {"event_id": f"{name} {number}", "user_id": name, "timestamp_s": 10**9 + number,
         "item_id": service.world.catalogue.item_ids[1 + number], "label": 1}
        for number in range(30)
    ]})
    newest = len(tab.open_user(name)["history"]["newest"])
    assert tab.texts("#history-length") == [f"the newest {newest} of 30"]
    expect(tab.page.locator("#history li")).to_have_count(newest)
    tab.page.get_by_role("button", name="Show all").click()
    expect(tab.page.locator("#history li:visible")).to_have_count(30)
    expect(tab.page.locator("#history summary")).to_be_focused()
    assert tab.texts("#history-length") == ["30"]


def test_popular_items_are_told_apart_from_models_that_failed(
    tab: Watched, service: Service
) -> None:
    name = somebody(service, "page unserved")
    failed = service.recommend(user_id=name) | {"mode": "popular", "explanation": None}
    tab.page.route("**/v1/recommend", lambda route: route.fulfill(json=failed))
    tab.open_user(name)
    expect(tab.page.locator("#mode-words")).to_contain_text("The models failed")
    expect(tab.page.locator("#unknown")).to_be_hidden()


def test_the_facts_of_the_catalogue_are_asked_for_until_they_are_known(
    tab: Watched, service: Service
) -> None:
    tab.page.route("**/v1/catalogue", lambda route: route.fulfill(status=503, json={
        "error": "StateError", "message": "no database"
    }))
    tab.open_user(somebody(service, "page early"))
    alert = tab.page.get_by_role("alert")
    expect(alert).to_contain_text("The service cannot answer now: no database.")
    expect(tab.page.locator("#result")).to_have_attribute("aria-busy", "false")
    tab.page.unroute("**/v1/catalogue")
    alert.get_by_role("button", name="Try again").click()
    expect(tab.page.locator("#facts")).to_contain_text("40 items, ")
    expect(alert).to_be_hidden()
    tab.forgive(1)


def test_an_empty_database_is_told(tab: Watched) -> None:
    tab.page.route("**/v1/users?*", lambda route: route.fulfill(json={"user_ids": []}))
    tab.open()
    expect(tab.page.locator("#suggestions")).to_contain_text("No event is stored.")
    tab.page.fill("#user", "a")
    expect(tab.page.locator("#suggestions")).to_have_text("No stored user begins so.")
    assert tab.page.get_by_role("link", name="API").evaluate("a => a.href").endswith("/docs")


def test_users_are_suggested_and_the_way_back_leads_to_the_one_before(
    tab: Watched, service: Service
) -> None:
    names = [somebody(service, f"suggested {place}") for place in (1, 2)]
    tab.open()
    tab.page.get_by_label("User id").fill("suggested")
    chips = tab.page.get_by_role("group", name="Users with stored events").get_by_role("button")
    expect(chips).to_have_text(names)
    chips.nth(1).click()
    tab.see_items()
    assert urlsplit(tab.page.url).fragment == "user=suggested+2"
    titles = tab.texts("#history .title")
    like = tab.page.get_by_role("button", name="Like").first
    like.click()
    tab.says("Stored.")
    liked = tab.texts("#history .title")
    assert liked[1:] == titles
    tab.page.fill("#user", names[0])
    tab.page.keyboard.press("Enter")
    expect(tab.page).to_have_url(f"{service.url}/#user=suggested+1")
    expect(tab.page.locator("#history .title")).to_have_text(titles)
    tab.page.go_back()
    expect(tab.page.locator("#user")).to_have_value(names[1])
    expect(tab.page.locator("#history .title")).to_have_text(liked)
    tab.page.go_back()
    expect(tab.page.locator("#welcome")).to_be_visible()
    expect(tab.page.locator("#result")).to_be_hidden()


def test_an_unknown_user_is_told_in_words_and_known_after_a_like(
    tab: Watched, service: Service
) -> None:
    answer = tab.open_user("nobody the page knows")
    assert answer["mode"] == "popular"
    words = tab.page.get_by_text('"nobody the page knows" has no events yet')
    expect(words).to_be_visible()
    expect(tab.page.locator("#mode-words")).to_contain_text("No events yet")
    expect(tab.page.locator("#past-card")).to_be_hidden()
    tab.page.get_by_role("button", name="Like").first.click()
    tab.says("Stored.")
    expect(tab.page.locator("#unknown")).to_be_hidden()
    expect(tab.page.locator("#mode")).to_have_text("full")


def test_a_script_in_an_id_or_a_title_stays_text(tab: Watched, service: Service) -> None:
    name = somebody(service, HOSTILE)

    def rename(route: Route) -> None:
        body = route.fetch().text().replace('"title":"Title', f'"title":{json.dumps(HOSTILE)[:-1]}')
        route.fulfill(body=body, content_type="application/json")

    for path in ("/v1/recommend", "/v1/items?*", "/v1/users/*/history*"):
        tab.page.route(f"**{path}", rename)
    tab.open()
    tab.page.fill("#user", HOSTILE[:4])
    tab.page.get_by_role("button", name=name).click()
    tab.see_items()
    tab.page.fill("#text", "7")
    expect(tab.page.locator("#found .title").first).to_have_text(f"{HOSTILE} 7")
    for place in ("#items", "#past", "#history"):
        selector = f"{place} {'.label' if place == '#past' else '.title'}"
        assert all(text.startswith(HOSTILE) for text in tab.texts(selector))
        assert tab.texts(selector)
    tab.page.locator("#items [data-label='1']").first.click()
    tab.says(f"Liked: {HOSTILE}")
    assert HOSTILE in tab.page.title()
    assert tab.page.locator("main img, main script").count() == 0
    assert tab.page.evaluate("typeof hacked") == "undefined"
    assert len(stored(service, name)) == 4


@pytest.mark.parametrize(("answer", "words"), [
    ({"status": 429, "body": "too many", "headers": {"Retry-After": "7"}},
     "Too many requests are waiting: too many. Try again in 7 s."),
    ({"status": 503, "json": {"error": "ReleaseError", "message": "no release is live"}},
     "The service cannot answer now: no release is live."),
    ({"status": 422, "json": {"error": "RequestError", "message": "k: 10 is more than 5"}},
     "The service cannot use this: k: 10 is more than 5."),
    ({"status": 404, "json": {"error": "UnknownItemError", "message": "item 'x'"}},
     "There is no such thing: item 'x'."),
    ({"status": 500, "body": ""}, "The service failed (500)."),
    (None, "The service does not answer."),
])
def test_what_goes_wrong_is_told_and_can_be_tried_again(
    tab: Watched, service: Service, answer: dict[str, Any] | None, words: str
) -> None:
    tab.page.route("**/v1/recommend", (
        lambda route: route.abort() if answer is None else route.fulfill(**answer)
    ))
    tab.open("#user=1")
    alert = tab.page.get_by_role("alert")
    expect(alert).to_contain_text(words)
    expect(tab.page.locator("#result")).to_be_hidden()
    tab.page.unroute("**/v1/recommend")
    alert.get_by_role("button", name="Try again").click()
    tab.see_items()
    expect(alert).to_be_hidden()
    tab.forgive(1)


def test_a_key_is_asked_for_where_it_is_needed_and_kept_for_the_tab(
    tab: Watched, service: Service
) -> None:
    name = somebody(service, "page keyholder")
    refusal = {"error": "UnknownKeyError", "message": "a key is needed"}

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer a-key-of-sixteen-letters":
            route.continue_()
        else:
            route.fulfill(status=401, json=refusal)

    for path in ("/v1/events", "/v1/users?*"):
        tab.page.route(f"**{path}", guard)
    tab.open_user(name)
    expect(tab.page.locator("#key-form")).to_be_hidden()
    tab.page.get_by_role("button", name="Like").first.click()
    expect(tab.page.get_by_role("alert")).to_contain_text("The service asks for a key")
    tab.page.get_by_label("Key of the service").fill("a-key-of-sixteen-letters")
    tab.page.keyboard.press("Enter")
    tab.says("Stored.")
    expect(tab.page.locator("#key-form")).to_be_hidden()
    places = "[Object.values(sessionStorage), Object.values(localStorage), document.cookie]"
    assert tab.page.evaluate(places) == [["a-key-of-sixteen-letters"], [], ""]
    tab.page.fill("#user", name)
    expect(tab.page.locator("#suggestions button")).to_have_text([name])
    tab.page.reload()
    tab.see_items()
    forget = tab.page.get_by_role("button", name="Forget")
    forget.click()
    expect(forget).to_be_hidden()
    assert tab.page.evaluate(places) == [[], [], ""]
    tab.page.fill("#user", "page")
    expect(tab.page.locator("#suggestions")).to_contain_text("The list of users needs a key.")
    tab.forgive(2)


def test_who_dismisses_a_request_for_a_key_sends_nothing_later(
    tab: Watched, service: Service
) -> None:
    name, sent = somebody(service, "page undecided"), []
    refusal = {"error": "UnknownKeyError", "message": "a key is needed"}

    def refuse(route: Route) -> None:
        sent.append(route.request.headers.get("authorization"))
        route.fulfill(status=401, json=refusal)

    tab.page.route("**/v1/events", refuse)
    tab.open_user(name)
    tab.page.get_by_role("button", name="Like").first.click()
    expect(tab.page.get_by_role("alert")).to_contain_text(f'by "{name}" is not stored.')
    tab.page.get_by_role("button", name="Dismiss").click()
    expect(tab.page.locator("#key-form")).to_be_hidden()
    expect(tab.page.get_by_role("alert")).to_be_hidden()
    tab.page.route("**/v1/users?*", lambda route: route.fulfill(status=401, json=refusal))
    tab.page.fill("#user", name)
    tab.page.get_by_role("button", name="Enter it").click()
    tab.page.unroute("**/v1/users?*")
    tab.page.get_by_label("Key of the service").fill("a-key-of-sixteen-letters")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#suggestions button")).to_have_text([name])
    assert sent == [None]
    tab.forgive(2)


def test_where_the_browser_keeps_nothing_the_page_remembers_the_key(
    tab: Watched, service: Service
) -> None:
    tab.page.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('no'); } })"
    )
    name = somebody(service, "page private")
    keys: list[str | None] = []

    def guard(route: Route) -> None:
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] is None:
            route.fulfill(status=401, json={"error": "UnknownKeyError", "message": "a key"})
        else:
            route.continue_()

    tab.page.route("**/v1/events", guard)
    tab.open_user(name)
    tab.page.get_by_role("button", name="Like").first.click()
    tab.page.get_by_label("Key of the service").fill("a-key-of-sixteen-letters")
    tab.page.keyboard.press("Enter")
    tab.says("Stored.")
    expect(tab.page.get_by_text("Key in use")).to_be_visible()
    assert keys == [None, "Bearer a-key-of-sixteen-letters"]
    tab.forgive(1)


def test_a_late_answer_does_not_replace_a_newer_one(tab: Watched, service: Service) -> None:
    slow, fast = somebody(service, "page slow"), somebody(service, "page fast")
    held: list[Route] = []

    def hold(route: Route) -> None:
        if sent_body(route.request)["user_id"] == slow:
            held.append(route)
        else:
            route.continue_()

    tab.page.route("**/v1/recommend", hold)
    tab.open(f"#user={slow}")
    tab.says("Asking")
    tab.wait(held, 1)
    tab.page.fill("#user", fast)
    tab.page.keyboard.press("Enter")
    tab.see_items()
    before = tab.texts("#items .title")
    held[0].fulfill(json={**service.recommend(history=[]), "items": []})
    tab.page.wait_for_timeout(200)
    assert tab.texts("#items .title") == before
    expect(tab.page.locator("#user")).to_have_value(fast)


def test_where_nothing_can_be_disliked_the_page_does_not_offer_it(
    tab: Watched, service: Service
) -> None:
    facts = service.client.get("/v1/catalogue").json()
    facts |= {"labels": [1], "rating_min": None}
    tab.page.route("**/v1/catalogue", lambda route: route.fulfill(json=facts))
    tab.open_user(sorted(service.world.histories)[8])
    expect(tab.page.get_by_role("button", name="Like")).to_have_count(10)
    expect(tab.page.get_by_role("button", name="Dislike")).to_have_count(0)
    assert tab.texts("#past .facts")
    assert not any("read as" in facts for facts in tab.texts("#result .facts"))


def contrast(*colours: str) -> float:
    """Return the ratio of WCAG 2 for two colours of the form `rgb(1, 2, 3)`."""
    luminances = []
    for colour in colours:
        parts = [int(part) / 255 for part in colour.strip("rgb()").split(",")]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        luminances.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(tab: Watched, service: Service, scheme: Any) -> None:
    name = somebody(service, "W" * 200)
    tab.page.set_viewport_size(PHONE)           # type: ignore[arg-type]
    tab.page.emulate_media(color_scheme=scheme)
    tab.open_user(name)
    tab.page.fill("#text", "title")
    expect(tab.page.locator("#found li")).to_have_count(8)
    tab.page.fill("#user", "W")
    expect(tab.page.locator("#suggestions button")).to_have_count(1)
    assert tab.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in ground.strip("rgb()").split(",")) / 3
    assert (brightness < 60) == (scheme == "dark")
    for selector in ("#user", ".switch"):
        border, *grounds = tab.page.locator(selector).evaluate("""(element) => [
            getComputedStyle(element).borderTopColor, getComputedStyle(element).backgroundColor,
            getComputedStyle(element.closest('.card')).backgroundColor]""")
        assert min(contrast(border, ground) for ground in grounds) >= 3


@pytest.mark.parametrize(("path", "kind"), [
    ("/", "text/html; charset=utf-8"), ("/page/page.css", "text/css; charset=utf-8"),
    ("/page/page.js", "text/javascript; charset=utf-8"), ("/page/icon.svg", "image/svg+xml"),
])
def test_files_come_with_their_types_and_are_not_sent_twice(
    service: Service, path: str, kind: str
) -> None:
    answer = service.client.get(path)
    assert answer.content == FILES[path.rpartition("/")[2] or "index.html"]
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    again = service.client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    changed = service.client.get(path, headers={"If-None-Match": '"another"'})
    assert changed.content == answer.content
    assert service.client.head(path).headers["content-length"] == str(len(answer.content))
