"""Requests for recommendations as JSON: their bodies, the language of `filters`, and the `rules` of the order.

Knows pydantic, but no HTTP.
"""
