"""Hypothesis strategies for everything that travels; each makes only what the protocol allows."""

from hypothesis import strategies as st

from llamanet.wire import facts, inference, rpc, state, tools
from llamanet.wire.identity import PublicKey


def valid_text(least: int, most: int) -> st.SearchStrategy[str]:
    # Long text is no more interesting than short; the bounds themselves have tests of their own.
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=least, max_size=min(most, 32))


def binary(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


ports = st.integers(1, 65_535)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None).map(str)
single_floats = st.floats(0, 1e9, width=32)
addresses = st.builds(
    lambda host, port: rpc.Address(rpc.unpack_host_untrusted(rpc.pack_host(host)), port), ipv4 | ipv6, ports
)
contacts = st.builds(rpc.Contact, binary(32).map(PublicKey), addresses)
transactions = binary(8)
tokens = binary(8)
contact_lists = st.lists(contacts, max_size=16).map(tuple)
model_names = valid_text(0, 96)

model_states = st.builds(
    state.ModelState,
    name=model_names,
    running=st.integers(0, 65_535),
    waiting=st.integers(0, 65_535),
    slots=st.integers(0, 65_535),
    tokens_per_second=single_floats,
    prefill_tokens_per_second=single_floats,
    ttft_s=single_floats,
    n_ctx=st.integers(0, 2**40),
)
publishers = st.integers(0, 2**31)
rpcs = st.one_of(
    st.builds(rpc.Ping, transaction=transactions, client=st.booleans(), model=st.none() | model_names),
    st.builds(rpc.FindNode, transaction=transactions, client=st.booleans(), target=binary(32)),
    st.builds(
        rpc.FindValue,
        transaction=transactions,
        client=st.booleans(),
        key=binary(32),
        cursor=st.none() | st.integers(0, 2**32 - 1),
    ),
    st.builds(
        rpc.Store,
        transaction=transactions,
        client=st.booleans(),
        token=tokens,
        record=st.binary(max_size=400),
        cache=st.booleans(),
    ),
    st.builds(
        rpc.Pong,
        transaction=transactions,
        observed=addresses,
        draining=st.booleans(),
        version=valid_text(0, 32),
        models=st.lists(model_states, max_size=5).map(tuple),
        clock=st.integers(0, 2**40),
    ),
    st.builds(
        rpc.DialBack,
        transaction=transactions,
        client=st.booleans(),
        token=tokens,
        udp_port=st.none() | ports,
        tcp_port=st.none() | ports,
    ),
    st.builds(
        rpc.DialedBack,
        transaction=transactions,
        observed=addresses,
        answered_by=st.none() | binary(32),
        connected=st.booleans(),
    ),
    st.builds(rpc.Nodes, transaction=transactions, observed=addresses, token=tokens, contacts=contact_lists),
    st.builds(
        rpc.Values,
        transaction=transactions,
        observed=addresses,
        token=tokens,
        records=st.lists(st.binary(max_size=400), max_size=8).map(tuple),
        total=st.integers(0, 2**31),
        next_cursor=st.none() | st.integers(0, 2**32 - 1),
        contacts=contact_lists,
        publishers=publishers,
    ),
    st.builds(rpc.Stored, transaction=transactions, observed=addresses, publishers=publishers),
    st.builds(
        rpc.Refused,
        transaction=transactions,
        observed=addresses,
        reason=valid_text(0, 64),
        newer=st.none() | st.binary(max_size=400),
        publishers=publishers,
    ),
)

host_lists = st.lists(valid_text(1, 40), max_size=3).map(tuple)
labels = st.text("abcdefgh-0123456789é", min_size=1, max_size=32)
versions = st.text("0123456789.", max_size=12)
service_facts = st.builds(
    facts.ServiceFacts,
    hosts=st.lists(ipv4 | ipv6, max_size=3).map(tuple),
    port=ports,
    dht_port=ports,
    tls=st.booleans(),
    label=st.text("abcdefgh-0123456789", min_size=1, max_size=32),
    digest=binary(32),
    n_ctx=st.integers(0, 2**40),
    slots=st.integers(0, 65_535),
    version=versions,
    capabilities=st.lists(st.sampled_from(["embed", "json"]), max_size=2).map(tuple),
)
node_facts = st.builds(
    facts.NodeFacts,
    hosts=host_lists,
    port=ports,
    dht_port=ports,
    tls=st.booleans(),
    label=labels,
    models=st.lists(model_names, max_size=20).map(tuple),
    model_count=st.integers(0, 65_535),
    version=versions,
    running=st.integers(0, 2**31),
    waiting=st.integers(0, 2**31),
    slots=st.integers(0, 2**31),
    tokens_per_second=single_floats,
    draining=st.booleans(),
)

request_ids = st.integers(0, 2**53 - 1)
token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=8).map(tuple)
counts = st.integers(0, 2**53)
samplings = st.builds(
    inference.Sampling,
    temperature=st.floats(0, 10),
    top_k=st.integers(0, 1_000_000),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    typical_p=st.floats(0, 1),
    repeat_penalty=st.floats(0.01, 10),
    presence_penalty=st.floats(-10, 10),
    frequency_penalty=st.floats(-10, 10),
    penalty_last_n=st.integers(0, 65_536),
    seed=st.none() | st.integers(0, 2**63 - 1),
    max_tokens=st.none() | st.integers(1, 1_000_000),
    stop=st.lists(valid_text(1, 256), max_size=16).map(tuple),
    min_tokens=st.integers(0, 1_000_000),
    ignore_eos=st.booleans(),
    logit_bias=st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-100, 100)), max_size=2).map(tuple),
    dry_multiplier=st.floats(0, 100),
    dry_base=st.floats(1, 100),
    dry_allowed_length=st.integers(0, 65_536),
    dry_penalty_last_n=st.none() | st.integers(0, 65_536),
    dry_sequence_breakers=st.lists(valid_text(1, 64), max_size=2).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    grammar=st.none() | valid_text(1, 1000),
    json_schema=st.none() | valid_text(1, 1000),
)
chances = {"token": st.integers(0, 2**31 - 1), "piece": st.binary(max_size=32), "logprob": st.floats(-1e6, 0)}
token_logprobs = st.builds(
    inference.TokenLogprobs,
    **chances,
    top=st.lists(st.builds(inference.TokenChance, **chances), max_size=2).map(tuple),
)
chats = st.lists(
    st.builds(
        inference.ChatMessage,
        role=valid_text(1, 64),
        content=valid_text(0, 1000),
        tool_calls=st.lists(
            st.builds(tools.ToolCall, id=valid_text(1, 256), name=valid_text(1, 128), arguments=valid_text(0, 100)),
            max_size=2,
        ).map(tuple),
        tool_call_id=st.none() | valid_text(1, 256),
    ),
    min_size=1,
    max_size=4,
).map(tuple)
_tools = {
    "tools": st.lists(
        st.builds(
            tools.Tool,
            name=valid_text(1, 128),
            description=valid_text(0, 100),
            parameters=st.none() | valid_text(1, 100),
        ),
        max_size=2,
    ).map(tuple),
    "tool_choice": st.sampled_from(["auto", "required"]),
    "tool_name": st.none() | valid_text(1, 128),
    "parallel_tool_calls": st.none() | st.booleans(),
}
_generate = {
    "id": request_ids,
    "model": st.none() | model_names,
    "resume": token_ids,
    "digest": st.none() | binary(32),
    "sampling": samplings,
    "live_state": st.booleans(),
}
client_messages = st.one_of(
    st.builds(inference.Generate, prompt=valid_text(0, 1000), **_generate),
    st.builds(inference.Generate, messages=chats, **_generate, **_tools),
    st.builds(
        inference.Embed,
        id=request_ids,
        texts=st.lists(valid_text(0, 100), min_size=1, max_size=3).map(tuple),
        model=st.none() | model_names,
        digest=st.none() | binary(32),
    ),
    st.builds(inference.Cancel, id=request_ids),
    st.builds(inference.Status, id=request_ids),
)
seconds = st.floats(0, 1e6)
node_messages = st.one_of(
    st.builds(
        inference.Accepted,
        id=request_ids,
        node_id=valid_text(0, 64),
        prompt_tokens=counts,
        cached_tokens=counts,
        tool_format=st.none() | valid_text(0, 32),
        state=st.none() | model_states,
    ),
    st.builds(
        inference.Tokens,
        id=request_ids,
        text=valid_text(0, 100),
        token_ids=token_ids,
        logprobs=st.lists(token_logprobs, max_size=2).map(tuple),
    ),
    st.builds(
        inference.Embeddings,
        id=request_ids,
        node_id=valid_text(0, 64),
        vectors=st.lists(st.binary(max_size=64), max_size=3).map(tuple),
        prompt_tokens=counts,
    ),
    st.builds(
        inference.Finished,
        id=request_ids,
        reason=st.sampled_from(["stop", "length", "context"]),
        usage=st.builds(inference.Usage, prompt_tokens=counts, completion_tokens=counts, cached_tokens=counts),
        timings=st.builds(inference.Timings, queue_s=seconds, prefill_s=seconds, decode_s=seconds),
        state=st.none() | model_states,
    ),
    st.builds(
        inference.Failed,
        code=valid_text(0, 32),
        message=valid_text(0, 4_000),
        id=st.none() | request_ids,
        field=st.none() | valid_text(0, 200),
        limit=st.none() | valid_text(0, 2_000),
        retry_after=st.none() | seconds,
    ),
    st.builds(
        inference.StatusReply,
        id=request_ids,
        node_id=valid_text(0, 64),
        version=valid_text(0, 64),
        draining=st.booleans(),
        models=st.lists(
            st.builds(
                inference.ModelStatus,
                name=model_names,
                digest=binary(32),
                n_ctx=counts,
                slots=st.integers(0, 2**31),
                running=st.integers(0, 2**31),
                waiting=st.integers(0, 2**31),
                tokens_per_second=seconds,
                ttft_s=seconds,
                prefill_tokens_per_second=seconds,
                queue_s=seconds,
                gap_s=seconds,
                batch_tokens=seconds,
                prompt_tokens=counts,
                cached_tokens=counts,
                completion_tokens=counts,
                memory_tokens=counts,
            ),
            max_size=3,
        ).map(tuple),
    ),
)
