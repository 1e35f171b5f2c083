"""TLS to the store: whose certificates are trusted, and the certificate that this side shows.

Takes files in PEM form, gives options of the Redis client.
"""

import ssl
from pathlib import Path
from typing import NamedTuple

from service.errors import StartupError


class Certificates(NamedTuple):
    """`ca`: certificates of the authorities that are trusted; None: those of the system. `certificate` and `key`: what
    the store gets to see; None: nothing. The key may be in the file of the certificate.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def client_options(certificates: Certificates) -> dict[str, str]:
    """Raises StartupError for a file that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca, certificate, key = certificates
    options = {}
    try:
        if ca is not None:
            context.load_verify_locations(ca)
            options["ssl_ca_certs"] = str(ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
            options |= {"ssl_certfile": str(certificate), "ssl_keyfile": str(key or certificate)}
    except OSError as error:  # also an error of ssl
        files = ", ".join(str(each) for each in certificates if each is not None)
        raise StartupError(f"certificates or key for the store cannot be read ({files}): {error}") from error
    return options
