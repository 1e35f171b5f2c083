"""The deletion of users from the first mark to the last byte: what must happen after the request, too."""
