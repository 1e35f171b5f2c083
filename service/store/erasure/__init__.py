"""The deletion of users: tombstones, what is left outside of their keys, receipts, and the files of the store."""
