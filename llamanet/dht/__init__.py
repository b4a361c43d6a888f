"""Kademlia, from scratch: routing table, lookup and record store as pure code, and one trio service over UDP."""
