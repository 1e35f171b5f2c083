"""Who may send which request: what the settings say (`authentication.py`), and the checks of each request.

`guard.py` checks keys and hosts, `routes.py` scopes. Decisions are made in `service.identity`.
"""
