"""The rows of the evaluation table: one method of recommendation each, all on the same targets.

`registry` lists the rows and tells how to add one. `evaluation` holds what all rows share: a bundle, targets, and the
generation of lists. The other modules are single methods (`sasrec`, `rella`, `trsr`, `full_history`), what is measured
on lists (`row_metrics`) and the time of an answer (`latency`). Methods that the stages of training use too are not
here (`training.items`), nor are the files of the report (`training.report`). May import `training.data`, `run`, `lm`,
`items`, `memory` and the program `training.sft`, which `full_history` runs with another recipe.
"""
