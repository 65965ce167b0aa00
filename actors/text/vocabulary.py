"""What the tokens of a model write, without the tokenizer: one array of bytes, which is read in milliseconds.

A tokenizer of 128,000 tokens holds the interpreter's lock for half a second while its library loads it. Whoever has other work to
do, as an engine has, gets a vocabulary from a process of its own, or from the cache folder (``load_vocabulary``).
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.model_files.source import ModelSource
from actors.text.kept_vocabulary import KeptVocabulary
from actors.text.tokenizer import Tokenizer, load_tokenizer
from cluster.errors import ModelLoadError

# How the process says that the model's files are at fault: the message is its answer.
_NO_TOKENIZER = 3
# Two seconds of a quiet core; whoever waits for it waits with all other grammars.
_READ_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        lengths: uint32 [V], bytes of each token; 0 for an id that is no token.
        text: uint8, the bytes of all tokens, one behind the other.
        special: ids of special tokens by their text.
    """

    lengths: np.ndarray
    text: np.ndarray
    special: dict[str, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "special_ids", frozenset(self.special.values()))
        object.__setattr__(self, "_ends", np.cumsum(self.lengths, dtype=np.int64))

    special_ids = frozenset[int]()
    _ends = np.zeros(0, np.int64)

    @classmethod
    def of(cls, tokenizer: Tokenizer, size: int) -> Vocabulary:
        """``size``: rows of the model's logits, which may be more or less than its tokenizer has tokens."""
        tokens = [tokenizer.token_bytes(i) for i in range(size)]
        special = {tokenizer.token_spelling(i): i for i in sorted(tokenizer.special_ids) if i < size}
        lengths = np.fromiter(map(len, tokens), np.uint32, size)
        return cls(lengths, np.frombuffer(b"".join(tokens), np.uint8), special)

    def __len__(self) -> int:
        return len(self.lengths)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token writes; empty for an id that is none."""
        if not 0 <= token_id < len(self):
            return b""
        end = int(self._ends[token_id])
        return self.text[end - int(self.lengths[token_id]) : end].tobytes()

    def special_id(self, text: str) -> int | None:
        """The special token that is written so; None if there is none."""
        return self.special.get(text)

    def dump(self) -> bytes:
        """For ``parse``, in another process."""
        file = io.BytesIO()
        special = np.frombuffer(json.dumps(self.special).encode(), np.uint8)
        np.savez(file, lengths=self.lengths, text=self.text, special=special)
        return file.getvalue()

    @classmethod
    def parse(cls, dumped: bytes) -> Vocabulary:
        """What ``dump`` returned."""
        with np.load(io.BytesIO(dumped), allow_pickle=False) as arrays:
            return cls(arrays["lengths"], arrays["text"], json.loads(arrays["special"].tobytes()))


def load_vocabulary(source: ModelSource, size: int) -> Vocabulary:
    """What was kept of a model's tokenizer. Else that is read in a process that ends with it; this one's other threads run on.

    Args:
        size: rows of the model's logits.
    Raises:
        ModelLoadError: as ``load_tokenizer``.
        OSError: the process was ended, or could not begin.
    """
    kept = KeptVocabulary(source, size)
    if (dumped := kept.read()) is not None:
        try:
            return Vocabulary.parse(dumped)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile):
            pass  # damaged: it is made again
    # Only its tokenizer is read there.
    fields = [
        source.kind,
        str(source.path),
        "" if source.tokenizer is None else str(source.tokenizer),
        source.name,
        str(size),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", __name__, *fields]
    try:
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=_READ_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"reading the vocabulary of {source.name} took more than {_READ_TIMEOUT_S:g} s") from None
    if ran.returncode == _NO_TOKENIZER:
        raise ModelLoadError(ran.stdout.decode(), "tokenizer")
    if ran.returncode != 0:
        last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(f"reading the vocabulary of {source.name} ended with {ran.returncode}: {last}")
    vocabulary = Vocabulary.parse(ran.stdout)
    kept.write(ran.stdout)
    return vocabulary


def _main(kind: str, path: str, tokenizer: str, name: str, size: str) -> int:
    source = ModelSource(kind, Path(path), Path(tokenizer) if tokenizer else None, name)  # type: ignore[arg-type]
    try:
        answer, code = Vocabulary.of(load_tokenizer(source), int(size)).dump(), 0
    except ModelLoadError as error:
        answer, code = error.message.encode(), _NO_TOKENIZER
    sys.stdout.buffer.write(answer)
    return code


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
