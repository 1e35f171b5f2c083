"""What answers lead to: which variant answers a user, which lists were shown, and what users did with them.

Lives here: what `POST /recommend` does around an answer (`answers.py`): a variant answers, and the list is remembered.
Does not live here: how an answer is made (`service.usecases.recommend`), HTTP, keys of Redis (`service.store`). May
import `service.usecases`, `service.store`, `service.errors`, `service.logs` and `service.metrics`.
"""
