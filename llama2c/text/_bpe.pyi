"""Types of the compiled half of the tokenizer."""

from typing import SupportsIndex

from typing_extensions import Self

class Vocabulary:
    @property
    def size(self) -> int: ...
    def __new__(
        cls,
        data: bytes,
        vocab_size: int | None = None,
        kinds: bytes | None = None,
        first_byte: int = 3,
        drop_space: bool = True,
    ) -> Self: ...
    def definition(self) -> bytes: ...
    def encode(self, text: bytes, bos: bool, eos: bool) -> list[int]: ...
    def piece(self, token: SupportsIndex, after_bos: bool = False) -> bytes: ...
