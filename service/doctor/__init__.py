"""The checks of `python -m service doctor`: is a set-up complete and safe? `checks.py` runs all of them."""
