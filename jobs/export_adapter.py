"""One user's mix of the live bank -> an adapter in PEFT's format.

python jobs/export_adapter.py --user 405 --registry runs/releases --out adapters/405 [--item 50]

`target` and `hybrid` gates depend on the candidate: they need --item. With `hybrid` gates the
engine reads the shared history under the user's own mix and only the candidate under this one, so
its scores are not quite those of the adapter. PEFT loads the folder with
`PeftModel.from_pretrained(base_model, folder)`. Where the release has a readout (`bank.readout:
block`), readout.safetensors beside it holds what its scores add to the log-odds of the answer.
Relative paths start from LIFELORA_HOME, if that is set.
"""

import argparse
import sys
from collections.abc import Sequence

from engine.config import ServingConfig, at_home, database_at_home
from engine.errors import ConfigError
from jobs.exit_code import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; return the exit code."""
    defaults = ServingConfig()
    parser = argparse.ArgumentParser(description="Export one user's adapter in PEFT's format.")
    parser.add_argument("--user", required=True, help="user id")
    parser.add_argument("--item", help="candidate, for target and hybrid gates")
    parser.add_argument("--registry", required=True, help="folder or URI of the releases")
    parser.add_argument("--release", help="release id; by default the live one")
    parser.add_argument("--database", default=defaults.database_url, help="URL of the histories")
    parser.add_argument("--model-cache", default=defaults.model_cache, help="folder of base models")
    parser.add_argument("--out", required=True, help="folder to write")
    options = parser.parse_args(arguments)
    return exit_code(export, options)


def export(options: argparse.Namespace) -> None:
    """Compose the user's gates from the stored history and write the adapter."""
    import numpy as np  # --help needs no torch

    from engine.errors import UnknownUserError
    from engine.models.adapter_export import export_adapter
    from engine.models.base import model_path
    from engine.recommender.loading import load_release
    from engine.recommender.lookup import newest_known
    from engine.releases.registry import Registry
    from engine.state.database import open_database
    from engine.types import GateInput

    registry, model_cache = Registry(at_home(options.registry)), at_home(options.model_cache)
    release_id = options.release or registry.live().release_id
    config = registry.read_config(release_id)
    base = config.base_model.model_copy(update={"cache": model_cache})
    release = load_release(registry, release_id, model_cache=model_cache, device="cpu")
    assert release.language is not None
    model = release.language.model
    if model.config.gate is not GateInput.USER and options.item is None:
        raise ConfigError(f"release {release_id!r} has {model.config.gate} gates: name an --item")
    database = open_database(database_at_home(options.database))
    history = newest_known(release, database, options.user, release.max_history)
    database.dispose()
    if not len(history):
        raise UnknownUserError(f"user {options.user!r} has no events in {options.database}")
    item = release.catalogue.index_of(options.item) if options.item else 1
    profile = release.profiles.of(options.user)
    [output] = release.crm.score([history], [profile], [np.array([item])])
    out = at_home(options.out)
    export_adapter(model, model.gates(output)[-1], out, model_path(base))
    print(f"adapter: {out}")


if __name__ == "__main__":
    sys.exit(main())
