import os
import ssl
import tempfile

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from llamanet.client.tls import TlsStream, client_tls, ed25519_key_untrusted, verify_peer
from llamanet.errors import BadMessage, NodeFailed
from llamanet.node.tls import make_certificate, server_tls
from llamanet.wire.identity import Identity

NODE = Identity.from_seed(bytes(range(32)))
DER = make_certificate(NODE).public_bytes(serialization.Encoding.DER)


def test_the_certificate_carries_the_identity():
    assert ed25519_key_untrusted(DER) == NODE.public_key
    assert make_certificate(NODE) == x509.load_der_x509_certificate(DER)


def test_the_private_key_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server_tls(NODE)
    assert os.listdir(tmp_path) == []


# The library warns of some changed certificates, a negative serial number for one, that it reads all the same.
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(st.integers(0, len(DER) - 1), st.integers(0, 255))
def test_a_changed_certificate_is_refused_or_read_as_openssl_reads_it(at, byte):
    changed = DER[:at] + bytes([byte]) + DER[at + 1 :]
    try:
        key = ed25519_key_untrusted(changed)
    except BadMessage:
        return
    try:
        certificate = x509.load_der_x509_certificate(changed)
        raw = certificate.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    except (ValueError, x509.InvalidVersion):
        return
    assert key == raw


@given(st.binary(max_size=300))
def test_garbage_is_no_certificate(data):
    with pytest.raises(BadMessage):
        ed25519_key_untrusted(data)


@pytest.mark.parametrize("cut", range(0, len(DER), 7))
def test_a_cut_certificate_is_refused(cut):
    with pytest.raises(BadMessage):
        ed25519_key_untrusted(DER[:cut])


async def handshake(server_context: ssl.SSLContext, expected: Identity):
    ours, theirs = trio.testing.memory_stream_pair()
    server = trio.SSLStream(theirs, server_context, server_side=True)
    client = TlsStream(ours, client_tls())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await client.do_handshake()
    verify_peer(client, expected.public_key, "alice")
    return client, server


async def test_the_handshake_is_tls_1_3_and_proves_the_identity():
    _, server = await handshake(server_tls(NODE), NODE)
    assert server.version() == "TLSv1.3"


async def test_what_is_written_is_read_at_the_other_end_all_that_came_at_once():
    client, server = await handshake(server_tls(NODE), NODE)
    for size in (1, 100_000):
        await client.send_all(bytes(size))
        received = b""
        while len(received) < size:
            received += await server.receive_some()
        assert received == bytes(size)
    await server.send_all(b"one record, ")
    await server.send_all(b"and another")
    assert await client.receive_some() == b"one record, and another"


async def test_reading_ends_when_the_other_end_closes_however_it_does():
    for close in (trio.SSLStream.aclose, lambda server: server.transport_stream.aclose()):
        client, server = await handshake(server_tls(NODE), NODE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close, server)
            assert await client.receive_some() == b""
            await client.aclose()


async def test_garbage_ends_the_handshake_and_reading():
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(b"no TLS at all")
    with pytest.raises(ssl.SSLError):
        await TlsStream(ours, client_tls()).do_handshake()
    client, server = await handshake(server_tls(NODE), NODE)
    await server.transport_stream.send_all(b"nor here, " * 100)
    with pytest.raises(ssl.SSLError):
        await client.receive_some()


async def test_a_peer_that_leaves_in_the_handshake():
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await TlsStream(ours, client_tls()).do_handshake()


async def test_tls_over_a_socket():
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            server = trio.SSLStream(await listener.accept(), server_tls(NODE), server_side=True, https_compatible=True)
            await server.send_all(await server.receive_some())
            await server.aclose()

        host, port = listener.socket.getsockname()[:2]
        async with TlsStream(await trio.open_tcp_stream(host, port), client_tls()) as client:
            await client.do_handshake()
            with trio.move_on_after(0):
                await client.receive_some()
            await client.send_all(b"there and back")
            assert await client.receive_some() == b"there and back"
            assert await client.receive_some() == b""


async def test_another_identity_is_refused():
    with pytest.raises(NodeFailed, match="another node's"):
        await handshake(server_tls(Identity.generate()), NODE)


async def test_a_key_of_another_kind_is_refused(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    genuine = make_certificate(NODE)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(genuine.subject)
        .issuer_name(genuine.issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(genuine.not_valid_before_utc)
        .not_valid_after(genuine.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "other.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with pytest.raises(NodeFailed, match="no node's"):
        await handshake(context, NODE)
