"""What travels between LlamaNet's parts: identities, records, datagrams and messages. No sockets, no clocks, no trio."""
