"""What travels between LlamaNet's parts: identities, records, datagrams, messages. No sockets, no clocks, no trio."""
