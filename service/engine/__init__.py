"""Where the model runs, and which requests it gets.

Here live the process of the model (`model.py`, `knowledge.py` and `words.py`, the only modules of the service that
import torch), how it is started and talked to (`process.py`, `messages.py`), which jobs run together (`batching.py`),
which requests are admitted (`admission.py`), which changed items it has yet to take in (`intake.py`), and `engine.py`,
which the use cases call. What a job computes is in `model_store`. Nothing here knows HTTP or the store. May import
`service.errors`, `service.logs`, `service.metrics`, `service.settings` and `model_store`.
"""
