"""Who calls, and what they may do. Knows no web framework.

`authenticator` answers both questions for a request, from the parts beside it: `keys` (their form, and those of the
settings), `keyring` (those of the store, `stored` reads and writes them), `tokens` (signed by an issuer, whose keys
`issuer` reads), `rates` and `limits` (how much a key may send), `guessing` (lockout of who tries keys), `scopes` (what
each route needs) and `principal` (a caller). `commands` is the command line of keys.
"""
