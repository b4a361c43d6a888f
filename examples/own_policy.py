"""Choosing nodes by rules of one's own: only nodes that one trusts, and of them the one that is the least busy.

A policy gets the nodes that just answered, and returns those that may be asked, the best first. It also holds for the
node that an answer goes on from when its own dies.

python examples/own_policy.py 127.0.0.1:8001 node-1,node-2
"""

import sys
from collections.abc import Sequence

from llamanet.client import Client
from llamanet.swarm import Considered

bootstrap, trusted = sys.argv[1], set(sys.argv[2].split(","))


def trusted_and_idle(nodes: Sequence[Considered]) -> list[Considered]:
    # A label is only a name that a node gave itself. Where nobody else may pass for it, compare `node.id` instead.
    return sorted((node for node in nodes if node.node_id in trusted), key=lambda node: node.running + node.waiting)


with Client(bootstrap_nodes=bootstrap, strategy=trusted_and_idle) as client:
    reply = client.generate("A llama is", max_tokens=24)
    print(reply.text)
    print(reply.choices[0])
