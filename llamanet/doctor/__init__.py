"""Finding out what is wrong with a node or a client, and what to do about it: facts are collected, then judged."""
