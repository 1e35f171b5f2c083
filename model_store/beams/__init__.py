"""Constrained generation: the most likely titles of the catalogue after a prompt.

`paths` holds the token sequences of all titles in sorted order. `trie` walks over them and knows which items are
allowed. `tree_attention` lets the language model read the tokens of all beams of a query in one row of the KV cache.
`search` is the beam search. What an item is, the texts of titles and the retriever are not here. Imports from
`model_store`: `lm`, and `memory` for the input of the top half; `paths` and `trie` import numpy only.
"""
