"""The rows of the evaluation table: one method of recommendation each, all on the same targets.

`registry` lists the rows and tells how to add one. `evaluation` holds what all rows share: a bundle, targets, and the
generation of lists. The other modules are single methods (`popularity`, `sasrec`, `rella`, `trsr`, `full_history`), the
choice of states (`memory_choices`), the metrics of lists (`row_metrics`) and the time of an answer (`latency`). `plus`
holds the rows of AutoMR + itself. Not
here: item-kNN, which the stages of training use too (`training.items`), and the files of the report
(`training.report`). May import `training.data`, `run`, `lm`, `items` and `memory`.
"""
