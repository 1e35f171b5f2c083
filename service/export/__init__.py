"""From the live store to a data set that `training.pipeline` reads: `python -m service export`.

Lives here: the snapshot of users, the parts that make an export resumable, and the files of a data set. Does not live
here: reading of the store (`service.store`). May import `service.errors`, `service.store` and `service.usecases`. Needs
pyarrow, which comes with the extra `train`.
"""
