"""How results become files that people read: tables, sentences, figures, Markdown and self-contained HTML pages.

`writer` and `plotting` are the one mechanism; the studies use them too. The `evaluation_*` modules are the report of
`training.evaluate`. Nothing is measured here, and no model or data set is read. May import `training.run`, the names
of the rows (`training.rows.registry`) and the retriever's quality (`training.memory`).
"""
