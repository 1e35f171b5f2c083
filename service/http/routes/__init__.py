"""The endpoints, one module per resource.

An endpoint makes plain arguments from its validated request, calls one use case, and makes a schema of the result. What
an endpoint decides beyond that belongs into a use case.
"""
