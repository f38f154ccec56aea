"""A benchmark's YAML file -> what is asked for."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from engine.config import Section
from engine.errors import ConfigError

P = TypeVar("P", bound=Section)


def read(path: str, kind: type[P]) -> P:
    """Read a plan of a kind; raise ConfigError that names the file and what is wrong."""
    try:
        return kind.model_validate(yaml.safe_load(Path(path).read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"plan {path!r}: {error}") from error
