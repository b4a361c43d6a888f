"""Settings from a file: what comes before what, and what is told of mistakes."""

import pytest
from click.testing import CliRunner

from llamanet.cli import cli


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """Write a configuration file, and return what `llamanet node` would then be told."""

    def settings(content, *arguments, in_usual_place=False, **variables):
        file = tmp_path / ("llamanet" if in_usual_place else ".") / "config.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        seen = {}
        command = cli.get_command(None, "node")
        monkeypatch.setattr(command, "callback", lambda **given: seen.update(given))
        given = [] if in_usual_place else ["--config", str(file)]
        result = CliRunner().invoke(
            cli, ["node", *given, *arguments], env=variables, standalone_mode=False, catch_exceptions=True
        )
        if result.exception:
            raise result.exception
        return seen

    return settings


def test_a_flag_comes_before_a_variable_before_the_file_before_the_default(configured):
    content = "[node]\nport = 1\nn_ctx = 64\nn_parallel = 2\n"
    seen = configured(content, "--port", "3", N_CTX="128", PORT="2")
    assert (seen["port"], seen["n_ctx"], seen["n_parallel"], seen["n_batch"]) == (3, 128, 2, 512)


def test_a_commands_table_comes_before_what_is_for_all(configured):
    seen = configured('n_ctx = 64\nnode-id = "all"\nmax_tokens = 5\n[node]\nnode_id = "one"\n[ask]\nseed = 1\n')
    assert (seen["n_ctx"], seen["node_id"]) == (64, "one")


def test_lists_are_given_as_the_flags_take_them(configured):
    seen = configured('bootstrap_nodes = ["a:1", "b:2"]\n[node]\nmodel_path = ["x.gguf", "y.gguf"]\nno_tls = true\n')
    assert seen["bootstrap_nodes"] == ("a:1", "b:2")
    assert [str(path) for path in seen["model_path"]] == ["x.gguf", "y.gguf"]
    assert seen["no_tls"] is True


def test_one_value_will_do_for_a_flag_that_can_be_repeated(configured):
    assert [str(path) for path in configured('model_path = "x.gguf"')["model_path"]] == ["x.gguf"]


def test_the_file_in_the_usual_place_is_read(configured):
    assert configured("[node]\nport = 7", in_usual_place=True)["port"] == 7


def test_every_option_has_a_variable(configured):
    assert configured("", LLAMANET_NODE_N_CTX="96")["n_ctx"] == 96


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[node]\nn_cxt = 1", "[node] has no setting 'n_cxt'; is 'n_ctx' meant?"),
        ("bootstrap_node = 'a:1'", "no command has a setting 'bootstrap_node'; is 'bootstrap_nodes' meant?"),
        ("[nodde]\n", "there is no command for the table [nodde]; is 'node' meant?"),
        ("[node", "is not TOML"),
        ("[node]\nport = 'x'", "'x' is not a valid integer. (in {file})"),
        ("[node]\nport = 80.5", "'80.5' is not a valid integer. (in {file})"),
        ("port = true", "{file}: port cannot be True"),
        ("[node]\nhost = 2001-01-01", "{file}: [node] host cannot be datetime.date(2001, 1, 1)"),
        ("[node]\nmodel_path = [{{a = 1}}]", "{file}: [node] model_path cannot be {{'a': 1}}"),
        ("[node.port]\na = 1", "{file}: [node] port cannot be {{'a': 1}}"),
        ("[node]\nno_tls = 'maybe'", "{file}: [node] no_tls must be true or false, not 'maybe'"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_and_status_2(run, tmp_path, content, says):
    file = tmp_path / "llamanet.toml"
    file.write_text(content.format())
    result = run("node", "--config", file)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert says.format(file=file) in result.stderr


@pytest.mark.parametrize(
    ("content", "arguments", "variables", "says"),
    [
        ("[node]\nn_ctx = 5", (), {}, "not 5 (in {file}: [node] n_ctx)\n"),
        ("n-ctx = 5", (), {}, "not 5 (in {file}: n-ctx)\n"),
        ("[node]\nn_ctx = 5", ("--n-ctx", "6"), {}, "not 6\n"),
        ("[node]\nn_ctx = 5", (), {"N_CTX": "7"}, "not 7 (in the variable N_CTX)\n"),
        ("[node]\nn_ctx = 5", (), {"LLAMANET_NODE_N_CTX": "7"}, "not 7 (in the variable LLAMANET_NODE_N_CTX)\n"),
        ("[node]\nmodel = 'no.gguf'", (), {}, "no.gguf does not exist; check the path of the model\n"),
        (
            "[node]\nmodel = 'm'\nflash_attn = 'off'\ncache_type_v = 'q8_0'",
            (),
            {},
            "is off (in {file}: [node] flash_attn, in {file}: [node] cache_type_v)\n",
        ),
    ],
)
def test_a_value_that_cannot_be_right_is_told_with_its_place(run, tmp_path, content, arguments, variables, says):
    file = tmp_path / "llamanet.toml"
    file.write_text(content)
    result = run("node", "--config", file, *arguments, **variables)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.endswith(says.format(file=file))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_file_may_be_named_anywhere(run, tmp_path, place):
    file = tmp_path / "llamanet.toml"
    file.write_text(f"[control]\ndata_dir = '{tmp_path}'\ndht_port = 9\n")
    words = ["control", "status"]
    words[place:place] = ["--config", str(file)]
    result = run(*words, LLAMANET_CONFIG="none.toml")
    assert f"{tmp_path}/node-9.sock" in result.stderr
    assert "(in" in result.stderr
    assert "no configuration file none.toml" in run("--config", "none.toml", "nodes").stderr


def test_a_setting_of_all_reaches_the_commands_of_a_group(run, tmp_path):
    file = tmp_path / "llamanet.toml"
    file.write_text(f"data_dir = '{tmp_path}'\ndht_port = 7\n[control]\ndht_port = 9\n[keys]\nrpm = 3\n")
    assert f"{tmp_path}/node-9.sock" in run("control", "--config", file, "status").stderr
    assert f"{tmp_path}/node-8.sock" in run("control", "--config", file, "status", "--dht-port", "8").stderr
    assert f"{tmp_path}/node-7.key" in run("keys", "identity", LLAMANET_CONFIG=str(file)).stdout
    assert "rpm=3" in run("keys", "api", "me", LLAMANET_CONFIG=str(file)).stderr


def test_the_table_of_a_command_comes_first_whatever_its_flag_is_called(configured):
    assert configured("model = 'x.gguf'\n[node]\nmodel_path = 'y.gguf'")["model_path"] == ("y.gguf",)


def test_a_file_that_was_named_must_be_there(run, tmp_path):
    result = run("nodes", LLAMANET_CONFIG=str(tmp_path / "none.toml"))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "there is no configuration file" in result.stderr
