"""What ends a generation is read once, from every file that may say it, and the engine and the ingress read the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.model_files.config import load_model_config
from actors.model_files.end_tokens import eos_token_ids
from actors.model_files.gguf.tokens import END_OF_TURN
from actors.model_files.source import ModelSource, resolve_model
from actors.text.gguf_tokenizer import build_tokenizer
from actors.text.tokenizer import load_tokenizer
from cluster.errors import ModelLoadError
from cluster.sampling_params import MAX_EOS_TOKEN_IDS
from tests.actors.model_files.gguf_writer import random_tensors, tensor_shapes, write_gguf
from tests.actors.text.tiny_tokenizer import byte_level_metadata
from tests.engines import TINY_CONFIG, make_engine, request, tokens_of

TOKENS = byte_level_metadata("qwen2")["tokenizer.ggml.tokens"]
EOS, IM_END = TOKENS.index("</s>"), TOKENS.index("<|im_end|>")
NUMBERS = {"eos_token_id": 5}


def ids_of(source: ModelSource) -> tuple[int, ...]:
    """What the engine stops at, once it is known that the ingress has the same."""
    ids = load_model_config(source).eos_token_ids
    assert load_tokenizer(source).eos_token_ids == ids
    return ids


def folder_with(folder: Path, **files: dict[str, Any]) -> Path:
    """A model directory with a tokenizer.json and JSON files beside it."""
    folder.mkdir()
    build_tokenizer(byte_level_metadata("qwen2"), Path("m")).save(str(folder / "tokenizer.json"))
    files["config"] = TINY_CONFIG | {"vocab_size": 300, "eos_token_id": None} | files.get("config", {})
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def gguf_with(path: Path, **changes: Any) -> Path:
    metadata = byte_level_metadata("qwen2") | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return write_gguf(path, random_tensors(tensor_shapes(len(TOKENS) + 40)), extra=metadata)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ()),
        ({"config": NUMBERS}, (5,)),
        ({"config": {"eos_token_id": [7, 5]}}, (5, 7)),
        ({"config": NUMBERS, "generation_config": {"eos_token_id": [7, 8]}}, (5, 7, 8)),
        ({"config": NUMBERS, "tokenizer_config": {"eos_token": "<|im_end|>"}}, (5, IM_END)),
        ({"config": NUMBERS, "tokenizer_config": {"eos_token": {"content": "a"}}}, (5, TOKENS.index("a"))),
        ({"special_tokens_map": {"eos_token": "</s>"}}, (EOS,)),
        ({"special_tokens_map": {"eos_token": "</s>"}, "tokenizer_config": {"eos_token": "<|im_end|>"}}, (IM_END,)),
        ({"config": NUMBERS, "tokenizer_config": {"eos_token": "unheard of"}}, (5,)),
    ],
)
def test_a_directory(tmp_path: Path, files: dict[str, Any], expected: tuple[int, ...]):
    assert ids_of(resolve_model(str(folder_with(tmp_path / "m", **files)), load_format="dummy")) == expected


@pytest.mark.parametrize("kind", range(1, 7))
def test_a_gguf_file_whatever_the_type_of_its_end_of_turn_token(tmp_path: Path, kind: int):
    types = [1] * len(TOKENS)
    types[IM_END] = kind
    source = resolve_model(str(gguf_with(tmp_path / "m.gguf", token_type=types, eot_token_id=9, eom_token_id=4)))
    assert ids_of(source) == (4, 9, EOS, IM_END)
    tokenizer = load_tokenizer(source)
    assert tokenizer.encode("<|im_end|>") == [IM_END]
    assert tokenizer.decode([IM_END]) == ""


def test_a_gguf_file_may_name_several_ids(tmp_path: Path):
    source = resolve_model(str(gguf_with(tmp_path / "m.gguf", eos_token_ids=[4, 9])))
    assert ids_of(source) == (4, 9, EOS, IM_END)


@pytest.mark.parametrize("name", sorted(END_OF_TURN))
def test_an_end_of_turn_token_by_name(tmp_path: Path, name: str):
    tokens = [*TOKENS[:IM_END], name]
    assert ids_of(resolve_model(str(gguf_with(tmp_path / "m.gguf", tokens=tokens)))) == (EOS, IM_END)


def test_a_chosen_tokenizer_adds_what_lies_beside_it(tmp_path: Path):
    model = folder_with(tmp_path / "m", config={"eos_token_id": 5, "vocab_size": EOS + 1})
    other = folder_with(
        tmp_path / "t", generation_config={"eos_token_id": [6, 299]}, tokenizer_config={"eos_token": "</s>"}
    )
    for tokenizer in (other, other / "tokenizer.json"):  # 299 is none of the model's
        assert ids_of(resolve_model(str(model), load_format="dummy", tokenizer=str(tokenizer))) == (5, 6, EOS)
    file = gguf_with(tmp_path / "t.gguf", eos_token_id=3)  # nor is its end of turn
    assert ids_of(resolve_model(str(model), load_format="dummy", tokenizer=str(file))) == (3, 5)


@pytest.mark.parametrize("value", ["</s>", 2.0, True, [5, "x"], -1, {"id": 5}])
@pytest.mark.parametrize("name", ["config", "generation_config"])
def test_what_is_no_id_is_refused_by_name(tmp_path: Path, name: str, value: Any):
    folder = folder_with(tmp_path / "m", **{name: {"eos_token_id": value}})
    with pytest.raises(ModelLoadError, match=rf"{name}\.json: eos_token_id is .*; it must be an integer"):
        load_model_config(resolve_model(str(folder), load_format="dummy"))


def test_what_is_no_id_in_a_gguf_file_is_refused_by_name(tmp_path: Path):
    file = gguf_with(tmp_path / "m.gguf", eot_token_id="x")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.ggml\.eot_token_id is 'x'"):
        load_model_config(resolve_model(str(file)))


def test_every_one_of_as_many_as_are_allowed_ends_a_generation_and_one_more_is_refused(
    tmp_path: Path, tiny_model: Path
):
    """Beside stop tokens of the request, too: each has a place of its own in a slot."""
    drawn = {"temperature": 1.0, "seed": 3}
    free = tokens_of(make_engine(tiny_model).generate([request("a", [3, 4, 5], ignore_eos=True, **drawn)])["a"])
    last = free[2]
    assert last not in free[:2]
    others = [i for i in range(TINY_CONFIG["vocab_size"]) if i not in free]
    lower = [i for i in others if i < last][-MAX_EOS_TOKEN_IDS + 1 :]
    higher = [i for i in others if i > last][: MAX_EOS_TOKEN_IDS - 1 - len(lower)]
    ids = [*lower, last, *higher]
    assert len(ids) == MAX_EOS_TOKEN_IDS
    assert ids.index(last) >= 8
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG | {"eos_token_id": ids}))
    engine = make_engine(tmp_path)
    for stops in ((), tuple(others[-32:])):
        deltas = engine.generate([request("a", [3, 4, 5], stop_token_ids=stops, **drawn)])["a"]
        assert tokens_of(deltas) == free[:3]
        assert (deltas[-1].finish_reason, deltas[-1].matched_stop) == ("stop", last)

    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": free[0]}))
    with pytest.raises(ModelLoadError, match=r"eos_token_id: 33 tokens end a generation.*; supported: 32"):
        make_engine(tmp_path)


def test_the_default_model(smollm2_source: ModelSource):
    """<|endoftext|> and <|im_end|>."""
    assert eos_token_ids(smollm2_source) == (0, 2)
