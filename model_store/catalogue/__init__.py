"""The items that can be recommended, by row, and fast answers to questions about them.

`items` defines an item, the file of items and the list of items. `columns` computes arrays from the items: popularity,
`availability`, attributes (`postings`) and the trie of titles. `mapped` reads those arrays from a memory-mapped file.
`catalogue` joins them into an immutable snapshot. Title embeddings, user histories and what a user has seen are not
here. Loads no torch. Imports from `model_store`: `errors`, `text`, and `paths` and `trie` of `beams`.
"""
