"""What ``bireme serve`` hands to Ray Serve, of settings or of a file."""

from __future__ import annotations

import pytest
import yaml

from cluster.errors import BiremeError
from deployments.start.serve_config import BUILDER, configured_model, serve_config, without_keys


def test_settings_and_files_are_served_on_loopback_unless_they_say_otherwise(tmp_path):
    config = serve_config(["max_num_seqs=8", "model=x=y.gguf"])
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8000}
    assert (configured_model(config).max_num_seqs, configured_model(config).model) == (8, "x=y.gguf")
    file = tmp_path / "config.yaml"
    applications = [{"import_path": "deployments.llm:build_openai_app", "args": {"max_num_seqs": 3}}]
    file.write_text(yaml.safe_dump({"applications": applications}))
    assert serve_config([str(file)])["http_options"] == {"host": "127.0.0.1", "port": 8000}
    file.write_text(
        yaml.safe_dump({"applications": applications, "http_options": {"host": "0.0.0.0", "root_path": "/a"}})
    )
    assert serve_config([str(file)])["http_options"] == {"host": "0.0.0.0", "port": 8000, "root_path": "/a"}
    again = serve_config([str(file)], host="127.0.0.2", port=9)
    assert again["http_options"] == {"host": "127.0.0.2", "port": 9, "root_path": "/a"}
    assert configured_model(again).max_num_seqs == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("applications: [", "not YAML"),
        ("just a sentence", "no list named applications"),
        ("applications: []", "no list named applications"),
        ("applications: [{}]\nhttp_options: {port: 99999}", "port: got 99999, allowed: 1 to 65535"),
        ("applications: [{}]\nhttp_options: 8000", "http_options: got 8000"),
    ],
)
def test_a_file_that_is_no_serve_config_is_refused(tmp_path, content, message):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(BiremeError, match=message):
        serve_config([str(file)])


@pytest.mark.parametrize("keys", [["secret"], '["secret"]'])
@pytest.mark.parametrize("builder", [BUILDER, BUILDER.replace(":", ".")])
def test_keys_of_a_file_reach_serve_as_the_name_of_another_that_only_this_user_may_read(tmp_path, keys, builder):
    ours = {"import_path": builder, "args": {"api_keys": keys, "max_num_seqs": 2}}
    others = {"import_path": "theirs:app", "args": {"api_keys": "what they take for it"}}
    open_one = {"import_path": BUILDER}
    config = without_keys({"applications": [open_one, ours, others]}, tmp_path)
    file = tmp_path / "api-keys-1"
    arguments = {"api_keys_file": str(file), "max_num_seqs": 2}
    assert config == {"applications": [open_one, {"import_path": builder, "args": arguments}, others]}
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("secret\n", 0o600)
