"""One file per resource. An endpoint validates, calls one collaborator, returns a typed model."""
