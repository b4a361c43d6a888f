import pytest
from wsproto.frame_protocol import FrameProtocol, Opcode

from llamanet.node.connection import framed


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_a_frame_of_any_length_is_read_by_a_client(length: int) -> None:
    for message, opcode in ((b"\x82" * length, Opcode.BINARY), ("x" * length, Opcode.TEXT)):
        protocol = FrameProtocol(client=True, extensions=[])
        protocol.receive_bytes(framed(message) + framed("ä"))
        payloads = [(frame.opcode, frame.payload, frame.message_finished) for frame in protocol.received_frames()]
        assert payloads == [(opcode, message, True), (Opcode.TEXT, "ä", True)]
