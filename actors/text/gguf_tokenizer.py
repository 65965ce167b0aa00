"""A ``tokenizers`` tokenizer built from GGUF metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from actors.model_files.gguf.tokens import END_OF_TURN, special_token_text
from cluster.errors import ModelLoadError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

# Words, numbers and runs of punctuation, as the published tokenizer.json files of Llama 3 and Qwen 2 split them.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {
    "gpt-2": "gpt2",
    "gpt2": "gpt2",
    "default": "gpt2",
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    "command-r": "digits",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
}


_ARCHITECTURES_OF = {"llama-bpe": ("llama",), "qwen2": ("qwen2", "qwen3")}


def build_tokenizer(metadata: dict[str, Any], where: Path) -> Tokenizer:
    """Build the tokenizer that the metadata of a GGUF file describes.

    Raises:
        ModelLoadError: no tokenizer inside, or a model or pre-tokenizer that is not known.
    """
    model = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not model or not tokens:
        raise ModelLoadError(
            f"{where} holds no tokenizer: set tokenizer to a tokenizer.json or a directory that holds one.", "tokenizer"
        )
    if model == "gpt2":
        tokenizer, default_bos = _byte_level(metadata, tokens, where)
    elif model == "llama":
        tokenizer, default_bos = _sentencepiece(metadata, tokens, where), True
    else:
        raise ModelLoadError(
            f"{where}: tokenizer model {model!r} is not supported; supported: gpt2, llama. Set tokenizer to a "
            "tokenizer.json instead.",
            "tokenizer",
        )
    for key in ("remove_extra_whitespaces", "precompiled_charsmap", "add_sep_token"):
        if metadata.get(f"tokenizer.ggml.{key}"):
            raise ModelLoadError(
                f"{where}: tokenizer.ggml.{key} is not supported: set tokenizer to the model's tokenizer.json.",
                "tokenizer",
            )
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    # A template's end of turn must become the token that ends a generation, of whatever type the converter made it.
    types = [_CONTROL if token in END_OF_TURN else kind for token, kind in zip(tokens, types)]
    added = [
        AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types)
        if kind in (_CONTROL, _USER_DEFINED) or (kind == _UNKNOWN and model == "llama")
    ]
    tokenizer.add_tokens(added)
    _surround(tokenizer, metadata, tokens, default_bos)
    return tokenizer


def _byte_level(metadata: dict[str, Any], tokens: list[str], where: Path) -> tuple[Tokenizer, bool]:
    """Return (byte-level BPE tokenizer, whether prompts begin with BOS unless the file says otherwise)."""
    pre = metadata.get("tokenizer.ggml.pre") or _guessed_pre_tokenizer(metadata, tokens, where)
    if pre not in _PRE_TOKENIZERS:
        raise ModelLoadError(
            f"{where}: pre-tokenizer {pre!r} is not supported; supported: {', '.join(sorted(_PRE_TOKENIZERS))}. "
            "Set tokenizer to the model's tokenizer.json instead.",
            "tokenizer",
        )
    style = _PRE_TOKENIZERS[pre]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or []]
    tokenizer = Tokenizer(_bpe(where, tokens, merges, ignore_merges=style == "llama3"))
    if style == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    if style in ("llama3", "qwen2"):
        pattern = _SPLIT.format(digits=r"\p{N}{1,3}" if style == "llama3" else r"\p{N}")
        words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    else:
        byte_level = pre_tokenizers.ByteLevel(bool(metadata.get("tokenizer.ggml.add_space_prefix", False)))
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level]) if style == "digits" else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, style == "llama3"


def _guessed_pre_tokenizer(metadata: dict[str, Any], tokens: list[str], where: Path) -> str:
    """Of files from before converters named it: of two families that are known by their tokens."""
    special = {"<|begin_of_text|>": "llama-bpe", "<|im_start|>": "qwen2"}
    architecture = metadata.get("general.architecture")
    for token, pre in special.items():
        if token in tokens and architecture in _ARCHITECTURES_OF[pre]:
            return pre
    raise ModelLoadError(
        f"{where} lacks tokenizer.ggml.pre, so nobody knows how it splits text: convert or download it again, or set "
        "tokenizer to the model's tokenizer.json.",
        "tokenizer",
    )


def _sentencepiece(metadata: dict[str, Any], tokens: list[str], where: Path) -> Tokenizer:
    """SentencePiece BPE: the file has no merges, they follow from the scores of the pieces."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not scores or len(scores) != len(tokens):
        raise ModelLoadError(
            f"{where}: tokenizer.ggml.scores is missing or too short: set tokenizer to a tokenizer.json.", "tokenizer"
        )
    unknown = special_token_text(metadata, "unknown") or None
    model = _bpe(
        where, tokens, _merges_from_scores(tokens, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges_from_scores(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others; better scored pieces merge first."""
    ids = {token: i for i, token in enumerate(tokens)}
    merges = []
    for piece, score in zip(tokens, scores):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                merges.append((-score, ids[piece], ids[left], ids[right]))
    return [(tokens[left], tokens[right]) for _, _, left, right in sorted(merges)]


def _bpe(where: Path, tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> BPE:
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ModelLoadError(
            f"{where}: the vocabulary holds a token twice: set tokenizer to a tokenizer.json.", "tokenizer"
        )
    try:
        return BPE(vocab=vocab, merges=merges, **options)
    except Exception as error:  # the library raises plain Exception
        raise ModelLoadError(
            f"{where}: the vocabulary does not fit its merges ({error}): download the file again, or set "
            "tokenizer to a tokenizer.json.",
            "tokenizer",
        ) from error


def _surround(tokenizer: Tokenizer, metadata: dict[str, Any], tokens: list[str], default_bos: bool) -> None:
    """Put BOS before and EOS after a prompt where the file asks for it."""
    before = [("bos", metadata.get("tokenizer.ggml.add_bos_token", default_bos))]
    after = [("eos", metadata.get("tokenizer.ggml.add_eos_token", False))]
    names = {name: special_token_text(metadata, name) for name, wanted in before + after if wanted}
    used = {text: tokens.index(text) for text in names.values() if text}
    if not used:
        return
    template = [*([names["bos"]] if names.get("bos") else []), "$A", *([names["eos"]] if names.get("eos") else [])]
    tokenizer.post_processor = processors.Sequence(
        [processors.TemplateProcessing(single=template, pair=[*template, "$B:1"], special_tokens=list(used.items()))]
    )
