"""The language model: opened from a checkpoint, cut into two halves, and made fast for serving.

`padding` makes batches of ragged rows. `split_lm` cuts a model into halves. `item_embedding` replaces text tokens by
item tokens. `checkpoint` opens a checkpoint directory. `precision` and `prepacked` change how matrices are multiplied
on a CPU. `window_cache` keeps what the bottom half computed for recent windows. The texts of prompts, the retriever and
the search over titles are not here. Imports from `model_store`: `errors`, `manifest`, `text`.
"""
