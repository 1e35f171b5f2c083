"""Who may send which request: the checks of keys (`guard.py`) and of scopes (`routes.py`).

Decisions are made in `service.identity`.
"""
