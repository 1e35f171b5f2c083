"""Memory of a user: how states become bytes, which of them help, and where they enter the top half.

`codec` converts states to stored records and back. `retriever` scores memory elements and selects some of them.
`combine` puts the selected states into the input of the top half. The language model, prompts, and the store that
keeps the records are not here. Imports from `model_store`: `errors` only.
"""
