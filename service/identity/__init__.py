"""Who calls, and what they may do. Knows no web framework.

`gate` answers both questions for a request, from the parts beside it: `keys` (their form, and those of the settings),
`keyring` (those of the store, `stored` reads and writes them), `tokens` (signed by an issuer), `limits` (rates of a
key), `guessing` (lockout of who tries keys), `scopes` (what each route needs) and `principal` (a caller).
"""
