"""The folder of a reasoner in a bundle: `words/reasoner/`.

    config.json, *.safetensors, tokenizer*     the language model, an ordinary checkpoint
    ranker.safetensors                         the weights of the ranking that fit it

Nothing is unpickled, and no code of a checkpoint runs.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from model_store.errors import BundleCorrupt
from model_store.reasoner.dialogue import Format
from model_store.reasoner.language import LanguageReasoner
from model_store.reasoner.policy import Policy
from model_store.words.ranker import Ranker

REASONER, RANKER = "reasoner", "ranker.safetensors"


def save_reasoner(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ranker: Ranker, directory: Path) -> None:
    """`model` without adapters: they must be merged before."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    save_file(ranker.arrays(), directory / RANKER)


def open_reasoner(directory: Path, *, device: torch.device | str = "cpu") -> LanguageReasoner:
    """In the precision in which it was saved. Raises BundleCorrupt."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype="auto"
        )
        torch.nn.Module.to(model, device)  # the model's own method has no types
        ranker = Ranker.from_arrays(load_file(directory / RANKER))
        return LanguageReasoner(Policy(model.eval(), Format(tokenizer)), ranker)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BundleCorrupt(f"{directory}: not the reasoner of a bundle ({error}); build the bundle again") from error
