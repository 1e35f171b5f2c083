"""Who may send which request: the check of keys (`guard.py`) and of scopes (`routes.py`), and the bodies of /keys.

Decisions are made in `service.identity`.
"""
