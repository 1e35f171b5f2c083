"""A store with TLS: `TlsFront` ends TLS in front of a server that has none. Certificates are made here.

The service sees what it would see of a Redis with TLS: a handshake, certificates, alerts.
"""

import contextlib
import datetime
import ipaddress
import select
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """Issues certificates; `file` has its own."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = directory / f"{name}.pem"
        basic = x509.BasicConstraints(ca=True, path_length=0)
        self._own = self._sign(self._name, self._key.public_key(), basic, days=2)
        self.file.write_bytes(self._own.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *hosts: str, days: int = 2) -> Path:
        """A file with certificate and key for these addresses and host names. `days` < 0: it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts or (name,)])
        made = self._sign(subject, key.public_key(), names, days=days)
        file = self._directory / f"{name}-{made.serial_number}.pem"
        pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        file.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, kind, serialization.NoEncryption()))
        return file

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType, *, days: int
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=False)
        until = now + datetime.timedelta(days=days)
        builder = builder.not_valid_before(until - datetime.timedelta(days=4)).not_valid_after(until)
        return builder.sign(self._key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


class TlsFront:
    """Listens on `port` of loopback with TLS. `target`: path of a Unix socket, or a port of loopback."""

    def __init__(self, target: str | int, certificate: Path, *, clients_of: Path | None = None) -> None:
        """`clients_of`: clients must have a certificate of this authority."""
        self._target, self.port = target, 0
        self._clients_of = clients_of
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.show(certificate)

    def show(self, certificate: Path) -> None:
        """From now on this certificate is shown; open connections are cut."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        if self._clients_of is not None:
            self._context.load_verify_locations(self._clients_of)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._cut()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()
        for thread in self._threads:
            thread.join(10)

    def _cut(self) -> None:
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _start(self, target: object, *args: object) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))  # type: ignore[arg-type]
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                plain, _ = self._listener.accept()
                self._start(self._serve, plain)

    def _serve(self, plain: socket.socket) -> None:
        self._open.add(plain)
        with contextlib.suppress(OSError), plain, self._context.wrap_socket(plain, server_side=True) as outer:
            self._open.add(outer)
            with self._connect() as inner:
                _pass_on(outer, inner)
            self._open.discard(outer)
        self._open.discard(plain)

    def _connect(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target))
        inner = socket.socket(socket.AF_UNIX)
        inner.connect(self._target)
        return inner


def _pass_on(outer: ssl.SSLSocket, inner: socket.socket) -> None:
    while True:
        ready = [outer] if outer.pending() else select.select([outer, inner], [], [])[0]
        for source, sink in ((outer, inner), (inner, outer)):
            if source in ready:
                data = source.recv(65_536)
                if not data:
                    return
                sink.sendall(data)
