"""For tests of LlamaNet, and of what is built on it.

`network` carries datagrams in memory, `backend` is a model that recites a script, `cluster` runs whole nodes and
clients over both, `processes` real nodes. `simulator` runs thousands of DHT nodes; `churn` and `adversaries` make their
life hard.
"""
