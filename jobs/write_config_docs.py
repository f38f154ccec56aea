"""The settings' own descriptions -> docs/config.md.

python -m jobs.write_config_docs [--output docs/config.md]
"""

import argparse
import json
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from engine.config import EngineConfig, Section, ServingConfig

INTRODUCTION = """\
# Settings

Made from the descriptions in `engine/config.py` by `make docs`; do not edit.

A config file (`jobs/configs/*.yaml`) holds only what differs from these defaults. An unknown name,
a wrong type or a value out of range stops a job before it starts. `null` in YAML is None.
"""

HEADER = ("| setting | default | allowed | |", "| --- | --- | --- | --- |")
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; return the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/config.md.")
    parser.add_argument("--output", default="docs/config.md", help="file (default: %(default)s)")
    Path(parser.parse_args(arguments).output).write_text(render())
    return 0


def render() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, "## Jobs\n", "`--config FILE` of every job.\n"]
    parts += _tables("", EngineConfig)
    parts += ["## Serving\n", "`args` of the application in `serve_configs/*.yaml`.\n"]
    parts += _tables("", ServingConfig)
    return "\n".join(parts)


def _tables(name: str, section: type[Section]) -> Iterator[str]:
    """Yield a section's table, then those of the sections in it."""
    fields = section.model_fields.items()
    inner = [(key, kind) for key, field in fields if (kind := _section(field)) is not None]
    plain = [(key, field) for key, field in fields if _section(field) is None]
    if name:
        yield f"### `{name}`\n\n{_line(section.__doc__)}\n"
    if plain:
        rows = [_row(key, field) for key, field in plain]
        yield "\n".join([*HEADER, *rows, ""])
    for key, kind in inner:
        yield from _tables(f"{name}.{key}" if name else key, kind)


def _section(field: FieldInfo) -> type[Section] | None:
    """Return the section class of a field that holds a section."""
    kind: Any = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _row(name: str, field: FieldInfo) -> str:
    meaning = _line(field.description).replace("<", "&lt;")
    cells = [f"`{name}`", f"`{_value(field.default)}`", _allowed(field), meaning]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _line(text: str | None) -> str:
    """Return a description as one line."""
    return " ".join((text or "").split())


def _value(value: Any) -> str:
    """Return a default as a config file would hold it."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _allowed(field: FieldInfo) -> str:
    """Return the type, and the limits if there are any."""
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata for name, sign in BOUNDS.items() if hasattr(limit, name)
    ]
    return " ".join([_type(field.annotation), ", ".join(limits)]).strip()


def _type(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    words = {bool: "true, false", int: "integer", float: "number", str: "text"}
    return words.get(annotation, str(annotation))


if __name__ == "__main__":
    sys.exit(main())
