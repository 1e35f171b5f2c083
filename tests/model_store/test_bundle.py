"""A bundle opens only if it is complete and verified; otherwise the error names the file."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model_store.answers import Query
from model_store.bundle import Bundle, BundleWriter, build_retriever
from model_store.catalogue.items import Item
from model_store.errors import (
    BundleCorrupt,
    BundleError,
    BundleNotFound,
    FormatTooNew,
    SpaceMismatch,
    UnsupportedBackbone,
)
from model_store.files import (
    COLUMNS,
    INDEX,
    ITEMS,
    MANIFEST,
    RETRIEVER,
    VOICES,
    describe_files,
    read_manifest,
    weights_sha256,
)
from model_store.inference import recommend
from model_store.lm.item_embedding import ItemEmbedding, ItemHead
from model_store.manifest import FileEntry, RetrieverSpec, Vocabulary, space_id
from tests.conftest import BOTH_VOCABULARIES, ITEMS_ONLY, TITLES, make_model, small_voices, write_bundle

NO_MEMORY = np.zeros((0, 32), dtype=np.float16)
FILES = (RETRIEVER, ITEMS, INDEX, "lm/model.safetensors", "lm/config.json", "lm/tokenizer.json")
TITLES_FILE, PIECES_FILE = "lm/titles.json", "lm/pieces.safetensors"
EVERY_FILE = pytest.mark.parametrize(
    ("vocabulary", "name"),
    [*(("titles", name) for name in FILES), ("items", TITLES_FILE), ("items", PIECES_FILE)],
    indirect=["vocabulary"],
    scope="session",
)


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy on disk that the test may change."""
    return shutil.copytree(bundle_path, tmp_path / "copy")


def edit_manifest(path: Path, **fields: object) -> None:
    facts = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**facts, **fields}))


def update_checksums(path: Path, **fields: object) -> None:
    """Make the manifest agree with the files on disk."""
    manifest, files = read_manifest(path), describe_files(path)
    weights = weights_sha256({name: entry for name, entry in files.items() if name.startswith("lm/")})
    backbone = manifest.backbone.model_copy(update={"weights_sha256": weights})
    edit_manifest(
        path,
        backbone=backbone.model_dump(),
        space=space_id(backbone, manifest.prompt, manifest.memory),
        files={name: entry.model_dump() for name, entry in files.items()},
        **fields,
    )


def test_an_opened_bundle_has_the_parts_that_were_written(bundle_path: Path) -> None:
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


@ITEMS_ONLY
def test_item_tokens_have_the_rows_that_were_written(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    assert [bundle.prompt.title_tokens(title) for title in TITLES] == [(1 + row,) for row in range(len(TITLES))]
    original, inputs = make_model("llama", 1 + len(TITLES)), bundle.lm.model.get_input_embeddings()
    head, pieces = bundle.lm.model.get_output_embeddings(), load_file(bundle_path / PIECES_FILE)
    assert isinstance(inputs, ItemEmbedding) and isinstance(head, ItemHead) and head.embedding is not inputs
    assert inputs.rows().equal(original.get_input_embeddings().get_parameter("weight")), "the input has other rows"
    assert head.embedding.rows().equal(original.get_output_embeddings().get_parameter("weight")), (
        "the head has other rows"
    )
    assert inputs.text.equal(pieces["input"]) and head.embedding.text.equal(pieces["output"]), (
        "input and output pieces are exchanged"
    )


@BOTH_VOCABULARIES
def test_the_manifest_lists_every_file(bundle_path: Path, vocabulary: Vocabulary) -> None:
    manifest = read_manifest(bundle_path)
    on_disk = {path.relative_to(bundle_path).as_posix() for path in bundle_path.rglob("*") if path.is_file()}
    assert set(manifest.files) == on_disk - {MANIFEST}
    assert set(FILES) <= on_disk
    assert ({TITLES_FILE, PIECES_FILE} <= on_disk) == (manifest.vocabulary == "items")
    assert manifest.vocabulary == vocabulary


@EVERY_FILE
def test_the_error_names_a_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleCorrupt, match=f"{name} is missing"):
        Bundle.open(copy)


@EVERY_FILE
def test_the_error_names_a_truncated_file(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1])
    with pytest.raises(BundleCorrupt, match=f"{name} has {len(content) - 1} bytes"):
        Bundle.open(copy)


@EVERY_FILE
@pytest.mark.parametrize("place", [0, -1])
def test_a_changed_bit_is_detected(copy: Path, name: str, place: int) -> None:
    content = bytearray((copy / name).read_bytes())
    content[place] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleCorrupt, match=f"{name} differs from its checksum"):
        Bundle.open(copy)


def test_the_error_for_a_missing_bundle_tells_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match=r"training\.pipeline"):
        Bundle.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format_version": 1}', '{"format_version": "1"}', "\xff"]
)
def test_an_invalid_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleCorrupt, match=r"manifest\.json"):
        Bundle.open(copy)


def test_a_later_format_has_its_own_error(copy: Path) -> None:
    edit_manifest(copy, format_version=5, a_field_of_the_future=1)
    with pytest.raises(FormatTooNew, match=r"format 5.*reads up to 4"):
        Bundle.open(copy)


@BOTH_VOCABULARIES
def test_weights_of_another_space_are_refused(copy: Path) -> None:
    make_model("llama", seed=9).save_pretrained(copy / "lm")
    described = {name: entry.model_dump() for name, entry in describe_files(copy).items()}
    edit_manifest(copy, files=described)
    with pytest.raises(SpaceMismatch, match="language model"):
        Bundle.open(copy)


@ITEMS_ONLY
@pytest.mark.parametrize("name", [TITLES_FILE, PIECES_FILE])
def test_titles_and_pieces_of_item_tokens_are_part_of_the_space(copy: Path, name: str) -> None:
    """With other titles for the tokens, or other pieces, states are not comparable."""
    before = read_manifest(copy).space
    if name == TITLES_FILE:
        (copy / name).write_text(json.dumps([TITLES[1], TITLES[0], *TITLES[2:]]))
    else:
        save_file({key: tensor + 1 for key, tensor in load_file(copy / name).items()}, copy / name)
    described = {key: entry.model_dump() for key, entry in describe_files(copy).items()}
    edit_manifest(copy, files=described)
    with pytest.raises(SpaceMismatch, match="language model"):
        Bundle.open(copy)
    update_checksums(copy)
    assert Bundle.open(copy).manifest.space != before


@ITEMS_ONLY
@pytest.mark.parametrize("name", [TITLES_FILE, PIECES_FILE])
def test_item_tokens_without_titles_or_pieces_are_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    update_checksums(copy)
    with pytest.raises(BundleCorrupt, match=Path(name).name):
        Bundle.open(copy)


@ITEMS_ONLY
@pytest.mark.parametrize("titles", [TITLES[:-1], [*TITLES, "One more"], TITLES[:-1] + TITLES[:1], 20, {"a": "b"}, [7]])
def test_titles_that_do_not_fit_the_rows_are_refused(copy: Path, titles: object) -> None:
    (copy / TITLES_FILE).write_text(json.dumps(titles))
    update_checksums(copy)
    with pytest.raises(BundleCorrupt, match=r"embeddings for|titles\.json"):
        Bundle.open(copy)


@ITEMS_ONLY
@pytest.mark.parametrize("flaw", ["no output", "too few pieces", "another width", "no tensors"])
def test_pieces_that_do_not_fit_tokenizer_and_model_are_refused(copy: Path, flaw: str) -> None:
    pieces = load_file(copy / PIECES_FILE)
    changed = {
        "no output": {"input": pieces["input"]},
        "too few pieces": {name: table[:-40] for name, table in pieces.items()},
        "another width": {name: table[:, 1:] for name, table in pieces.items()},
        "no tensors": None,
    }[flaw]
    if changed is None:
        (copy / PIECES_FILE).write_text("not safetensors")
    else:
        save_file({name: table.contiguous() for name, table in changed.items()}, copy / PIECES_FILE)
    update_checksums(copy)
    with pytest.raises(BundleCorrupt, match=r"pieces\.safetensors"):
        Bundle.open(copy)


@BOTH_VOCABULARIES
def test_a_model_is_not_opened_with_the_other_vocabulary(copy: Path, vocabulary: Vocabulary) -> None:
    edit_manifest(copy, vocabulary="items" if vocabulary == "titles" else "titles")
    with pytest.raises(BundleCorrupt, match="build the bundle again"):
        Bundle.open(copy)


@ITEMS_ONLY
def test_titles_unknown_in_training_get_tokens_and_rows(make_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(make_bundle(titles=[*TITLES, "A rare one", "A rare one"], known_titles=TITLES))
    assert bundle.prompt.title_tokens("A rare one") == (1 + len(TITLES),) and len(bundle.catalogue) == 22
    inputs = bundle.lm.model.get_input_embeddings()
    assert isinstance(inputs, ItemEmbedding) and inputs.rows().shape == (2 + len(TITLES), 32)


@BOTH_VOCABULARIES
@pytest.mark.parametrize("change", [{"split_layer": 1}, {"base_model": "x"}])
def test_a_space_that_does_not_fit_the_backbone_is_refused(copy: Path, change: dict[str, object]) -> None:
    edit_manifest(copy, backbone={**read_manifest(copy).backbone.model_dump(), **change})
    with pytest.raises(SpaceMismatch):
        Bundle.open(copy)


@pytest.mark.parametrize("name", [RETRIEVER, ITEMS, INDEX])
def test_no_file_is_opened_without_a_checksum(copy: Path, name: str) -> None:
    files = {key: entry.model_dump() for key, entry in read_manifest(copy).files.items() if key != name}
    edit_manifest(copy, files=files)
    with pytest.raises(BundleCorrupt, match=f"{name} is not among the files"):
        Bundle.open(copy)


@ITEMS_ONLY
def test_voices_in_the_manifest_are_required_verified_and_opened(make_bundle: Callable[..., Path]) -> None:
    written = small_voices(20)
    path = make_bundle(voices=written)
    voices = Bundle.open(path).voices
    assert voices is not None and voices.tables["near"][3].indices.tolist() == [4]
    for name, tensor in written.combiner.state_dict().items():
        assert voices.combiner.state_dict()[name].equal(tensor), name
    content = bytearray((path / VOICES).read_bytes())
    content[-1] ^= 1
    (path / VOICES).write_bytes(content)
    with pytest.raises(BundleCorrupt, match=f"{VOICES} differs"):
        Bundle.open(path)
    files = {key: entry.model_dump() for key, entry in read_manifest(path).files.items() if key != VOICES}
    edit_manifest(path, files=files)
    with pytest.raises(BundleCorrupt, match=f"{VOICES} is not among the files"):
        Bundle.open(path)


def test_parts_that_do_not_fit_together_are_refused(copy: Path) -> None:
    edit_manifest(copy, num_items=19)
    with pytest.raises(BundleCorrupt, match="but the manifest says 19"):
        Bundle.open(copy)
    edit_manifest(copy, num_items=20, retriever=RetrieverSpec(width=17).model_dump())
    with pytest.raises(BundleCorrupt, match=r"retriever\.safetensors"):
        Bundle.open(copy)


def test_extra_files_are_ignored_except_where_transformers_reads(copy: Path) -> None:
    (copy / "demo-interactions.jsonl").write_text("{}")
    (copy / "lm" / ".DS_Store").write_text("")
    Bundle.open(copy)
    (copy / "lm" / "adapter_config.json").write_text("{}")
    with pytest.raises(BundleCorrupt, match=r"lm/adapter_config\.json does not belong"):
        Bundle.open(copy)


def test_an_attention_window_that_is_too_short_is_refused(make_bundle: Callable[..., Path]) -> None:
    """Tokens outside the window would be missing from the scores without an error."""
    with pytest.raises(UnsupportedBackbone, match=r"recent_length"):
        Bundle.open(make_bundle(architecture="mistral"))


@BOTH_VOCABULARIES
@pytest.mark.parametrize("architecture", ["qwen3", "gemma", "gpt_neox"])
def test_bundles_of_other_architectures_open(make_bundle: Callable[..., Path], architecture: str) -> None:
    assert Bundle.open(make_bundle(architecture=architecture)).lm.hidden_size == 32


def fill(writer: BundleWriter, source: Path, *, with_columns: bool = False) -> None:
    """Add the parts of another bundle, without its manifest."""
    bundle = Bundle.open(source)
    writer.add_lm(source / "lm")
    writer.add_retriever(bundle.retriever)
    if with_columns:
        writer.add_catalogue(bundle.catalogue)
    else:
        writer.add_items(bundle.catalogue.items)
    writer.add_index(bundle.index)


@pytest.fixture
def mapped(bundle_path: Path, tmp_path: Path) -> Path:
    """A bundle with the columns of its catalogue; the one at `bundle_path` has none."""
    path = tmp_path / "mapped"
    with BundleWriter(path) as writer:
        fill(writer, bundle_path, with_columns=True)
        writer.finish(read_manifest(bundle_path))
    return path


@BOTH_VOCABULARIES
def test_a_bundle_with_columns_answers_as_one_without(mapped: Path, bundle_path: Path) -> None:
    with_columns, without = Bundle.open(mapped), Bundle.open(bundle_path)
    queries = [
        Query(bundle.prompt.tokens([TITLES[2]]), NO_MEMORY, bundle.catalogue.matching({"even": True}), num_results=8)
        for bundle in (with_columns, without)
    ]
    answers = [recommend(bundle, [query]) for bundle, query in zip((with_columns, without), queries, strict=True)]
    assert answers[0][0].items == answers[1][0].items
    assert list(with_columns.catalogue.items) == list(without.catalogue.items)
    changed = [bundle.catalogue.with_items([Item("new", "Red Tea")]) for bundle in (with_columns, without)]
    assert changed[0].trie.order.tolist() == changed[1].trie.order.tolist()


def test_columns_are_verified_or_ignored(mapped: Path) -> None:
    content = (mapped / COLUMNS).read_bytes()
    (mapped / COLUMNS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleCorrupt, match=f"{COLUMNS} differs from its checksum"):
        Bundle.open(mapped)
    files = {key: entry.model_dump() for key, entry in read_manifest(mapped).files.items() if key != COLUMNS}
    edit_manifest(mapped, files=files)
    assert len(Bundle.open(mapped).catalogue) == len(TITLES), "a file without a checksum was opened"


def test_columns_of_other_items_are_refused(mapped: Path) -> None:
    lines = (mapped / ITEMS).read_text().splitlines(keepends=True)
    (mapped / ITEMS).write_text("".join([lines[0].replace(TITLES[0], TITLES[1]), *lines[1:]]))
    update_checksums(mapped)
    with pytest.raises(BundleCorrupt, match=COLUMNS):
        Bundle.open(mapped)


def test_a_writer_that_fails_leaves_no_files(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power"), BundleWriter(tmp_path / "new") as writer:
        fill(writer, bundle_path)
        raise RuntimeError("power cut")
    assert list(tmp_path.iterdir()) == [], "an incomplete bundle remains"


def test_a_writer_that_is_killed_leaves_nothing_at_the_target(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from model_store.bundle import BundleWriter\n"
        f"writer = BundleWriter(Path({str(tmp_path)!r}) / 'new').__enter__()\n"
        "writer.add_items([]); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == -9
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1 and left[0].startswith(".new."), f"not one hidden directory, but {left}"
    with pytest.raises(BundleNotFound):
        Bundle.open(tmp_path / "new")


def test_a_bundle_without_all_parts_is_not_written(bundle_path: Path, tmp_path: Path) -> None:
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


@BOTH_VOCABULARIES
def test_an_existing_bundle_is_replaced_completely(bundle_path: Path, copy: Path) -> None:
    (copy / "old").write_text("old")
    with BundleWriter(copy) as writer:
        fill(writer, bundle_path)
        assert (copy / "old").exists(), "the old bundle was removed before the new one was complete"
        writer.finish(read_manifest(bundle_path).model_copy(update={"name": "newer"}))
    assert read_manifest(copy).name == "newer" and not (copy / "old").exists()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"], "temporary directories remain"
    Bundle.open(copy)


def test_a_path_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(BundleError, match="not a bundle"), BundleWriter(target):
            pass
    assert (tmp_path / "thesis.txt").exists()


def test_a_bundle_may_be_written_to_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    write_bundle(tmp_path / "new")
    Bundle.open(tmp_path / "new")


@BOTH_VOCABULARIES
def test_no_file_of_a_bundle_is_a_pickle(bundle_path: Path) -> None:
    for file in (path for path in bundle_path.rglob("*") if path.is_file()):
        start = file.read_bytes()[:2]
        assert not zipfile.is_zipfile(file) and start[:1] != b"\x80", f"{file.name} looks like a pickle"
        assert file.suffix in {".safetensors", ".json", ".jsonl", ".faiss", ".jinja"}, f"{file.name}: unknown format"


def test_pickled_weights_are_never_loaded(copy: Path) -> None:
    """Also not if the manifest has their checksum."""
    torch.save(make_model("llama").state_dict(), copy / "lm" / "pytorch_model.bin")
    (copy / "lm" / "model.safetensors").unlink()
    update_checksums(copy)
    with pytest.raises(BundleCorrupt, match="safetensors"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("name", "counts"), [("model.safetensors", True), ("merges.txt", True), ("titles.json", True), ("README.md", False)]
)
def test_the_digest_covers_the_files_that_determine_the_model(name: str, counts: bool) -> None:
    first = {"lm/config.json": FileEntry(num_bytes=1, sha256="a"), f"lm/{name}": FileEntry(num_bytes=1, sha256="b")}
    second = {**first, f"lm/{name}": FileEntry(num_bytes=1, sha256="c")}
    assert (weights_sha256(first) != weights_sha256(second)) == counts
    bare = {key.removeprefix("lm/"): entry for key, entry in first.items()}
    assert weights_sha256(bare) == weights_sha256(first), "a checkpoint and its copy in a bundle have different digests"


def test_a_bundle_can_be_read_by_another_user() -> None:
    """A server often runs under another user than the training did, as in the container image."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)  # whoever may read the folder may read the bundle
        path = Path(folder) / "bundle"
        write_bundle(path)
        files = [path, *path.rglob("*")]
        assert all(file.stat().st_mode & 0o444 == 0o444 for file in files), "not readable by everyone"
        assert os.geteuid() != 0 or can_be_read_by(10001, files)


def can_be_read_by(user: int, files: list[Path]) -> bool:
    """Tries it in a forked process that takes the identity of the user."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgid(user)
            os.setuid(user)
            for file in files:
                list(file.iterdir()) if file.is_dir() else file.read_bytes()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
