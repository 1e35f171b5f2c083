"""A bundle opens whole and verified, or not at all, with an error that names the file."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_store.bundle import (
    INDEX,
    ITEMS,
    MANIFEST,
    RETRIEVER,
    Bundle,
    BundleWriter,
    build_retriever,
    describe_files,
    read_manifest,
    weights_sha256,
)
from model_store.errors import (
    BundleCorrupt,
    BundleError,
    BundleNotFound,
    FormatTooNew,
    SpaceMismatch,
    UnsupportedBackbone,
)
from model_store.manifest import FileEntry, RetrieverSpec, space_id
from tests.conftest import TITLES, make_model, write_bundle

FILES = (RETRIEVER, ITEMS, INDEX, "lm/model.safetensors", "lm/config.json", "lm/tokenizer.json")


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy on disk that the test may spoil."""
    return shutil.copytree(bundle_path, tmp_path / "copy")


def edit_manifest(path: Path, **fields: object) -> None:
    facts = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**facts, **fields}))


def test_what_was_written_is_opened(bundle_path: Path) -> None:
    bundle = Bundle.open(str(bundle_path))
    assert [item.title for item in bundle.catalogue.items] == TITLES
    assert len(bundle.index) == len(TITLES) == bundle.manifest.num_items
    assert bundle.lm.split_layer == 2 and bundle.prompt.spec.recent_length == 3
    torch.manual_seed(1)
    for name, tensor in build_retriever(bundle.manifest).state_dict().items():
        assert bundle.retriever.state_dict()[name].equal(tensor), f"the retriever's {name} changed on disk"
    original = make_model("llama").state_dict()
    assert all(
        tensor.equal(original[name]) for name, tensor in bundle.lm.model.state_dict().items() if name in original
    )
    assert not bundle.retriever.training


def test_the_manifest_lists_every_file(bundle_path: Path) -> None:
    manifest = read_manifest(bundle_path)
    on_disk = {path.relative_to(bundle_path).as_posix() for path in bundle_path.rglob("*") if path.is_file()}
    assert set(manifest.files) == on_disk - {MANIFEST}
    assert set(FILES) <= on_disk


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleCorrupt, match=f"{name} is missing"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_named(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1])
    with pytest.raises(BundleCorrupt, match=f"{name} has {len(content) - 1} bytes"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_byte_is_noticed(copy: Path, name: str, place: int) -> None:
    content = bytearray((copy / name).read_bytes())
    content[place] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleCorrupt, match=f"{name} differs from its checksum"):
        Bundle.open(copy)


def test_no_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match=r"training\.pipeline"):
        Bundle.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format_version": 1}', '{"format_version": "1"}', "\xff"]
)
def test_what_is_not_a_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleCorrupt, match=r"manifest\.json"):
        Bundle.open(copy)


def test_a_later_format_is_told_from_damage(copy: Path) -> None:
    edit_manifest(copy, format_version=2, a_field_of_the_future=1)
    with pytest.raises(FormatTooNew, match=r"format 2.*reads up to 1"):
        Bundle.open(copy)


def test_other_weights_than_those_of_the_space_are_refused(copy: Path) -> None:
    make_model("llama", seed=9).save_pretrained(copy / "lm")
    described = {name: entry.model_dump() for name, entry in describe_files(copy).items()}
    edit_manifest(copy, files=described)
    with pytest.raises(SpaceMismatch, match="language model"):
        Bundle.open(copy)


@pytest.mark.parametrize("change", [{"split_layer": 1}, {"base_model": "x"}])
def test_another_space_than_the_facts_say_is_refused(copy: Path, change: dict[str, object]) -> None:
    edit_manifest(copy, backbone={**read_manifest(copy).backbone.model_dump(), **change})
    with pytest.raises(SpaceMismatch):
        Bundle.open(copy)


@pytest.mark.parametrize("name", [RETRIEVER, ITEMS, INDEX])
def test_nothing_is_opened_without_a_checksum(copy: Path, name: str) -> None:
    files = {key: entry.model_dump() for key, entry in read_manifest(copy).files.items() if key != name}
    edit_manifest(copy, files=files)
    with pytest.raises(BundleCorrupt, match=f"{name} is not among the files"):
        Bundle.open(copy)


def test_parts_that_disagree_are_refused(copy: Path) -> None:
    edit_manifest(copy, num_items=19)
    with pytest.raises(BundleCorrupt, match="number of items"):
        Bundle.open(copy)
    edit_manifest(copy, num_items=20, retriever=RetrieverSpec(width=17).model_dump())
    with pytest.raises(BundleCorrupt, match=r"retriever\.safetensors"):
        Bundle.open(copy)


def test_extra_files_do_not_matter_unless_transformers_would_read_them(copy: Path) -> None:
    (copy / "demo-interactions.jsonl").write_text("{}")
    (copy / "lm" / ".DS_Store").write_text("")
    Bundle.open(copy)
    (copy / "lm" / "adapter_config.json").write_text("{}")
    with pytest.raises(BundleCorrupt, match=r"lm/adapter_config\.json does not belong"):
        Bundle.open(copy)


def test_a_window_of_attention_that_is_too_short_is_refused(make_bundle: Callable[..., Path]) -> None:
    """Padding between memory, prompt and answer counts as columns there: scores would be wrong without a sign."""
    with pytest.raises(UnsupportedBackbone, match=r"recent_length"):
        Bundle.open(make_bundle(architecture="mistral"))


@pytest.mark.parametrize("architecture", ["qwen3", "gemma", "gpt_neox"])
def test_bundles_of_other_architectures_open(make_bundle: Callable[..., Path], architecture: str) -> None:
    assert Bundle.open(make_bundle(architecture=architecture)).lm.hidden_size == 32


def fill(writer: BundleWriter, source: Path) -> None:
    """The parts of another bundle, but its manifest."""
    bundle = Bundle.open(source)
    writer.add_lm(source / "lm")
    writer.add_retriever(bundle.retriever)
    writer.add_items(bundle.catalogue.items)
    writer.add_index(bundle.index)


def test_a_writer_that_fails_leaves_nothing(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power"), BundleWriter(tmp_path / "new") as writer:
        fill(writer, bundle_path)
        raise RuntimeError("power cut")
    assert list(tmp_path.iterdir()) == [], "a half-made bundle is left behind"


def test_a_writer_that_is_killed_leaves_nothing_at_the_target(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from model_store.bundle import BundleWriter\n"
        f"writer = BundleWriter(Path({str(tmp_path)!r}) / 'new').__enter__()\n"
        "writer.add_items([]); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == -9
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1 and left[0].startswith(".new."), f"not one hidden draft, but {left}"
    with pytest.raises(BundleNotFound):
        Bundle.open(tmp_path / "new")


def test_an_unfinished_bundle_is_not_announced(bundle_path: Path, tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "new") as writer:
        writer.add_lm(bundle_path / "lm")
        with pytest.raises(BundleCorrupt, match=r"items\.faiss, items\.jsonl, retriever\.safetensors"):
            writer.finish(read_manifest(bundle_path))
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_another_model_is_not_written(bundle_path: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle_path)
    with BundleWriter(tmp_path / "new") as writer:
        fill(writer, bundle_path)
        with pytest.raises(SpaceMismatch):
            writer.finish(manifest.model_copy(update={"space": "0" * 12}))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_replaced_whole(bundle_path: Path, copy: Path) -> None:
    (copy / "old").write_text("old")
    with BundleWriter(copy) as writer:
        fill(writer, bundle_path)
        assert (copy / "old").exists(), "the old bundle went before the new one was ready"
        writer.finish(read_manifest(bundle_path).model_copy(update={"name": "newer"}))
    assert read_manifest(copy).name == "newer" and not (copy / "old").exists()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"], "drafts are left behind"
    Bundle.open(copy)


def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(BundleError, match="not a bundle"), BundleWriter(target):
            pass
    assert (tmp_path / "thesis.txt").exists()


def test_an_empty_folder_may_become_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    write_bundle(tmp_path / "new")
    Bundle.open(tmp_path / "new")


def test_nothing_inside_is_pickled(bundle_path: Path) -> None:
    for file in (path for path in bundle_path.rglob("*") if path.is_file()):
        start = file.read_bytes()[:2]
        assert not zipfile.is_zipfile(file) and start[:1] != b"\x80", f"{file.name} looks like a pickle"
        assert file.suffix in {".safetensors", ".json", ".jsonl", ".faiss", ".jinja"}, f"{file.name}: unknown format"


def test_pickled_weights_are_never_loaded(copy: Path) -> None:
    """Even a manifest that vouches for them does not help."""
    torch.save(make_model("llama").state_dict(), copy / "lm" / "pytorch_model.bin")
    (copy / "lm" / "model.safetensors").unlink()
    files = describe_files(copy)
    weights = weights_sha256({name: entry for name, entry in files.items() if name.startswith("lm/")})
    manifest = read_manifest(copy)
    backbone = manifest.backbone.model_copy(update={"weights_sha256": weights})
    edit_manifest(
        copy,
        backbone=backbone.model_dump(),
        space=space_id(backbone, manifest.prompt, manifest.memory),
        files={name: entry.model_dump() for name, entry in files.items()},
    )
    with pytest.raises(BundleCorrupt, match="safetensors"):
        Bundle.open(copy)


@pytest.mark.parametrize(("name", "counts"), [("model.safetensors", True), ("merges.txt", True), ("README.md", False)])
def test_the_digest_of_weights_covers_what_is_computed(name: str, counts: bool) -> None:
    first = {"lm/config.json": FileEntry(num_bytes=1, sha256="a"), f"lm/{name}": FileEntry(num_bytes=1, sha256="b")}
    second = {**first, f"lm/{name}": FileEntry(num_bytes=1, sha256="c")}
    assert (weights_sha256(first) != weights_sha256(second)) == counts
    bare = {key.removeprefix("lm/"): entry for key, entry in first.items()}
    assert weights_sha256(bare) == weights_sha256(first), "a checkpoint and its copy in a bundle have different digests"
