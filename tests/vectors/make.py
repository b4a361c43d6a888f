"""Makes the test vectors beside it: `python tests/vectors/make.py`.

Keys, nonces and times are fixed, so the files change only when the protocol does. Byte strings are in hexadecimal.
"""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
from cryptography.hazmat.primitives.serialization import Encoding

from llamanet.node.sampling import position_seed
from llamanet.node.tls import make_certificate
from llamanet.wire import facts, inference, rpc, tools
from llamanet.wire.envelope import Envelope, Network
from llamanet.wire.identity import Identity, short_name
from llamanet.wire.record import encode_record, sign_record
from llamanet.wire.state import ModelState

HERE = Path(__file__).parent
ALICE, BOB = Identity.from_seed(bytes(range(32))), Identity.from_seed(bytes(range(32, 64)))
NETWORKS = {
    "public": Network(),
    "named": Network("test"),
    "private": Network("test", bytes(range(64, 96))),
}
NONCE = bytes(range(100, 124))
TRANSACTION = bytes(range(8))
TOKEN = bytes(range(8, 16))
V4, V6 = rpc.Address("192.0.2.7", 8001), rpc.Address("2001:db8::7", 65_535)
CONTACTS = (rpc.Contact(ALICE.public_key, V4), rpc.Contact(BOB.public_key, V6))
MODEL = "SmolLM2-135M-Instruct.Q4_1"
STATE = ModelState(
    name=MODEL, running=2, waiting=1, slots=4, tokens_per_second=31.5, prefill_tokens_per_second=420.0, ttft_s=0.25,
    n_ctx=2048,
)  # fmt: skip


def plain(value: Any) -> Any:
    """A message as JSON can show it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, rpc.Address):
        return value._asdict()
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    if attrs.has(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    return value


def _identity() -> Any:
    return [
        {
            "seed": identity.seed.hex(),
            "public_key": identity.public_key.hex(),
            "node_id": identity.node_id.hex(),
            "short_name": short_name(identity.node_id),
            "exchange_key": identity.exchange_key().hex(),
            "message": b"llamanet".hex(),
            "signature": identity.sign(b"llamanet").hex(),
            "certificate": make_certificate(identity).public_bytes(Encoding.DER).hex(),
        }
        for identity in (ALICE, BOB)
    ]


def _envelope() -> Any:
    payload = rpc.encode_rpc(rpc.Ping(transaction=TRANSACTION, client=False))
    cases = []
    for label, network in NETWORKS.items():
        alice = Envelope(ALICE, network)
        with mock.patch("os.urandom", lambda size: NONCE[:size]):
            boxed, introduction = alice.seal(BOB.public_key, payload), alice.seal_introduction(payload)
        cases.append(
            {
                "network": label,
                "name": network.name,
                "swarm_key": network.swarm_key.hex() if network.swarm_key else None,
                "tag": network.tag.hex(),
                "signature_domain": network.signature_domain.hex(),
                "sender_seed": ALICE.seed.hex(),
                "receiver_seed": BOB.seed.hex(),
                "nonce": NONCE.hex(),
                "payload": payload.hex(),
                "boxed": boxed.hex(),
                "introduction": introduction.hex(),
            }
        )
    return cases


def _rpc() -> Any:
    record = _record_of(NETWORKS["public"], lifetime=300)
    asks = {"transaction": TRANSACTION, "client": False}
    tells, told = ({"transaction": TRANSACTION, "observed": address} for address in (V4, V6))
    messages: list[tuple[Any, int]] = [
        (rpc.Ping(**asks), 0),
        (rpc.Ping(transaction=TRANSACTION, client=True, model=MODEL), 100),
        (rpc.FindNode(**asks, target=ALICE.node_id), 320),
        (rpc.FindValue(**asks, key=facts.key_of("all_nodes")), 320),
        (rpc.FindValue(**asks, key=facts.key_of("all_nodes"), cursor=0xDEADBEEF), 0),
        (rpc.Store(**asks, token=TOKEN, record=encode_record(record)), 0),
        (rpc.Store(**asks, token=TOKEN, record=encode_record(record), cache=True), 0),
        (rpc.Pong(**tells), 0),
        (rpc.Pong(**told, draining=True, version="0.1.0", models=(STATE,), clock=1_900_000_000), 0),
        (rpc.Nodes(**tells, token=TOKEN, contacts=CONTACTS), 0),
        (
            rpc.Values(
                **tells,
                token=TOKEN,
                records=(encode_record(record),),
                total=3,
                next_cursor=0x1234,
                contacts=CONTACTS[:1],
                publishers=3,
            ),
            0,
        ),
        (rpc.Values(**tells, token=TOKEN, records=(), total=0, next_cursor=None, contacts=()), 0),
        (rpc.Stored(**tells, publishers=10_000), 0),
        (rpc.Refused(**tells, reason="a newer record is stored", newer=encode_record(record)), 0),
        (rpc.DialBack(**asks, token=TOKEN, udp_port=8001, tcp_port=8000), 320),
        (rpc.DialedBack(**tells, answered_by=BOB.public_key, connected=False), 0),
    ]
    return [
        {
            "type": type(message).__name__,
            "fields": plain(message),
            "padded_to": pad_to,
            "payload": rpc.encode_rpc(message, pad_to=pad_to).hex(),
        }
        for message, pad_to in messages
    ]


def _record_of(network: Network, lifetime: int) -> Any:
    return sign_record(
        ALICE,
        network,
        key=facts.key_of(facts.model_key_name(MODEL)),
        sequence=1_700_000_000_123,
        issued_at=1_700_000_000,
        lifetime=lifetime,
        value=facts.encode_facts(SERVICE) if lifetime else b"",
    )


def _record() -> Any:
    cases = []
    for label, network in NETWORKS.items():
        for lifetime in (300, 0):
            record = _record_of(network, lifetime)
            # What is signed, seen on its way to the key that signs it.
            with mock.patch.object(Identity, "sign", return_value=bytes(64)) as sign:
                _record_of(network, lifetime)
            cases.append(
                {
                    "network": label,
                    "seed": ALICE.seed.hex(),
                    "fields": plain(record),
                    "publisher": record.publisher.hex(),
                    "expires_at": record.expires_at,
                    "signed_bytes": sign.call_args.args[0].hex(),
                    "encoded": encode_record(record).hex(),
                }
            )
    return cases


SERVICE = facts.ServiceFacts(
    hosts=("192.0.2.7", "node.example"), port=8000, dht_port=8001, tls=True, label="bootstrap-node",
    digest=bytes(range(32)), n_ctx=2048, slots=4, version="0.1.0",
)  # fmt: skip
NODE = facts.NodeFacts(
    hosts=("192.0.2.7",), port=8000, dht_port=8001, tls=True, label="bootstrap-node", models=(MODEL,), model_count=1,
    version="0.1.0", running=2, waiting=1, slots=4, tokens_per_second=31.5,
)  # fmt: skip


def _facts() -> Any:
    names = [
        facts.model_key_name(MODEL),
        facts.node_key_name("bootstrap-node"),
        facts.node_key_name(ALICE.node_id),
        facts.ALL_NODES,
    ]
    return {
        "keys": [{"name": name, "key": facts.key_of(name).hex()} for name in names],
        "values": [
            {"type": type(value).__name__, "fields": plain(value), "value": facts.encode_facts(value).hex()}
            for value in (SERVICE, NODE)
        ],
    }


def _inference() -> Any:
    usage = inference.Usage(prompt_tokens=12, completion_tokens=3, cached_tokens=8)
    model = inference.ModelStatus(
        name=MODEL,
        digest=bytes(range(32)),
        n_ctx=2048,
        slots=4,
        running=2,
        waiting=1,
        tokens_per_second=31.5,
        ttft_s=0.25,
        prefill_tokens_per_second=410.0,
        queue_s=0.125,
        gap_s=0.03125,
        batch_tokens=12.5,
        prompt_tokens=9000,
        cached_tokens=7000,
        completion_tokens=800,
        memory_tokens=1234,
        first_s=0.375,
        embedded_tokens=640,
    )
    chance = inference.TokenChance(token=5, piece=b" \xc3", logprob=-0.25)
    logprobs = inference.TokenLogprobs(
        token=5, piece=b" \xc3", logprob=-0.25, top=(chance, inference.TokenChance(token=0, piece=b"", logprob=-2.5))
    )
    messages: list[Any] = [
        inference.Generate(id=1, prompt="What is LlamaNet?"),
        inference.Generate(
            id=2,
            model=MODEL,
            messages=(
                inference.ChatMessage(role="system", content="Be brief."),
                inference.ChatMessage(role="user", content="Grüße 🦙"),
            ),
            resume=(198, 30_000),
            digest=bytes(range(32)),
            sampling=inference.Sampling(temperature=0.0, seed=7, max_tokens=64, stop=("\n\n",)),
        ),
        inference.Generate(
            id=4,
            prompt="One, two,",
            sampling=inference.Sampling(
                min_tokens=3,
                ignore_eos=True,
                logit_bias=((198, -100.0), (30_000, 1.5)),
                dry_multiplier=0.75,
                dry_base=2.0,
                dry_allowed_length=3,
                dry_penalty_last_n=512,
                dry_sequence_breakers=("\n",),
                logprobs=2,
            ),
        ),
        inference.Generate(id=5, prompt="Yes or no?", sampling=inference.Sampling(grammar='root ::= "yes" | "no"')),
        inference.Generate(id=6, prompt="JSON:", sampling=inference.Sampling(json_schema='{"type": "object"}')),
        inference.Generate(
            id=8,
            messages=(
                inference.ChatMessage(role="user", content="Weather in Bern?"),
                inference.ChatMessage(
                    role="assistant",
                    content="",
                    tool_calls=(tools.ToolCall(id="a1b2c3d4e", name="weather", arguments='{"city": "Bern"}'),),
                ),
                inference.ChatMessage(role="tool", content="rain", tool_call_id="a1b2c3d4e"),
            ),
            tools=(
                tools.Tool(name="weather", description="The weather now.", parameters='{"type": "object"}'),
                tools.Tool(name="time"),
            ),
            tool_choice="required",
            tool_name="time",
            parallel_tool_calls=False,
        ),
        inference.Generate(
            id=9,
            messages=(
                inference.ChatMessage(role="user", content="Count."),
                inference.ChatMessage(role="assistant", content="One, two,"),
            ),
            continue_final_message=True,
        ),
        inference.Generate(id=11, model=MODEL, prompt="How busy are you?", live_state=True),
        inference.Embed(id=7, model=MODEL, texts=("Grüße", "🦙"), digest=bytes(range(32))),
        inference.Cancel(id=1),
        inference.Status(id=3),
        inference.Accepted(id=1, node_id="bootstrap-node", prompt_tokens=12, cached_tokens=8),
        inference.Accepted(id=8, node_id="bootstrap-node", prompt_tokens=90, tool_format="hermes"),
        inference.Accepted(id=11, node_id="bootstrap-node", prompt_tokens=5, state=STATE),
        inference.Tokens(id=1, text=" é", token_ids=(5, 70_000)),
        inference.Tokens(id=4, text="", token_ids=(5,), logprobs=(logprobs,)),
        inference.Embeddings(
            id=7, node_id="bootstrap-node", vectors=(bytes.fromhex("cdcccc3ecdcc4c3f"),) * 2, prompt_tokens=9
        ),
        inference.Finished(
            id=1, reason="length", usage=usage, timings=inference.Timings(queue_s=0.5, prefill_s=0.125, decode_s=2.25)
        ),
        inference.Finished(id=11, reason="stop", usage=usage, state=STATE),
        inference.Failed(code="bad_request", message="not a map"),
        inference.Failed(id=1, code="busy", message="the queue is full", retry_after=1.5),
        inference.Failed(id=1, code="too_long", message="the prompt is too long", field="prompt", limit="2047 tokens"),
        inference.StatusReply(id=3, node_id="bootstrap-node", version="0.1.0", draining=False, models=(model,)),
    ]
    return [
        {
            "from": "client" if type(message) in inference.CLIENT_MESSAGES.values() else "node",
            "fields": plain(message),
            "msgpack": inference.encode_message(message).hex(),
            "json": inference.encode_message(message, as_json=True),
        }
        for message in messages
    ]


def _draws() -> Any:
    seeds = (0, 7, 2**32, 2**63 - 1)
    positions = (0, 1, 2, 1000)
    return [{"seed": s, "position": p, "position_seed": position_seed(s, p)} for s in seeds for p in positions]


def make() -> dict[str, str]:
    """The text of each file, by its name."""
    made = {
        "identity.json": _identity(),
        "envelope.json": _envelope(),
        "rpc.json": _rpc(),
        "record.json": _record(),
        "facts.json": _facts(),
        "inference.json": _inference(),
        "draws.json": _draws(),
    }
    return {name: json.dumps(value, indent=1, ensure_ascii=False) + "\n" for name, value in made.items()}


if __name__ == "__main__":
    for name, content in make().items():
        (HERE / name).write_text(content, encoding="utf-8")
        print(HERE / name)
