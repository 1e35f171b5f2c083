"""What differs between the servers that hold the store: a cluster, TLS, the rights of a user."""
