"""What one data set's table is made of: a YAML file beside this one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks import plans
from benchmarks.quality.rows import ROWS, Row
from engine.config import EngineConfig, Section, load_config
from engine.errors import ConfigError

REFERENCES = ("popularity", "crm", "crm-text", "crm-whole", "din", "sim")


class Plan(Section):
    """A data set, what is changed of its configuration, and the rows of its table."""

    title: str
    """Heading of the data set in the results."""
    config: str
    """The engine's configuration of this data set."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Dotted names that differ from it, for every row."""
    candidate_overrides: dict[str, Any] = Field(default_factory=dict)
    """Dotted names that differ in candidate scope, where equal labels cost several times more."""
    rates: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Learning rates of bank and gates that a row tries with the first seed, as multiples of the
    configured ones; the best validation AUC wins. Banks that are not named take the rate of the
    first bank that is, LoRAs that of the first LoRA, or the configured one if there is none."""
    seeds: tuple[int, ...] = (1,)
    """Initial weights and batch orders of each row; the sample stays the same."""
    rows: tuple[str, ...]
    """Names of rows.ROWS, in the order of their training."""
    once: tuple[str, ...] = ()
    """Those of them that train with the first seed alone."""
    references: tuple[str, ...] = ()
    """Rows without training of a language model: names of REFERENCES."""
    lists: str | None = None
    """Row whose top-k lists are measured beside those of other libraries, with the first seed."""

    def engine_config(self) -> EngineConfig:
        """Return the configuration that all rows share."""
        return load_config(self.config, self.overrides)

    def row_config(
        self, row: Row, rate: float = 1.0, more: Mapping[str, Any] | None = None
    ) -> EngineConfig:
        """Return a row's configuration; `rate` multiplies the learning rates of bank and gates,
        `more` wins over all.
        """
        adapters = self.engine_config().adapters
        return load_config(self.config, {
            **self.overrides, **(self.candidate_overrides if row.in_candidate_scope else {}),
            **row.settings,
            "adapters.learning_rate": adapters.learning_rate * rate,
            "adapters.gate_learning_rate": adapters.gate_learning_rate * rate,
            "evaluation.references": list(row.references), **(more or {}),
        })


def results_folder(plan: str, out: str | None = None) -> Path:
    """Return the folder of a plan's result files, named after its file unless `out` is given."""
    return Path(out or f"benchmarks/results/quality/{Path(plan).stem}")


def read_plan(path: str) -> Plan:
    """Read a plan; raise ConfigError that names what is wrong."""
    plan = plans.read(path, Plan)
    unknown = [name for name in plan.rows if name not in ROWS]
    if unknown:
        raise ConfigError(f"plan {path!r} names rows {unknown}; there are {sorted(ROWS)}")
    unknown = [name for name in plan.once if name not in plan.rows]
    if unknown:
        raise ConfigError(f"plan {path!r} trains {unknown} once; its rows are {list(plan.rows)}")
    unknown = [name for name in plan.rates if name not in plan.rows]
    if unknown:
        raise ConfigError(f"plan {path!r} has rates of {unknown}; its rows are {list(plan.rows)}")
    empty = [name for name, rates in plan.rates.items() if not rates or min(rates) <= 0]
    if empty:
        raise ConfigError(f"plan {path!r}: the rates of {empty} must be one or more numbers > 0")
    unknown = [name for name in plan.references if name not in REFERENCES]
    if unknown:
        raise ConfigError(f"plan {path!r} names references {unknown}; there are {REFERENCES}")
    return plan
