"""The result of the stage "voices" on disk."""

from pathlib import Path

from model_store.manifest import VoicesSpec
from model_store.voices.voices import Voices
from training.run.stage import read_certificate

VOICES_FILE = "voices.safetensors"


def read_voices(directory: Path) -> Voices | None:
    """The result of this stage; None where there are no voices. Raises StageError when it has not finished."""
    spec = read_certificate(directory)["spec"]
    return None if spec is None else Voices.load(directory / VOICES_FILE, VoicesSpec.model_validate(spec))
