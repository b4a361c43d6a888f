"""The client's half of a node's TLS: whom we talk to is decided by the public key in the node's signed record.

Rules:
- The handshake proves that the peer holds the private key of the certificate that it shows; what is left is to see that
  the certificate's key is the expected one. Its names, dates and issuer mean nothing here.
- One task reads and one writes. `trio.SSLStream`, which lets reading write and writing read, as TLS up to 1.2 needs,
  costs a round of trio's scheduler a read; with a token in each read that is a good part of what a token costs.
"""

import contextlib
import os
import ssl

import trio

from llamanet.errors import BadMessage, NodeFailed
from llamanet.wire.identity import KEY_BYTES, PublicKey

_SEQUENCE, _INTEGER, _BIT_STRING, _VERSION = 0x30, 0x02, 0x03, 0xA0
_ED25519 = bytes.fromhex("06032b6570")
"""The object identifier 1.3.101.112 (RFC 8410), alone in its AlgorithmIdentifier."""
RECEIVE_BYTES = 64 * 1024
RECORD_BYTES = 16 * 1024
"""The most that one record holds (RFC 8446, section 5.1)."""


def client_tls() -> ssl.SSLContext:
    """A client's context: TLS 1.3 only. It checks no certificate; `verify_peer` does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class TlsStream(trio.abc.Stream):
    """TLS 1.3 over `transport`, which it closes without a word: what it carries says itself when it is over."""

    def __init__(self, transport: trio.abc.Stream, context: ssl.SSLContext) -> None:
        """`do_handshake` must follow."""
        self._transport = transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)

    @property
    def certificate(self) -> bytes:
        """The peer's, in DER; b"" if it showed none."""
        return self._tls.getpeercert(binary_form=True) or b""

    async def do_handshake(self) -> None:
        """Raises `OSError` (`ssl.SSLError` is one), and what the transport raises."""
        done = False
        while not done:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            await self._flush()
            if not done and not await self._feed(RECEIVE_BYTES):
                raise trio.BrokenResourceError("the peer closed the connection in the handshake")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """All that came in one read of the transport, of which at most `max_bytes` are read. Raises as `do_handshake`.

        An end that TLS did not announce is an end like any other.
        """
        while await self._feed(max_bytes or RECEIVE_BYTES):
            if data := self._decrypted():
                return data
        return b""

    def _decrypted(self) -> bytes:
        records = []
        try:
            while record := self._tls.read(RECORD_BYTES):
                records.append(record)
        except ssl.SSLWantReadError:
            # What TLS itself has to say to that, such as a new key, is due before our next word, and goes with it:
            # RFC 8446, section 4.6.3.
            pass
        return b"".join(records)

    async def _feed(self, max_bytes: int) -> bool:
        data = await _receive_some(self._transport, max_bytes)
        self._incoming.write(data)
        return bool(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises as `do_handshake`. Cancelling it may leave half a record sent, after which nothing else must be."""
        self._tls.write(data)
        await self._flush()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._transport.send_all(self._outgoing.read())

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream` has it."""
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()


async def _receive_some(stream: trio.abc.Stream, max_bytes: int) -> bytes | bytearray:
    """What `stream.receive_some` gives, for one that has mostly nothing yet: a socket is waited for before it is read.

    Raises `OSError` too.
    """
    if os.name != "posix" or not isinstance(stream, trio.SocketStream):
        return await stream.receive_some(max_bytes)
    while True:
        await trio.lowlevel.wait_readable(stream.socket)
        with contextlib.suppress(BlockingIOError):
            return os.read(stream.socket.fileno(), max_bytes)


def verify_peer(stream: TlsStream, expected: PublicKey, node: str) -> None:
    """Check, after the handshake, that the peer is `expected`. Raises `NodeFailed` for anybody else."""
    try:
        shown = ed25519_key_untrusted(stream.certificate)
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
