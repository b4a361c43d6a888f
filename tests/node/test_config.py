from pathlib import Path

import attrs
import pytest

from llamanet.errors import UserError
from llamanet.node.config import MAX_ANNOUNCED_HOST, NodeConfig
from llamanet.settings import is_host
from llamanet.wire.facts import MAX_VALUE_BYTES, ServiceFacts, encode_facts

MODEL = (Path("model.gguf"),)


def test_the_defaults_are_those_of_the_documentation():
    settings = attrs.asdict(NodeConfig(model_path=MODEL))
    assert settings == {
        "model_path": MODEL,
        "upstream": None,
        "upstream_api_key": None,
        "upstream_model": (),
        "host": "0.0.0.0",
        "port": 8000,
        "dht_port": 8001,
        "node_id": None,
        "bootstrap_nodes": (),
        "join": None,
        "swarm_name": None,
        "heartbeat_interval": 10.0,
        "n_ctx": 2048,
        "n_batch": 512,
        "n_gpu_layers": 0,
        "main_gpu": 0,
        "split_mode": "layer",
        "flash_attn": "auto",
        "cache_type_k": "auto",
        "cache_type_v": "auto",
        "chat_template": None,
        "n_parallel": 4,
        "n_threads": None,
        "announce": None,
        "data_dir": None,
        "log_level": "info",
        "log_format": "text",
        "no_tls": False,
        "swarm_key_file": None,
        "control": None,
        "idle_unload": None,
        "owner_first": False,
    }


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("model_path", (), "--model-path (MODEL_PATH) is required"),
        ("host", "", "--host (HOST) must be an IP address or a host name, not ''"),
        ("host", "1.2.3.400", "--host (HOST) must be"),
        ("host", "with space", "--host (HOST) must be"),
        ("port", 65_536, "--port (PORT) must be a whole number from 0 to 65535, not 65536"),
        ("port", -1, "--port (PORT) must be"),
        ("dht_port", True, "--dht-port (DHT_PORT) must be"),
        ("node_id", "x" * 33, "--node-id (NODE_ID) must be 1 to 32 printable characters"),
        ("node_id", "\U0001f999" * 9, "--node-id (NODE_ID) must be"),
        ("node_id", "", "--node-id (NODE_ID) must be"),
        ("node_id", "a\nb", "--node-id (NODE_ID) must be"),
        (
            "heartbeat_interval",
            0.5,
            "--heartbeat-interval (HEARTBEAT_INTERVAL) must be a number of seconds from 1 to 600",
        ),
        ("heartbeat_interval", float("nan"), "--heartbeat-interval (HEARTBEAT_INTERVAL) must be"),
        ("n_ctx", 31, "--n-ctx (N_CTX) must be"),
        ("n_batch", 0, "--n-batch (N_BATCH) must be"),
        ("n_gpu_layers", -2, "--n-gpu-layers (N_GPU_LAYERS) must be"),
        ("main_gpu", -1, "--main-gpu (MAIN_GPU) must be a whole number from 0 to 255, not -1"),
        ("split_mode", "col", "--split-mode (SPLIT_MODE) must be one of none, layer, row, not 'col'"),
        ("flash_attn", True, "--flash-attn (FLASH_ATTN) must be one of auto, on, off, not True"),
        ("cache_type_k", "q2_k", "--cache-type-k (CACHE_TYPE_K) must be one of auto, f32, f16, bf16, q8_0, q5_1,"),
        ("cache_type_v", "", "--cache-type-v (CACHE_TYPE_V) must be one of auto,"),
        ("n_parallel", 0, "--n-parallel (N_PARALLEL) must be"),
        ("n_threads", 0, "--n-threads (N_THREADS) must be"),
        ("announce", "not a host", "--announce (ANNOUNCE) must be"),
        ("announce", "a." * 60 + "org", "--announce (ANNOUNCE) must be"),
        ("announce", "192.0.2.7,a b", "--announce (ANNOUNCE) must be one to 3 IP addresses or host names"),
        ("announce", "a,b,c,d", "--announce (ANNOUNCE) must be"),
        ("announce", " , ", "--announce (ANNOUNCE) must be"),
        ("idle_unload", 0.5, "--idle-unload (IDLE_UNLOAD) must be a number of seconds from 1 to 1e+07, not 0.5"),
        ("log_level", "loud", "--log-level (LOG_LEVEL) must be one of debug, info, warning, error, not 'loud'"),
        ("log_format", "xml", "--log-format (LOG_FORMAT) must be"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(setting, value, complaint):
    with pytest.raises(UserError) as caught:
        NodeConfig(**{"model_path": MODEL, setting: value})
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


def test_quantised_values_need_flash_attention():
    with pytest.raises(UserError, match="needs flash attention, and --flash-attn") as caught:
        NodeConfig(model_path=MODEL, cache_type_v="q8_0", flash_attn="off")
    assert str(caught.value).startswith("--cache-type-v (CACHE_TYPE_V) q8_0")
    NodeConfig(model_path=MODEL, cache_type_k="q8_0", flash_attn="off")
    NodeConfig(model_path=MODEL, cache_type_v="q8_0", flash_attn="on")


def test_the_longest_host_and_label_fit_a_record():
    config = NodeConfig(
        model_path=MODEL, announce="a" * 49 + "." + "b" * (MAX_ANNOUNCED_HOST - 50), node_id="\U0001f999" * 8
    )
    facts = ServiceFacts(
        hosts=(config.announce,),
        port=65_535,
        dht_port=65_535,
        tls=True,
        label=config.node_id,
        digest=bytes(32),
        n_ctx=2**40,
        slots=65_535,
        version="1" * 32,
        capabilities=("embeddings",),
    )
    assert len(encode_facts(facts)) <= MAX_VALUE_BYTES


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "2001:db8::1", "localhost", "a-b.example.org", "my_host", "node1"])
def test_hosts(host):
    assert is_host(host)
    assert NodeConfig(model_path=MODEL, host=host, announce=host).host == host
