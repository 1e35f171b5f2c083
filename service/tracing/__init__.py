"""Traces for OpenTelemetry: spans of requests and rounds of work, and how they reach a collector. Off unless set."""
