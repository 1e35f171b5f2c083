"""A private server for a single machine: `server` starts and keeps it, `watch` ends it with its owner."""
