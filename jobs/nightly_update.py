"""One night: the day's events -> histories -> CRM -> bank -> challenger -> judged -> live, or not.

python -m jobs.nightly_update --config jobs/configs/ml-100k.yaml [--until 2026-11-23]
    [--events FOLDER] [--address http://127.0.0.1:8265]

Goes on from the live release, with the events that the service received since (or those of a
folder, laid out as `jobs/collect.py` writes it). The new release becomes the live one if it is no
worse on rows that neither release learned; if it is, or if anything fails, the live one stays.
Every night is in the ledger of the service's database. A night that was stopped goes on where it
was; two never run at once. Exit code 0: promoted or held; 1: failed.
"""

import argparse
import logging
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.code_version import code_version
from engine.config import EngineConfig, at_home, load_config
from engine.errors import (
    ConfigError,
    EmptyExamError,
    EmptySourceError,
    EngineError,
    ReleaseError,
)
from jobs.evaluate import read_moment
from jobs.exit_code import exit_code
from jobs.promote import add_service_options, check_registry, read_details, tell
from jobs.train_reclora import read_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from engine.artifacts import Artifact
    from engine.releases.promotion import Decision
    from engine.releases.registry import Registry
    from engine.stages.parent import Parent
    from engine.state.nights import Entry, EntryKind

log = logging.getLogger(__name__)

LEASE = "nights"
"""The lease under which a night, or who deletes after it, works alone."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a night made of its day."""

    release_id: str | None
    """The challenger; None where there was nothing to learn."""
    decision: "Decision"
    made: "Sequence[Artifact]"
    """What came in and what was learned from it."""
    report: "Artifact | None" = None
    """The exam of the challenger and its rival: the live release."""
    old_report: "Artifact | None" = None
    """That of the old panel."""

    def detail(self) -> dict[str, Any]:
        """Return what the ledger keeps: keys and counts."""
        from engine.stages.nights_page import day_of, difference_of

        found, old = read_report(self.report), read_report(self.old_report)
        return {
            "artifacts": [[each.kind, each.key] for each in self.made],
            "facts": {each.kind: dict(each.facts) for each in self.made},
            "seconds": [[each.kind, each.manifest()["seconds"]] for each in self.made],
            "report": self.report and self.report.uri, "code": code_version(),
            "old_report": self.old_report and self.old_report.uri,
            "difference": found and difference_of(found), "day": found and day_of(found),
            "old": old and difference_of(old),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the night; return the exit code."""
    parser = argparse.ArgumentParser(description="Learn the day's events, if that is no loss.")
    parser.add_argument("--config", required=True, help="YAML file of settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="one setting by its dotted name, e.g. night.max_slates=100 (repeatable)",
    )
    parser.add_argument("--until", help="end of the day, ISO date or moment (UTC); by default now")
    parser.add_argument(
        "--events", nargs="+", metavar="FOLDER",
        help="folders of new events, oldest first, instead of the service's database",
    )
    add_service_options(parser)
    return exit_code(spend, parser.parse_args(arguments))


def spend(options: argparse.Namespace) -> None:
    """Run the night and, if its release became live, tell the running application."""
    config = load_config(options.config, read_settings(options.set))
    if options.address:
        check_registry(read_details(options.address), config.run.registry)
    ended = run(
        config, until_s=read_moment(options.until, "--until"),
        events=options.events and [at_home(folder) for folder in options.events],
    )
    describe(ended)
    if options.address and ended.kind == "promoted":
        tell(options, ended.release_id, hint=f"promote {ended.release_id!r} again")
        print(f"every replica answers from {ended.release_id}")


def run(
    config: EngineConfig, *, until_s: int | None = None, events: Sequence[str] | None = None
) -> "Entry":
    """Run a night; return how it ended, as the ledger has it.

    events: folders of what came in; those of nights since the live release that were held or failed
    are taken again. None: the service's database knows. until_s: the end, exclusive. Raises
    NightRunningError if another night runs, and what failed, which the ledger then names.
    """
    from engine.releases.registry import Registry  # --help needs none of these
    from engine.state.database import open_database
    from engine.state.leases import leased
    from engine.state.nights import EntryKind
    from jobs.forget import after_night
    from jobs.start import configure_logging, start_ray

    configure_logging()
    if config.run.state is None:
        raise ConfigError("run.state is null: a night needs a database for its ledger")
    registry, database = Registry(config.run.registry), open_database(config.run.state)
    try:
        with leased(database, LEASE, owner_name(), ttl_s=config.night.lease_s) as lease:
            opened = open_night(registry, database, until_s, events)
            if opened.kind is not EntryKind.OPENED:         # it was promoted, and then stopped
                return opened
            start_ray()
            try:
                made = challenge(registry, config, opened)
                lease.check()
                kind = decide_live(registry, opened.parent_id, made)
            except Exception as error:      # of whatever kind: the next night is a new one
                fail(database, config, opened, error)
                raise
            named = replace(opened, release_id=made.release_id)
            ended = end_night(
                database, config, named.ended(kind, made.decision.reasons, made.detail())
            )
            after_night(registry, config, database, lease)
            return ended
    finally:
        database.dispose()


def end_night(database: "Engine", config: EngineConfig, ended: "Entry") -> "Entry":
    """Append how a night ended, and write the page of all nights, which the next one can, too."""
    from engine import storage
    from engine.stages.nights_page import write_nights
    from engine.state.nights import append, entries

    ended = append(database, ended)
    try:
        log.info("%s", write_nights(storage.absolute(config.run.root), entries(database)))
    except OSError as error:
        log.error("the page of all nights is not written: %s", error)
    return ended


def fail(database: "Engine", config: EngineConfig, opened: "Entry", error: Exception) -> None:
    """Append that a night failed; where that fails too, the next night goes on from its beginning.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from engine.state.nights import EntryKind

    reason = str(error) if isinstance(error, EngineError) else repr(error)
    try:
        end_night(database, config, opened.ended(EntryKind.FAILED, [reason], {}))
    except SQLAlchemyError as unwritten:
        log.error("the ledger does not tell that the night failed: %s", unwritten)


def owner_name() -> str:
    """Return how people know this process."""
    return f"{socket.gethostname()}, process {os.getpid()}"


def open_night(
    registry: "Registry", database: "Engine", until_s: int | None,
    events: Sequence[str] | None,
) -> "Entry":
    """Return the beginning of this night: that of one that was interrupted, with its bounds and
    events, or a new one. One whose release is live, though its end is not recorded, gets this end.
    """
    from engine.state.nights import Entry, EntryKind, append, unfinished, watermark_of

    live, begun = registry.live().release_id, unfinished(database)
    if begun is not None and begun.detail["registry"] == registry.root:
        if begun.parent_id == live:
            log.info("night %d goes on, from %s", begun.night_id, live)
            return begun
        if begun.parent_id == registry.read_manifest(live).facts.parent_id:
            child = replace(begun, release_id=live)
            reason = "its release was live when it was stopped"
            return append(database, child.ended(EntryKind.PROMOTED, [reason], {}))
        reason = f"it was interrupted, and meanwhile {live!r} became live"
        append(database, begun.ended(EntryKind.FAILED, [reason], {}))
    since_s = watermark_of(database, live) or 0
    detail = {
        "registry": registry.root,
        "events": None if events is None else pending_folders(database, registry, since_s, events),
    }
    return append(database, Entry(
        EntryKind.OPENED, live, since_s=since_s, until_s=end_of_day(until_s, since_s, events),
        detail=detail,
    ))


def end_of_day(until_s: int | None, since_s: int, events: Sequence[str] | None) -> int:
    """Return the end of a night's events; ConfigError where it cannot be the one asked for."""
    from engine.stages.page import format_moment
    from engine.state.histories import newest_bound

    newest_s = newest_bound()
    if until_s is None:
        if events is not None:
            raise ConfigError("--events needs --until: the end of the days in the folders")
        return max(newest_s, since_s)
    if until_s < since_s:
        raise ConfigError(
            f"--until: {format_moment(until_s)} is before {format_moment(since_s)}, up to which "
            "the live release has learned"
        )
    if events is None and until_s > newest_s:
        raise ConfigError(
            f"--until: {format_moment(until_s)} is after {format_moment(newest_s)}, up to which "
            "events are known to be stored"
        )
    return until_s


def pending_folders(
    database: "Engine", registry: "Registry", since_s: int, events: Sequence[str]
) -> list[str]:
    """Return the folders of the nights after the live release's, then those given; each once."""
    from engine.state.nights import EntryKind, entries

    begun = [
        entry for entry in entries(database)
        if entry.kind is EntryKind.OPENED and entry.detail["registry"] == registry.root
        and (entry.until_s or 0) > since_s
    ]
    earlier = [folder for entry in begun for folder in entry.detail["events"] or ()]
    return list(dict.fromkeys([*earlier, *events]))


def challenge(
    registry: "Registry", config: EngineConfig, opened: "Entry", *, rival_id: str | None = None
) -> Challenge:
    """Make a challenger of the day, and judge it against a rival: by default its parent."""
    from engine import storage
    from engine.releases.promotion import decide
    from engine.stages.adapters import carry_adapters, train_adapters
    from engine.stages.crm import score_crm, train_crm
    from engine.stages.exam import Period
    from engine.stages.extended_histories import extend_histories
    from engine.stages.interactions import service_deletions
    from engine.stages.items import extend_item_text
    from engine.stages.judgement import judge, judge_memory
    from engine.stages.night_slates import build_night_slates
    from engine.stages.parent import Parent
    from engine.stages.popularity import count_popularity
    from engine.stages.prompts import build_prompts
    from engine.stages.release import Descent, Parts, publish_release
    from engine.state.events import MAX_AHEAD_S

    root, (_, end_s) = storage.absolute(config.run.root), opened.bounds_s
    parent = Parent.read(registry, opened.parent_id, root, config)
    roles, tonight = parent.roles, config.at_night()
    days = import_days(root, registry, config, opened)
    if not days:
        return _held("no event came in", [])
    made = list(days)
    deleted, histories = service_deletions(config.run.state), parent.histories
    for day in days:
        histories = extend_histories(
            root, config, histories, day, end_s=end_s, deleted=deleted,
            ahead_s=0 if opened.detail["events"] else MAX_AHEAD_S + 1,
        )
        made.append(histories)
    item_text = extend_item_text(root, config, parent.item_text, parent.histories, histories)
    anew = config.night.from_scratch
    rows_until = parent.all_rows_until if anew else parent.rows_until
    rows = rows_until(end_s, config.night.tune_days)
    popularity = count_popularity(root, config, histories, roles=roles)
    slates = build_night_slates(root, config, histories, popularity, rows)
    made += [item_text, popularity, slates]
    if not slates.facts.get("crm_rows"):
        return _held("no new row trains the CRM", made)
    crm = train_crm(
        root, config, histories, slates, item_text, parent=None if anew else parent.crm,
        roles=roles,
    )
    crm_scores = score_crm(root, config, histories, slates, item_text, crm)
    prompts = build_prompts(root, tonight, histories, slates, item_text)
    if config.night.learn == "all" and slates.facts.get("bank_rows"):
        bank = train_adapters(
            root, tonight, prompts, crm, crm_scores, parent=None if anew else parent.bank
        )
    else:
        bank = carry_adapters(root, parent.bank, crm)
    fusion = refit_fusion(root, tonight, parent, slates, prompts, crm_scores, bank, popularity)
    parts = Parts(histories, item_text, crm, bank, popularity, fusion, None)
    release_id = publish_release(root, config, parts, Descent(opened.parent_id, roles))
    made += [crm, crm_scores, prompts, bank, fusion]
    two, new = [release_id, rival_id or opened.parent_id], Period(parent.day_s, end_s)
    try:
        report = judge(root, config, histories, two, roles, new)
    except EmptyExamError as error:
        return _held(f"nothing to judge by: {error}", made, release_id)
    old_report = judge_memory(root, config, histories, two, roles, end_s)
    decision = decide(
        read_report(report) or {}, config.night.promotion, read_report(old_report)
    )
    return Challenge(release_id, decision, made, report, old_report)


def read_report(report: "Artifact | None") -> dict[str, Any] | None:
    """Return the figures of an exam's report, if there is one."""
    from engine import storage

    return None if report is None else storage.read_json(report.path("report.json"))


def _held(
    reason: str, made: "Sequence[Artifact]", release_id: str | None = None
) -> Challenge:
    from engine.releases.promotion import Decision, Verdict

    return Challenge(release_id, Decision(Verdict.HOLD, (reason,)), made)


def import_days(
    root: str, registry: "Registry", config: EngineConfig, opened: "Entry"
) -> "list[Artifact]":
    """Return the checked interactions of every folder that has any, or of the service's day."""
    from engine.stages.collected import collect_day, source_of
    from engine.stages.interactions import import_data

    events = opened.detail["events"]
    if events is None:
        assert config.run.state is not None
        since_s, until_s = opened.bounds_s
        drop = collect_day(
            root, registry, opened.parent_id, config.run.state, since_s=since_s, until_s=until_s
        )
        events = [drop.uri]
    days = []
    for folder in events:
        source = source_of(config.source, folder)
        try:
            days.append(import_data(root, config.model_copy(update={"source": source})))
        except EmptySourceError:
            log.info("%s holds no event", folder)
    return days


def refit_fusion(
    root: str, config: EngineConfig, parent: "Parent", slates: "Artifact", prompts: "Artifact",
    crm_scores: "Artifact", bank: "Artifact", popularity: "Artifact",
) -> "Artifact":
    """Return the weights of CRM and language model: the parent's where few rows could fit them."""
    from engine.stages.evaluation import fit_fusion
    from engine.stages.scores import score_prompts
    from engine.types import Window

    if slates.facts.get("validation_rows", 0) < config.night.min_tune_rows:
        return parent.fusion
    scores = score_prompts(
        root, config, slates, prompts, crm_scores, bank, popularity, windows=(Window.VALIDATION,)
    )
    return fit_fusion(root, config, scores)


def decide_live(registry: "Registry", parent_id: str, made: Challenge) -> "EntryKind":
    """Promote the challenger if that was decided; ReleaseError if another release became live."""
    from engine.releases.promotion import Verdict
    from engine.state.nights import EntryKind

    if made.decision.verdict is Verdict.HOLD or made.release_id is None:
        return EntryKind.HELD
    live = registry.live().release_id
    if live not in (parent_id, made.release_id):
        raise ReleaseError(
            f"release {live!r} became live during the night, which went on from {parent_id!r}"
        )
    registry.promote(made.release_id)
    return EntryKind.PROMOTED


def describe(ended: "Entry") -> None:
    """Print what came of a night."""
    challenger = ended.release_id or "no challenger"
    print(f"night {ended.opened_id}: {ended.kind} ({challenger}, live was {ended.parent_id})")
    for reason in ended.reasons:
        print(f"  {reason}")
    for title, name in (("report", "report"), ("report of the old panel", "old_report")):
        if ended.detail.get(name):
            print(f"{title}: {ended.detail[name]}/index.html")


if __name__ == "__main__":
    sys.exit(main())
