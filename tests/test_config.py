"""Settings are whole, frozen, and wrong ones are named before anything starts."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from engine import config as settings
from engine.config import EngineConfig, Section, ServingConfig, load_config
from engine.errors import ConfigError

REPO = Path(__file__).resolve().parents[1]

SECTIONS = [
    kind for kind in vars(settings).values()
    if isinstance(kind, type) and issubclass(kind, Section) and kind is not Section
]


def _write(folder: Path, values: Any) -> str:
    path = folder / "config.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_section_survives_pickle_and_json(section: type[Section]) -> None:
    value = section()
    assert pickle.loads(pickle.dumps(value)) == value
    assert section.model_validate(value.settings()) == value
    assert section.model_validate_json(value.model_dump_json()) == value


@pytest.mark.parametrize("section", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_setting_has_a_valid_default_and_a_description(section: type[Section]) -> None:
    defaults = {name: getattr(section(), name) for name in section.model_fields}
    section.model_validate(defaults)
    for name, field in section.model_fields.items():
        is_section = isinstance(defaults[name], Section)
        assert is_section or (field.description or "").strip(), f"{section.__name__}.{name}"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda kind: kind.__name__)
def test_sections_are_frozen(section: type[Section]) -> None:
    value = section()
    name = next(iter(section.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(value, name, getattr(value, name))


def test_settings_load_without_torch() -> None:
    script = (
        "import sys, engine.config\n"
        "found = {'torch', 'transformers', 'ray', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(found)) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()


def test_a_file_holds_only_what_differs(tmp_path: Path) -> None:
    path = _write(tmp_path, {"crm": {"epochs": 9}})
    expected = EngineConfig().model_copy(
        update={"crm": EngineConfig().crm.model_copy(update={"epochs": 9})}
    )
    assert load_config(path) == expected
    assert load_config(_write(tmp_path, "")) == EngineConfig()


def test_overrides_go_over_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, {"run": {"seed": 1, "root": "here"}})
    overrides = {"run.seed": 3, "source.label.kind": "implicit"}
    loaded = load_config(path, overrides)
    assert (loaded.run.seed, loaded.run.root) == (3, "here")
    assert loaded.source.label.kind == "implicit"


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"crm": {"epochs": 0}}, r"crm\.epochs", "got 0"),
    ({"crm": {"epoch": 3}}, r"crm\.epoch", "got 3"),
    ({"crn": {}}, "crn", "not permitted"),
    ({"bank": {"mixing": "sum"}}, r"bank\.mixing", "got 'sum'"),
    ({"bank": {"temperature": float("nan")}}, r"bank\.temperature", "got nan"),
    ({"run": {"seed": "soon"}}, r"run\.seed", "got 'soon'"),
    ({"source": {"label": {"kind": "stars"}}}, r"source\.label\.kind", "got 'stars'"),
    ({"source": {"rating_min": 5, "rating_max": 1}}, r"source\.rating_min", "rating_max"),
    ({"split": {"train": 0.9, "validation": 0.2}}, r"split\.train", "test window"),
    ({"crm": {"num_workers": 3}}, r"crm\.num_workers 3", r"crm\.lanes 4"),
    ({"crm": {"batch_size": 510}}, r"crm\.lanes 4", r"crm\.batch_size 510"),
    ({"adapters": {"num_workers": 3}}, r"adapters\.num_workers 3", r"adapters\.batch_slates 4"),
    ({"prompt": {"scope": "candidate"}, "bank": {"gate": "hybrid"}}, r"bank\.gate", "hybrid"),
    ({"adapters": {"loss": "pairs"}, "prompt": {"scope": "candidate"}}, r"adapters\.loss", "slate"),
    ({"adapters": {"loss": "pairs"}, "bank": {"gate": "target"}}, r"adapters\.loss", "target"),
    ({"histories": {"num_partitions": 1}}, r"histories\.num_partitions", "got 1"),
    ({"base_model": {"device": "cuda:1"}}, r"base_model\.device", "got 'cuda:1'"),
    ({"base_model": {"device": "cuda"}}, r"base_model\.device 'cuda'", r"adapters\.use_gpu"),
    ({"prompt": {"system": "Dear {user}"}}, r"prompt\.system", "noun, positive and negative"),
    ({"prompt": {"system": "{noun.size}"}}, r"prompt\.system", "noun, positive and negative"),
    ({"prompt": {"system": "{"}}, r"prompt\.system", "doubled"),
    ({"adapters": {"learn": "residuals", "loss": "vocabulary"}}, r"adapters\.learn", "vocabulary"),
    ({"run": {"state": "postgresql://ann:secret@h/db"}}, r"run\.state.*PGPASSWORD",
     r"ann:\*\*\*@h/db"),
    ({"run": {"state": "postgresql://ann:pa/ss@word@h/db"}}, r"run\.state.*PGPASSWORD",
     r"got 'postgresql://ann:\*\*\*@h/db'"),
    ({"run": {"state": "postgresql://ann@h/db?password=secret"}}, r"run\.state.*PGPASSWORD",
     r"password=\*\*\*'"),
    ({"run": {"state": "somewhere"}}, r"run\.state.*sqlite:///file", "got 'somewhere'"),
    ({"run": None}, "run", "got None"),
    ({"run": 3}, "run", "got 3"),
]


@pytest.mark.parametrize(("values", "setting", "value"), WRONG, ids=[str(w[0]) for w in WRONG])
def test_a_wrong_setting_is_named_with_its_value(
    values: dict[str, Any], setting: str, value: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=setting) as caught:
        load_config(_write(tmp_path, values))
    caught.match(value)


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    path = _write(tmp_path, {"crm": {"epochs": 0}, "bank": {"rank": -1}})
    with pytest.raises(ConfigError, match=r"crm\.epochs.*bank\.rank"):
        load_config(path)


@pytest.mark.parametrize(("text", "message"), [
    ("a: [1", "is not YAML"), ("- 1", "must hold sections, got list"),
    ("text", "must hold sections, got str"), ("!!python/object:os.system {}", "is not YAML"),
])
def test_what_is_no_config_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(_write(tmp_path, text))


def test_a_missing_file_is_named_with_the_working_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml' is not a file \(working folder"):
        load_config(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize("section", [None, 3])
def test_an_override_of_what_is_no_section_is_refused(section: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run"):
        load_config(_write(tmp_path, {"run": section}), {"run.seed": 3})


@pytest.mark.parametrize("path", sorted((REPO / "jobs" / "configs").glob("*.yaml")),
                         ids=lambda path: path.name)
def test_the_configs_of_jobs_are_valid(path: Path) -> None:
    load_config(str(path))


@pytest.mark.parametrize("path", sorted((REPO / "serve_configs").glob("*.yaml")),
                         ids=lambda path: path.name)
def test_the_arguments_of_applications_are_valid(path: Path) -> None:
    applications = yaml.safe_load(path.read_text())["applications"]
    assert applications
    for application in applications:
        ServingConfig.model_validate(application.get("args", {}))
