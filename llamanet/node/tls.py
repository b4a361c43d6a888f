"""TLS 1.3 with a certificate that the node's own identity signs: its public key is the one in the node's records.

Nobody vouches for the certificate, and nobody needs to: a client knows the public key that must be in it, and the
handshake proves that the node holds the private one. So names and dates in it mean nothing, and are constants.
"""

import datetime
import secrets
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from llamanet.wire.identity import Identity

_NOT_BEFORE = datetime.datetime(2000, 1, 1)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59)
"""RFC 5280, 4.1.2.5: the date of a certificate that has no well-defined end."""


def make_certificate(identity: Identity) -> x509.Certificate:
    """The self-signed certificate of `identity`; always the same bytes."""
    key = Ed25519PrivateKey.from_private_bytes(identity.seed)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "llamanet")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .sign(key, algorithm=None)
    )


def server_tls(identity: Identity) -> ssl.SSLContext:
    """A server's context: TLS 1.3 only, with the certificate of `identity`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Resuming saves little beside an Ed25519 handshake, and each ticket would be another message to every client.
    context.num_tickets = 0
    _load(context, identity)
    return context


def _load(context: ssl.SSLContext, identity: Identity) -> None:
    """Load certificate and key. OpenSSL reads them from a file only: sealed under a password that is never written."""
    password = secrets.token_bytes(32).hex().encode()
    key = Ed25519PrivateKey.from_private_bytes(identity.seed).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "node.pem"
        path.write_bytes(key + make_certificate(identity).public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(path, password=password)
