"""Finding, choosing, streaming, and going on elsewhere when a node dies. Knows nothing of engines."""
