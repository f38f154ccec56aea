"""What a replay is made of: a YAML file beside this one."""

from typing import Any, Literal

from pydantic import Field

from benchmarks import plans
from engine.config import EngineConfig, Section, load_config
from engine.errors import ConfigError


class Way(Section):
    """One way to spend the nights."""

    kind: Literal["nights", "frozen", "whole"] = Field(default="nights")
    """`nights`: as `jobs/nightly_update.py` does. `frozen`: the first release stays. `whole`: a
    training like the first one, on all events up to then."""
    every: int = Field(default=1, ge=1)
    """`whole`: nights from one training to the next."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Dotted names that differ in its nights."""


class Plan(Section):
    """A data set, where its base ends, its nights, and the ways to spend them."""

    title: str
    """Heading in the results."""
    config: str
    """The engine's configuration of this data set."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Dotted names that differ from it."""
    base: float = Field(gt=0, lt=1)
    """Share of all events, by time, that the first training has."""
    nights: int = Field(ge=1)
    """Nights after it, of equally many events each."""
    end: float = Field(default=1.0, gt=0, le=1)
    """Share of all events, by time, at which the last day ends: the day after the last night."""
    arms: dict[str, Way]
    rows: int = Field(default=1500, ge=1)
    """Rows (of whole users) of each next day that the language model scores."""

    def engine_config(self, more: dict[str, Any] | None = None) -> EngineConfig:
        """Return the configuration that all arms share, `more` on top."""
        return load_config(self.config, {**self.overrides, **(more or {})})

    def shares(self) -> list[float]:
        """Return the share of events at the end of the base, of each day and of the day after."""
        days = self.nights + 1
        return [self.base + (self.end - self.base) * day / days for day in range(days + 1)]


def read_plan(path: str) -> Plan:
    """Read a plan; raise ConfigError that names what is wrong."""
    plan = plans.read(path, Plan)
    if plan.base >= plan.end:
        raise ConfigError(f"plan {path!r}: base {plan.base} must be before end {plan.end}")
    return plan
