"""Kademlia over boxed datagrams: table, lookup, store and handlers are pure, under one thin trio service over UDP."""
