"""Make the reference values beside this file with torch and transformers; run by hand, never by the tests.

    python -m venv ref && ref/bin/pip install torch transformers gguf safetensors sentencepiece numpy
    ref/bin/python tests/golden/make_golden.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf

Writes one folder per tiny random model (config.json, safetensors, logits.npz with token_ids [48] and float32 logits
[48, vocabulary]), sentencepiece.json (a trained tokenizer and its results), and for the default model
smollm2_greedy.json (texts, and token ids of difficult strings) and smollm2_first_logits.npz (logits of the first and
the last position of the first prompt).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).parent
SEQUENCE = 48
NEW_TOKENS = 48
VOCAB = 128
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

# As Granite 3 has them, none but the last a power of two; with an eps that shows beside so large embeddings.
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
    "rms_norm_eps": 0.1,
}

# name -> (configuration class, changes to SMALL, dtype of the file, largest shard)
MODELS: dict[str, tuple[str, dict, str, str]] = {
    "llama_tied": ("LlamaConfig", {"tie_word_embeddings": True, "head_dim": 8}, "float32", "1GB"),
    "llama_bias": (
        "LlamaConfig",
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        "float32",
        "1GB",
    ),
    "llama_llama3_rope": ("LlamaConfig", {"rope_parameters": LLAMA3}, "float32", "1GB"),
    "llama_yarn": ("LlamaConfig", {"rope_parameters": YARN}, "float32", "1GB"),
    "llama_linear_rope": ("LlamaConfig", {"rope_parameters": LINEAR, "num_key_value_heads": 1}, "float16", "1GB"),
    "mistral_sharded": ("MistralConfig", {"sliding_window": None}, "float32", "60KB"),
    "qwen2": (
        "Qwen2Config",
        {"tie_word_embeddings": True, "num_attention_heads": 2, "head_dim": 16, "num_key_value_heads": 1},
        "bfloat16",
        "1GB",
    ),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}, "float32", "1GB"),
    "ernie4_5": ("Ernie4_5Config", {"tie_word_embeddings": True}, "float32", "1GB"),
    "granite": (
        "GraniteConfig",
        {"tie_word_embeddings": True, "head_dim": 8, **MULTIPLIERS},
        "float32",
        "1GB",
    ),
    "granite_bias": (
        "GraniteConfig",
        {"tie_word_embeddings": False, "head_dim": 8, "attention_bias": True, "mlp_bias": True, **MULTIPLIERS},
        "bfloat16",
        "1GB",
    ),
    "olmo2": ("Olmo2Config", {"tie_word_embeddings": False, "head_dim": 8}, "float32", "1GB"),
    "olmo2_bias": (
        "Olmo2Config",
        {"tie_word_embeddings": True, "head_dim": 8, "num_key_value_heads": 1, "attention_bias": True},
        "bfloat16",
        "1GB",
    ),
    "ernie4_5_bias": ("Ernie4_5Config", {"tie_word_embeddings": False, "use_bias": True}, "float32", "1GB"),
}

CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Write a haiku about the sea."}],
    [{"role": "system", "content": "You are a terse assistant."}, {"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": "Name three fruits."},
        {"role": "assistant", "content": "Apple, pear, plum."},
        {"role": "user", "content": "Now name three vegetables."},
    ],
    [{"role": "user", "content": "Translate to French: I would like a cup of coffee, please."}],
    [
        {
            "role": "user",
            "content": "Summarise in one sentence: " + "The galley had two banks of oars, one above the other, and "
            "the rowers of both kept the same stroke so that neither bank waited for the other. " * 8,
        }
    ],
]
PROMPTS = [
    "The capital of Italy is",
    "Once upon a time",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "#include <stdio.h>\n\nint main(void) {\n",
    "1, 2, 3, 4, 5, 6,",
    "La Tour Eiffel se trouve à Paris, près de la Seine. Elle mesure",
    "日本の首都は",
    "Смысл жизни в том, чтобы",
    "🙂🚀 Emoji are",
    "| name | age |\n|------|-----|\n| Ann | 31 |\n",
    "In the year 2024, the population of the world was about",
    "A",
]
STRINGS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t\tx",
    "Hello, world!",
    " leading",
    "trailing ",
    "don't I'll we've they're it's",
    "DON'T",
    "12345 3.14159 1,000,000",
    "a1b2c3",
    "x = y+z; // note",
    "    indented\n\tcode()",
    "naïve café Ünïcödé",
    "Ελληνικά",
    "Русский текст",
    "中文字符测试",
    "日本語テキスト",
    "한국어",
    "العربية",
    "עברית",
    "हिन्दी",
    "ไทย",
    "🙂",
    "👨‍👩‍👧‍👦🏳️‍🌈",
    "é vs é",
    "\u00a0nbsp\u2003em\u200bzero",
    "\u0000\u0001\u007f",
    "�",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|>",
    "<|im_start|",
    "<|im_end|><|im_end|>",
    "http://example.org/a?b=c&d=%20",
    "CamelCaseIdentifiers_and_snake",
    "a" * 200,
    "?!?!...---***",
    "\r\nwindows\r\n",
    "٣٤٥ ½ ² Ⅷ",
    "end of line   \n   start",
    "tab\tseparated\tvalues",
    '{"key": [1, 2, {"a": null}]}',
    "𝕳𝖊𝖑𝖑𝖔",
    "ﬁ ligature",
    "1  2   3",
    "year 1999",
    "hello  1 there",
]


def randomise(model) -> None:
    """Weights large enough that every term of the forward pass shows in the logits."""
    import torch

    generator = torch.Generator().manual_seed(1234)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.3 * values)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * values)
            else:
                parameter.copy_(values * (1.5 * parameter.shape[-1] ** -0.5))


def make_tiny(name: str) -> None:
    """Write one tiny model and its logits."""
    import torch
    import transformers

    kind, changes, dtype, shard = MODELS[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    config = getattr(transformers, kind)(**{**SMALL, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = np.random.default_rng(7).integers(0, VOCAB, SEQUENCE)
    with torch.no_grad():
        logits = model(torch.tensor(tokens)[None]).logits[0].numpy()
    np.savez_compressed(folder / "logits.npz", token_ids=tokens.astype(np.int64), logits=logits.astype(np.float32))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {size / 1000:.0f} kB, logits {logits.min():.2f} to {logits.max():.2f}")


def greedy(model, prompt_ids: list[int], eos: int) -> tuple[list[int], float]:
    """Return (tokens up to and including EOS, smallest distance between best and second-best logit on the way)."""
    import torch

    tokens: list[int] = []
    margin, cache, step = float("inf"), None, torch.tensor([prompt_ids])
    with torch.no_grad():
        while len(tokens) < NEW_TOKENS and (not tokens or tokens[-1] != eos):
            out = model(step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            best = torch.topk(out.logits[0, -1], 2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
            step = torch.tensor([[tokens[-1]]])
    return tokens, margin


def make_smollm2(gguf: Path) -> None:
    """Write greedy texts, tokenisations and the logits of one prompt for the default model."""
    import tokenizers
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers drops the digit splitter when it converts a GGUF; the model's published tokenizer.json has it.
    pre = tokenizers.pre_tokenizers
    tokenizer.backend_tokenizer.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(False)])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    cases = []
    for case in [*({"messages": chat} for chat in CHATS), *({"prompt": prompt} for prompt in PROMPTS)]:
        chat = case.get("messages")
        prompt = (
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) if chat else case["prompt"]
        )
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        tokens, margin = greedy(model, ids, tokenizer.eos_token_id)
        text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cases.append(
            {
                **case,
                "rendered": prompt,
                "prompt_token_ids": ids,
                "token_ids": tokens,
                "text": text,
                "smallest_margin": round(margin, 5),
            }
        )
        print(f"{margin:.4f} {prompt[-40:]!r} -> {text[:60]!r}")
    strings = [{"text": text, "token_ids": tokenizer(text, add_special_tokens=False).input_ids} for text in STRINGS]
    content = {"transformers": transformers.__version__, "cases": cases, "tokenizations": strings}
    (HERE / "smollm2_greedy.json").write_text(
        json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    ids = cases[0]["prompt_token_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    np.savez_compressed(
        HERE / "smollm2_first_logits.npz",
        token_ids=np.array(ids),
        first=logits[0].numpy().astype(np.float32),
        last=logits[-1].numpy().astype(np.float32),
    )


def make_sentencepiece() -> None:
    """Write a small SentencePiece BPE model as GGUF metadata would hold it, with what the library itself makes of STRINGS."""
    import io

    import sentencepiece

    trained = io.BytesIO()
    corpus = [line for chat in CHATS for message in chat for line in [message["content"]]] + PROMPTS + STRINGS
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in corpus if "\0" not in line] * 4),
        model_writer=trained,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    ids = range(model.vocab_size())
    kinds = [3 if model.is_control(i) else 2 if model.is_unknown(i) else 6 if model.is_byte(i) else 1 for i in ids]
    texts = [text for text in STRINGS if "\0" not in text]
    content = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }
    strings = [
        {"text": text, "token_ids": model.encode(text), "decoded": model.decode(model.encode(text))} for text in texts
    ]
    (HERE / "sentencepiece.json").write_text(
        json.dumps({"metadata": content, "tokenizations": strings}, ensure_ascii=False, indent=0) + "\n",
        encoding="utf-8",
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, help="the default model's file; without it only the tiny models are made")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=MODELS, help="make these tiny models and nothing else"
    )
    arguments = parser.parse_args()
    for name in arguments.only or MODELS:
        make_tiny(name)
    if arguments.only:
        return
    make_sentencepiece()
    if arguments.gguf:
        make_smollm2(arguments.gguf)


if __name__ == "__main__":
    main()
