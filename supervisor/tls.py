"""The client port's certificate: loaded strictly, reloaded without dropping anyone.

Law: a pair of files is tried out whole before the running server sees any of it; a bad pair
leaves the old one in use. Certificate and key are read once and loaded from memory, so that what
was tried is what is used, even while somebody is replacing the files. This module knows nothing
of HTTP. The key's bytes are never logged.
"""

from __future__ import annotations

import logging
import os
import ssl

_log = logging.getLogger("tls")


class TlsError(Exception):
    """The certificate or the key cannot be used; the text names the file and says why."""


def make_context(cert: str, key: str) -> ssl.SSLContext:
    """A server context, TLS 1.2 and newer.

    :param cert: path of the PEM file with the certificate chain, the server's own first.
    :param key: path of the PEM file with its private key, not encrypted.
    :raises TlsError: one of them is missing, unreadable, no PEM, or they do not belong together.
    """
    return _context(_read(cert, key), cert, key)


class CertificateWatch:
    """Keeps ``context`` at the newest good pair of ``cert`` and ``key``.

    New handshakes use it; connections that stand are not touched.
    """

    def __init__(self, context: ssl.SSLContext, cert: str, key: str) -> None:
        self._context = context
        self._cert = cert
        self._key = key
        self._seen = self._stamp()

    def check(self) -> bool:
        """Load the pair if its files have changed. Call every now and then.

        :return: whether a new pair is in use. A bad one is logged once, the old one stays.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            pair = _read(self._cert, self._key)
            _context(pair, self._cert, self._key)
            _load(self._context, pair)
        except (TlsError, OSError) as error:  # OSError: no file descriptor is free
            _log.warning("%s; the certificate loaded before stays in use", error)
            return False
        _log.info("certificate %s reloaded", self._cert)
        return True

    def _stamp(self) -> list[tuple[int, int, int] | None]:
        """What changes when a file is written or replaced; None: it is not there."""
        stamps: list[tuple[int, int, int] | None] = []
        for path in (self._cert, self._key):
            try:
                stat = os.stat(path)
            except OSError:
                stamps.append(None)
            else:
                stamps.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return stamps


def _read(cert: str, key: str) -> tuple[bytes, bytes]:
    contents = []
    for what, path, marker in (
        ("certificate", cert, b"-----BEGIN CERTIFICATE-----"),
        ("private key", key, b"PRIVATE KEY-----"),
    ):
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            raise TlsError(f"cannot read the {what} file {path}: {error.strerror}") from error
        if marker not in content:
            raise TlsError(f"the {what} file {path} holds no {what} in PEM form")
        contents.append(content)
    return contents[0], contents[1]


def _context(pair: tuple[bytes, bytes], cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        _load(context, pair)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if reason == "KEY_VALUES_MISMATCH":
            raise TlsError(
                f"the private key {key} does not belong to the certificate {cert}"
            ) from error
        raise TlsError(
            f"the certificate {cert} and the private key {key} cannot be loaded: {reason}"
        ) from error
    return context


def _load(context: ssl.SSLContext, pair: tuple[bytes, bytes]) -> None:
    # load_cert_chain takes only paths: these two name memory.
    descriptors: list[int] = []
    try:
        for content in pair:
            descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
            descriptors.append(descriptor)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
        paths = [f"/proc/self/fd/{descriptor}" for descriptor in descriptors]
        # The password stands for "none": without one OpenSSL would ask on the terminal.
        context.load_cert_chain(paths[0], paths[1], password=b"")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
