"""Bodies of requests, answers and errors."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from engine.types import AnswerMode

MAX_TIME_S = 253_402_300_799
"""The end of the year 9999: a time in milliseconds is beyond it."""
MAX_BODY_BYTES = 16 * 2**20
"""A thousand events with the longest ids, every character escaped, fit."""

Identifier = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]+$", strict=True)
]


class Body(BaseModel):
    """Nothing unknown, no conversion between types, no NaN."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class HistoryItem(Body):
    """One item of a guest's history."""

    item_id: Identifier
    rating: float | None = None
    label: int | None = Field(default=None, ge=0, le=1)
    """None: made from the rating by the release's rule; without a rating, liked."""


class ItemFilters(Body):
    """Which items may be answered."""

    exclude_seen: bool | None = None
    """Leave out items of the history. By default: yes when items are searched, no when the request
    names its candidates."""
    exclude_items: list[Identifier] = []
    """Leave these out."""
    fields: dict[str, list[str]] = {}
    """Item field -> values; an item must have one of them in each field."""


class Asker(Body):
    """Who asks: exactly one of the two."""

    user_id: Identifier | None = None
    """A user whose events are stored."""
    history: list[HistoryItem] | None = None
    """A guest's history, oldest first."""
    deadline_ms: int | None = Field(default=None, ge=1, le=600_000)
    """Time from the arrival of the request to the answer. Where the language model would take
    longer, it is left out (mode `crm`). By default that of the service."""


class RecommendRequest(Asker):
    """POST /v1/recommend."""

    k: int = Field(default=10, ge=1)
    """Items of the answer."""
    candidates: list[Identifier] | None = Field(default=None, min_length=1)
    """Items to rank; by default the retrieval head finds them."""
    filters: ItemFilters = ItemFilters()
    explain: bool = False
    """Add the adapter mix and the past interactions that mattered."""
    explain_gates: bool = False
    """Add every gate (layer and matrix) to the explanation."""
    record: bool = True
    """Whether the answer is kept as an impression."""


class ScoreRequest(Asker):
    """POST /v1/score."""

    candidates: list[Identifier] = Field(min_length=1)
    """Items to score."""


class SentEventBody(Body):
    """One interaction."""

    event_id: Identifier
    """Chosen by the client; an id is stored once, so a request may be repeated."""
    user_id: Identifier
    item_id: Identifier
    timestamp_s: int = Field(ge=0, le=MAX_TIME_S)
    """Seconds since 1970."""
    rating: float | None = None
    label: int | None = Field(default=None, ge=0, le=1)
    """None: made from the rating by the release's rule."""
    request_id: Identifier | None = None
    """The answer that the interaction followed: its `request_id`."""


class EventsRequest(Body):
    """POST /v1/events."""

    events: list[SentEventBody] = Field(min_length=1)


Text = Annotated[
    str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\x00]+$", strict=True)
]
Fields = dict[Identifier, Annotated[list[Text], Field(max_length=100)]]


class SentItemBody(Body):
    """One item, whole: a field that is left out is empty."""

    item_id: Identifier
    title: Text | None = None
    """May be left out for a withdrawn item: it stays as it was."""
    fields: Fields = {}
    """Item field -> values."""
    is_withdrawn: bool = False
    """Whether it must not be answered any more; to send it again without this brings it back."""


class ItemsRequest(Body):
    """PUT /v1/items."""

    items: list[SentItemBody] = Field(min_length=1)


class SentUserBody(Body):
    """One profile, whole: a field that is left out is empty."""

    user_id: Identifier
    fields: Fields
    """User field -> values."""


class UsersRequest(Body):
    """PUT /v1/users."""

    users: list[SentUserBody] = Field(min_length=1)


class Answer(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)


class ItemAnswer(Answer):
    """One ranked item; scores are logits."""

    item_id: str
    title: str
    score: float
    """Final score: fused and calibrated (by CRM alone beyond the re-ranked items)."""
    crm_score: float | None
    llm_score: float | None
    """None where the language model was not asked."""


class HistoryEvent(Answer):
    """One past event."""

    item_id: str
    title: str
    timestamp_s: int
    rating: float
    label: int


class HistorySummary(Answer):
    """The history that an answer used."""

    length: int
    newest: list[HistoryEvent]
    """Newest first."""


class PastAnswer(Answer):
    """A past interaction and its part in the answer."""

    item_id: str
    title: str
    timestamp_s: int
    rating: float
    attention: float
    """Mean weight in the CRM's target attention, over the items answered."""
    is_in_prompt: bool
    """Whether the language model read it."""


class ExplanationAnswer(Answer):
    """Why the answer looks as it does."""

    gate_weights: list[float] | None
    """Weight of each adapter, mean over layers and matrices."""
    gates: list[list[float]] | None
    """The same by layer and matrix."""
    past: list[PastAnswer]


class RecommendAnswer(Answer):
    """Ranked items."""

    request_id: str | None = None
    """Names a recommendation in the table of impressions and in the events that follow it."""
    release_id: str
    mode: AnswerMode
    items: list[ItemAnswer]
    history: HistorySummary
    stage_ms: dict[str, float]
    """Wall time of each stage; those of the scorer are its whole batch's."""
    explanation: ExplanationAnswer | None = None


class EventAnswer(Answer):
    """What became of one event."""

    index: int
    event_id: str
    status: str
    """stored, duplicate or rejected."""
    reason: str | None


class EventsAnswer(Answer):
    """One status for each event, in order."""

    events: list[EventAnswer]


class SentItemAnswer(Answer):
    """What became of one item."""

    index: int
    item_id: str
    status: str
    """stored, unchanged or rejected."""
    reason: str | None


class SentItemsAnswer(Answer):
    """One status for each item, in order."""

    items: list[SentItemAnswer]
    is_embedded: bool
    """Whether no sent text is left to read: until then a new item may be found by its fields alone,
    and a changed one by the text of the release. It is made up for within minutes."""


class SentUserAnswer(Answer):
    """What became of one profile."""

    index: int
    user_id: str
    status: str
    """stored or rejected."""
    reason: str | None


class SentUsersAnswer(Answer):
    """One status for each profile, in order."""

    users: list[SentUserAnswer]


class UserHistoryAnswer(Answer):
    """A user's newest events."""

    user_id: str
    events: list[HistoryEvent]
    """Newest first."""


class UsersAnswer(Answer):
    """Users with stored events."""

    user_ids: list[str]
    """By code point."""


class NamedItemAnswer(Answer):
    """One item of the catalogue."""

    item_id: str
    title: str
    fields: dict[str, list[str]]


class ItemsAnswer(Answer):
    """Items that a search found."""

    items: list[NamedItemAnswer]
    """The one whose id is the text, then the most popular first."""


class CatalogueAnswer(Answer):
    """What may be asked for, and said of items."""

    release_id: str
    items: int
    """How many there are."""
    fields: list[str]
    """Item fields, for filters."""
    labels: list[int]
    """What an event may be labelled: 1 liked, 0 disliked."""
    rating_min: float | None
    """None, as `rating_max`, where the data have no ratings."""
    rating_max: float | None
    max_k: int
    """Most items of an answer."""
    max_history: int
    """Most items of a guest's history."""


class DeletionAnswer(Answer):
    """A deleted user."""

    user_id: str
    deleted_s: int
    """Seconds since 1970; events up to then are refused from now on."""
    events: int
    """Events that were removed."""


class RefusalAnswer(Answer):
    """A release that a replica could not use."""

    release_id: str
    """Empty: which release is live could not be read."""
    reason: str


class ExperimentAnswer(Answer):
    """A challenger of the live release, and whom it answers."""

    release_id: str
    share: float
    """Of all users."""
    is_shadow: bool
    """Whether it answers beside the live release, for the record alone."""
    started_s: int


class ReplicaAnswer(Answer):
    """What one replica holds."""

    release_id: str | None
    previous_id: str | None
    experiment: ExperimentAnswer | None
    change: int
    refusals: list[RefusalAnswer]
    """Of the releases that it should serve or try out."""


class ReleaseAnswer(Answer):
    """What the replicas hold."""

    release_id: str | None
    """The release that answers, if all replicas agree."""
    retriever: list[ReplicaAnswer]
    scorer: list[ReplicaAnswer]


class ReadyAnswer(ReleaseAnswer):
    """Whether requests can be answered."""

    is_ready: bool


class HealthAnswer(Answer):
    """The process answers."""

    status: str = "ok"


class ErrorAnswer(Answer):
    """Every answer that is not 2xx."""

    error: str
    """Name of the error."""
    message: str
    fields: list[str] = []
    """Fields of the request that are at fault (`events.2.rating`)."""


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorAnswer, "description": text}
    for code, text in {
        401: "a key is missing or unknown", 403: "the key is not good for this",
        404: "no such item or user", 422: "a field is missing, malformed or out of range",
        429: "too many requests are waiting", 503: "no release is live",
    }.items()
}
