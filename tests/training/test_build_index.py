"""The bundle has every item with a title, and its key changes exactly if its contents change."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from model_store.errors import EmptyCatalogue
from model_store.inference import embed
from model_store.manifest import BackboneSpec
from tests.training.small import TINY, shop, small_lm, small_windows
from training.build_index import catalogue_items, embed_items, stage_key
from training.data.dataset import Dataset
from training.data.splits import time_split
from training.lm.backbone import Backbone

SHOP = shop()


def with_items(**columns: pl.Series) -> Dataset:
    return replace(SHOP, items=SHOP.items.with_columns(**columns))


def test_the_catalogue_has_all_titled_items_with_their_popularity_in_the_train_period() -> None:
    rare = pl.DataFrame({"item_id": ["rare"], "title": ["Never Read"]})
    dataset = replace(SHOP, items=pl.concat([SHOP.items, rare]))
    split = time_split(dataset)
    items = {item.item_id: item for item in catalogue_items(dataset, split)}
    assert items.keys() == {*SHOP.items["item_id"], "rare"}
    assert items["rare"].popularity == 0, "an item too rare to be evaluated can be recommended"
    for item_id, count in zip(split.item_ids, split.popularity.tolist(), strict=True):
        assert items[item_id].popularity == count


def test_attributes_are_plain_and_missing_ones_are_left_out() -> None:
    count = SHOP.items.height
    dataset = with_items(
        pages=pl.Series([100, None] * (count // 2)),
        tags=pl.Series([["a", "b"]] * count),
        shelf=pl.Series(["x"] * count),
    )
    first, second = catalogue_items(dataset, time_split(dataset))[:2]
    assert first.attributes == {"pages": 100, "tags": ["a", "b"], "shelf": "x"}
    assert second.attributes == {"tags": ["a", "b"], "shelf": "x"}


def test_an_empty_catalogue_is_refused() -> None:
    with pytest.raises(EmptyCatalogue, match="nothing to recommend"):
        catalogue_items(replace(SHOP, items=SHOP.items.head(0)), time_split(SHOP))


def test_vectors_are_in_the_order_of_the_items() -> None:
    lm, prompt = small_lm(), small_windows().prompt
    spec = BackboneSpec(base_model="random", weights_sha256="", split_layer=2, num_layers=4, hidden_size=lm.hidden_size)
    items = catalogue_items(SHOP, time_split(SHOP))
    vectors = embed_items(Backbone(spec, "titles", lm, prompt), items)
    expected = np.concatenate([embed(lm, [prompt.tokens([item.title])]) for item in items])
    np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=1e-3)


def test_the_key_changes_with_the_contents_of_the_bundle() -> None:
    key = stage_key(SHOP, [{"inputs": "a"}], TINY)
    assert stage_key(shop(), [{"inputs": "a"}], TINY) == key
    assert stage_key(SHOP, [{"inputs": "b"}], TINY) != key
    assert stage_key(SHOP, [{"inputs": "a"}], replace(TINY, num_beams=9)) != key
    assert stage_key(with_items(shelf=pl.Series(["x"] * 20)), [{"inputs": "a"}], TINY) != key, (
        "new attributes do not change the key"
    )
