"""Amazon reviews of 2018 and 2023: JSON lines of reviews, and of the products that they are about."""

import html
from pathlib import Path
from typing import Any

import polars as pl

from training.data.faults import DataError, Notes
from training.data.raw.found import RawData, RawFile, ReadOptions, plain_name
from training.data.raw.json_lines import file_facts, plain_text, read_rows
from training.data.raw.text_files import TextFile
from training.data.times import TimeFormat

_REVIEW = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.String,
    "rating": pl.String,
    "is_2023": pl.Boolean,
}
_ITEM = {"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String)}


def read_amazon(source: Path, options: ReadOptions, notes: Notes) -> RawData:
    """Review files and their meta files, of one or several categories."""
    files = sorted(file for file in source.iterdir() if plain_name(file).endswith((".json", ".jsonl", ".ndjson")))
    metas = [file for file in files if plain_name(file).startswith("meta")]
    reviews = [file for file in files if file not in metas]
    if not reviews or not metas:
        found = ", ".join(file.name for file in files) or "no .json or .jsonl file"
        raise DataError(f"{source}: needs a review file and a file meta*.json[l][.gz] with the titles; found: {found}")
    parts = [_read_reviews(TextFile.open(file, options.encoding, notes), notes) for file in reviews]
    reviewed = set(pl.concat([part.frame["item_id"] for part in parts]).unique().to_list())
    items = [_read_metas(TextFile.open(file, options.encoding, notes), reviewed, notes) for file in metas]
    is_2023 = pl.concat([part.frame["is_2023"] for part in parts])
    if is_2023.n_unique() > 1:
        raise DataError(f"{source}: reviews of 2018 and of 2023 have other times and ids; prepare one release")
    usual = "ms" if is_2023.any() else "s"
    times = TimeFormat(unit=options.times.unit, usual_unit=usual, text=options.times.text)
    events = [RawFile(part.frame.drop("is_2023"), part.facts, part.broken_lines) for part in parts]
    return RawData.of(events, items, times)


def _read_reviews(text: TextFile, notes: Notes) -> RawFile:
    rows = read_rows(text, _review, _REVIEW, notes)
    return RawFile(rows.frame, file_facts(text), rows.broken_lines)


def _review(review: dict[str, Any]) -> list[Any]:
    """In 2023 times are milliseconds, and parent_asin names all variants of a product, as in the meta file."""
    is_2023 = "unixReviewTime" not in review
    names = ("user_id", "parent_asin", "timestamp") if is_2023 else ("reviewerID", "asin", "unixReviewTime")
    rating = review.get("overall", review.get("rating"))
    return [*(_needed(review, name) for name in names), plain_text(rating, "rating"), is_2023]


def _needed(review: dict[str, Any], name: str) -> str:
    text = plain_text(review[name], name)
    if text is None:
        raise ValueError(f"{name} is null")
    return text


def _read_metas(text: TextFile, reviewed: set[str], notes: Notes) -> RawFile:
    def parse(meta: dict[str, Any]) -> list[Any] | None:
        item = _needed(meta, "parent_asin" if "parent_asin" in meta else "asin")
        if item not in reviewed:
            notes.add("items_without_review", 1, f"{text.path.name}: {item}")
            return None
        raw = meta.get("title")
        title = plain_text(_storable(raw) if isinstance(raw, str) else raw, "title")
        if isinstance(raw, str) and title != raw:
            notes.add("titles_with_half_characters", 1, f"{text.path.name}: {item}: {title}")
        if title and "getTime" in title:  # some rows of 2018 hold JavaScript of the page instead of a title
            notes.add("titles_that_are_javascript", 1, f"{text.path.name}: {item}: {title}")
            title = None
        return [item, title, _categories(meta)]

    rows = read_rows(text, parse, _ITEM, notes)
    return RawFile(rows.frame, file_facts(text), rows.broken_lines)


def _categories(meta: dict[str, Any]) -> list[str]:
    categories = meta.get("categories") or meta.get("category") or []
    names = categories if isinstance(categories, list) else [categories]
    return [_storable(html.unescape(str(name))) for name in names]


def _storable(text: str) -> str:
    """Text that UTF-8 can encode: JSON may hold lone surrogates."""
    return text.encode(errors="replace").decode()
