"""The client's half of a node's TLS: whom we talk to is decided by the public key in the node's signed record.

The handshake proves that the peer holds the private key of the certificate that it shows; what is left is to see that
the certificate's key is the expected one. Its names, dates and issuer mean nothing here.
"""

import ssl

import trio

from llamanet.errors import BadMessage, NodeFailed
from llamanet.wire.identity import KEY_BYTES, PublicKey

_SEQUENCE, _INTEGER, _BIT_STRING, _VERSION = 0x30, 0x02, 0x03, 0xA0
_ED25519 = bytes.fromhex("06032b6570")
"""The object identifier 1.3.101.112 (RFC 8410), alone in its AlgorithmIdentifier."""


def client_tls() -> ssl.SSLContext:
    """A client's context: TLS 1.3 only. It checks no certificate; `verify_peer` does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def verify_peer(stream: "trio.SSLStream[trio.abc.Stream]", expected: PublicKey, node: str) -> None:
    """Check, after the handshake, that the peer is `expected`. Raises `NodeFailed` for anybody else."""
    certificate: bytes | None = stream.getpeercert(binary_form=True)
    try:
        shown = ed25519_key_untrusted(certificate or b"")
    except BadMessage as error:
        raise NodeFailed(node, f"its TLS certificate is no node's ({error})") from error
    if shown != expected:
        raise NodeFailed(node, f"its TLS certificate has the public key {shown.hex()[:16]}…, which is another node's")


def ed25519_key_untrusted(certificate: bytes) -> PublicKey:
    """The subject's Ed25519 public key in an X.509 certificate (DER). Raises `BadMessage`.

    Only the strict form of DER is read, of which every reader, OpenSSL's too, understands the same; a full X.509
    library would double the time that a cold client needs until it can ask.
    Source: RFC 5280, section 4.1 (Certificate, TBSCertificate), RFC 8410, section 4 (SubjectPublicKeyInfo).
    """
    body, rest = _take(_SEQUENCE, certificate)
    if rest:
        raise BadMessage("bytes after the certificate")
    signed, _ = _take(_SEQUENCE, body)
    _, signed = _take(_VERSION, signed)
    _, signed = _take(_INTEGER, signed)
    for _ in ("signature algorithm", "issuer", "validity", "subject"):
        _, signed = _take(_SEQUENCE, signed)
    key_info, _ = _take(_SEQUENCE, signed)
    algorithm, key_info = _take(_SEQUENCE, key_info)
    bits, rest = _take(_BIT_STRING, key_info)
    if algorithm != _ED25519 or rest or len(bits) != 1 + KEY_BYTES or bits[0] != 0:
        raise BadMessage("not an Ed25519 key")
    return PublicKey(bits[1:])


def _take(tag: int, data: bytes) -> tuple[bytes, bytes]:
    """The content of the DER element that `data` begins with, which must bear `tag`, and what follows it."""
    if len(data) < 2 or data[0] != tag:
        raise BadMessage("not an X.509 certificate")
    length, start = data[1], 2
    if length >= 0x80:
        size = length - 0x80
        start += size
        length = int.from_bytes(data[2:start], "big")
        # DER: the shortest form of a length, and no indefinite one (size 0, for which length is 0 here).
        if size > 3 or length < 0x80 or data[2] == 0:
            raise BadMessage("not an X.509 certificate")
    if len(data) < start + length:
        raise BadMessage("not an X.509 certificate")
    return data[start : start + length], data[start + length :]
