from pathlib import Path

import pytest

from llamanet.errors import ModelFileError, UserError
from llamanet.models.source import HubSource, choose, parse_source, quant_of


def test_what_a_user_may_mean() -> None:
    assert parse_source("hf:owner/repo") == HubSource("owner/repo")
    assert parse_source("hf:owner/repo:Q4_K_M") == HubSource("owner/repo", "Q4_K_M")
    assert parse_source("hf:owner/repo:sub/a.gguf") == HubSource("owner/repo", "sub/a.gguf")
    assert parse_source("hf:owner/repo@v1.0") == HubSource("owner/repo", None, "v1.0")
    assert parse_source("hf:owner/repo@refs/pr/1:sub/a.gguf") == HubSource("owner/repo", "sub/a.gguf", "refs/pr/1")
    assert parse_source("models/a.gguf") == Path("models/a.gguf")
    assert parse_source("a.gguf") == Path("a.gguf")
    assert parse_source("some-name.Q4_1") == "some-name.Q4_1"
    assert str(HubSource("owner/repo", "Q8_0")) == "hf:owner/repo:Q8_0"
    assert str(HubSource("owner/repo", "Q8_0", "v1")) == "hf:owner/repo@v1:Q8_0"
    for text in ("hf:owner/repo@", "hf:owner/repo@../x:Q8_0", "hf:owner/repo@a b", "hf:owner/repo@v1@v2"):
        with pytest.raises(UserError, match="after the @ write a branch"):
            parse_source(text)
    for text in ("hf:", "hf:repo", "hf:a/b/c", "hf:owner/re po", "hf:../x"):
        with pytest.raises(UserError, match="write hf:owner/repo"):
            parse_source(text)


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen2.5-7B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("Q4_K_M/x-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("a-BF16.gguf", "BF16"),
        ("plain.gguf", None),
        ("Q-learning-7b.gguf", None),
    ],
)
def test_the_quantisation_is_told_by_the_name(name: str, quant: str | None) -> None:
    assert quant_of(name) == quant


FILES = (
    "README.md",
    "a-Q2_K.gguf",
    "a-Q4_K_S.gguf",
    "a-Q4_K_M.gguf",
    "a-Q8_0.gguf",
    "mmproj-a-F16.gguf",
    "Q6_K/a-Q6_K-00001-of-00002.gguf",
    "Q6_K/a-Q6_K-00002-of-00002.gguf",
    "b-Q8_0.gguf",
)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (None, ("a-Q4_K_M.gguf",)),
        ("Q4_K_M", ("a-Q4_K_M.gguf",)),
        ("q2_k", ("a-Q2_K.gguf",)),
        ("a-Q8_0.gguf", ("a-Q8_0.gguf",)),
        ("a-Q8_0", ("a-Q8_0.gguf",)),
        ("Q6_K", ("Q6_K/a-Q6_K-00001-of-00002.gguf", "Q6_K/a-Q6_K-00002-of-00002.gguf")),
        (
            "Q6_K/a-Q6_K-00002-of-00002.gguf",
            ("Q6_K/a-Q6_K-00001-of-00002.gguf", "Q6_K/a-Q6_K-00002-of-00002.gguf"),
        ),
    ],
)
def test_the_file_that_is_meant(wanted: str | None, chosen: tuple[str, ...]) -> None:
    assert choose(HubSource("o/r", wanted), FILES) == chosen


def test_without_the_usual_quantisation_the_first_file_is_taken() -> None:
    assert choose(HubSource("o/r"), ("b-Q8_0.gguf", "a-Q6_K.gguf")) == ("a-Q6_K.gguf",)


@pytest.mark.parametrize(
    ("wanted", "names", "complaint"),
    [
        ("Q8_0", FILES, "2 files are meant by 'Q8_0'; name one: a-Q8_0.gguf, b-Q8_0.gguf"),
        ("Q3_K", FILES, "no file is 'Q3_K' there; there are Q6_K, Q2_K, Q4_K_M, Q4_K_S, Q8_0"),
        ("Q4_K", FILES, "no file is 'Q4_K' there"),
        (None, ("README.md", "mmproj-a-F16.gguf"), "holds no GGUF model"),
        (None, ("a-00001-of-00003.gguf", "a-00003-of-00003.gguf"), "a-00002-of-00003.gguf of 3 files is missing"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(wanted: str | None, names: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        choose(HubSource("o/r", wanted), names)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
