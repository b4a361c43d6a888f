"""One request for embeddings on its way through an engine.

Its texts are computed a batch at a time, and the next batch is sent when the one before is there: so the streams of the
same engine take a step between any two.
"""

import trio

from llamanet.node.backend import BackendError
from llamanet.node.core import EmbedBatch, Embedded
from llamanet.node.worker import Worker
from llamanet.wire.inference import Embed, Embeddings, Failed


class Embedding:
    """Made by `Engine.embed`."""

    def __init__(self, serial: int, request: Embed, n_batch: int, slots: int, worker: Worker) -> None:
        self._serial = serial
        self._request = request
        self._n_batch = n_batch
        self._slots = slots
        self._worker = worker
        self._result: list[bytes] | BackendError | None = None
        self._draining = False
        self._news = trio.Event()

    async def run(self, texts: list[list[int]], *, node_id: str, able: bool) -> Embeddings | Failed:
        """The answer for the request's tokenized texts; `able` says whether the model gives embeddings."""
        if not able:
            return self._failed("bad_request", "this model gives no embeddings", "model", "a model with embeddings")
        for number, tokens in enumerate(texts):
            field = f"texts[{number}]"
            if not tokens:
                return self._failed("bad_request", "the text is empty", field, "at least one token")
            if len(tokens) > self._n_batch:
                message = f"the text has {len(tokens)} tokens, and one batch of {self._n_batch} must hold it"
                return self._failed("too_long", message, field, f"{self._n_batch} tokens")
        vectors: list[bytes] = []
        while len(vectors) < len(texts) and not self._draining:
            self._news, self._result = trio.Event(), None
            self._worker.send(EmbedBatch(self._serial, self._batch(texts[len(vectors) :])))
            await self._news.wait()
            if isinstance(self._result, BackendError):
                return self._failed("internal", str(self._result))
            vectors += self._result or []
        if len(vectors) < len(texts):
            return self._failed("draining", "the node is shutting down")
        tokens_read = sum(map(len, texts))
        return Embeddings(id=self._request.id, node_id=node_id, vectors=tuple(vectors), prompt_tokens=tokens_read)

    def take(self, event: Embedded) -> None:
        """A batch is there."""
        self._result = event.result
        self._news.set()

    def drain(self) -> None:
        """No further batch will be computed."""
        self._draining = True
        self._news.set()

    def _batch(self, texts: list[list[int]]) -> list[list[int]]:
        """As many of the first texts as one batch holds, at most one a slot."""
        room = self._n_batch
        batch = []
        for tokens in texts[: self._slots]:
            if len(tokens) > room:
                break
            room -= len(tokens)
            batch.append(tokens)
        return batch

    def _failed(self, code: str, message: str, field: str | None = None, limit: str | None = None) -> Failed:
        return Failed(id=self._request.id, code=code, message=message, field=field, limit=limit)
