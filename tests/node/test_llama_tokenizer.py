"""Texts of any shape become tokens: none of them ends the process, and all of the text is there."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models

from llamanet.node.llama import LlamaBackend, LlamaConfig
from llamanet.node.llama_tokenizer import RUN

LONG = 60_000
CRASH = """
import sys, threading
from pathlib import Path
from llamanet.node.llama import LlamaBackend, LlamaConfig
backend = LlamaBackend(LlamaConfig(model_path=Path(sys.argv[1]), n_ctx=256, n_batch=64, n_parallel=1, n_threads=1))
def run():
    for text in ("a", " ", "漢", "1", "!", "\\u3000 ", "a\\x1c", "!\\n"):
        text = (text * 60_000)[:60_000]
        tokens = backend.tokenize(text)
        assert b"".join(map(backend.piece, tokens)).decode() == text, text[:4]
    print("alive")
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def load(path: Path) -> LlamaBackend:
    return LlamaBackend(LlamaConfig(model_path=path, n_ctx=256, n_batch=64, n_parallel=1, n_threads=1))


@pytest.mark.parametrize("rules", ["deepseek-llm", "gpt-4o", "bloom", "falcon", "tekken", "default"])
def test_a_long_run_of_one_kind_does_not_end_the_process(tmp_path: Path, rules: str) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_models.llama(path, rules=rules)
    done = subprocess.run([sys.executable, "-c", CRASH, path], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "alive\n", (done.returncode, done.stderr[-2000:])


def test_no_cut_goes_through_a_special_token(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_models.llama(path)
    backend = load(path)
    try:
        (special,) = backend.tokenize("<|endoftext|>")
        for before in range(RUN - len("<|endoftext|>") - 1, RUN + 2):
            tokens = backend.tokenize("x" * before + "<|endoftext|>" + "y" * 100)
            assert len(tokens) == before + 1 + 100
            assert tokens[before] == special
    finally:
        backend.close()


def test_a_piece_is_no_longer_than_is_said(backend: LlamaBackend) -> None:
    assert 64 <= backend.piece_bytes < 1_000
    assert max(len(backend.piece(token)) for token in range(backend.n_vocab)) <= backend.piece_bytes
