"""Kademlia over boxed datagrams: routing table, lookup, storage and handlers are pure; one thin trio service over UDP."""
