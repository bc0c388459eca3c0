"""ListOps: nested operations on lists of digits, generated (Nangia & Bowman 2018, arXiv 1804.06028).

An expression such as ``[MAX 2 9 [MIN 4 7 ] 0 ]`` has one of ten values (here 9). Nothing is
downloaded: the published procedure is followed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PUBLISHED_SIZE = 100_000
MAX_DEPTH = 20
MAX_ARGUMENTS = 5
OPERATOR_PROBABILITY = 0.25


def _median(digits: list[int]) -> int:
    digits = sorted(digits)
    middle = len(digits) // 2
    return digits[middle] if len(digits) % 2 else (digits[middle - 1] + digits[middle]) // 2


OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": _median,
    "[SM": lambda digits: sum(digits) % 10,
}
VOCABULARY = (*map(str, range(10)), *OPERATORS, "]")
_FUNCTIONS = tuple(OPERATORS.values())
_FIRST_OPERATOR, _CLOSE = 10, 14


class Expression(NamedTuple):
    """An expression as indices into ``VOCABULARY``, one byte each, and its value.

    >>> expression = Expression(bytes([11, 2, 9, 10, 4, 7, 14, 14]), 9)
    >>> str(expression)
    '[MAX 2 9 [MIN 4 7 ] ]'
    """

    tokens: bytes
    value: int

    def __str__(self) -> str:
        return " ".join(VOCABULARY[token] for token in self.tokens)

    def bracketed(self) -> str:
        """The published binary tree: each operation takes its arguments from left to right.

        >>> Expression(bytes([11, 2, 9, 14]), 9).bracketed()
        '( ( ( [MAX 2 ) 9 ) ] )'
        """
        unfinished: list[str] = []
        for token in self.tokens:
            word = VOCABULARY[token]
            if _FIRST_OPERATOR <= token < _CLOSE:
                unfinished.append(word)
                continue
            if token == _CLOSE:
                word = f"( {unfinished.pop()} ] )"
            if not unfinished:
                return word
            unfinished[-1] = f"( {unfinished[-1]} {word} )"
        raise ValueError(f"expression {self}: got no closing bracket")


class Batch(NamedTuple):
    """Expressions of different lengths.

    :ivar tokens: ``[..., batch, longest]``, filled up with ``]``, which is never read.
    :ivar lengths: ``[..., batch]``.
    :ivar values: ``[..., batch]``.
    """

    tokens: Tensor
    lengths: Tensor
    values: Tensor

    def __getitem__(self, index: Tensor | slice) -> Batch:  # type: ignore[override]
        """The rows at ``index``, cut to the longest of them."""
        lengths = self.lengths[index]
        return Batch(self.tokens[index][..., : int(lengths.max())], lengths, self.values[index])


def generate(
    size: int = PUBLISHED_SIZE, seed: int = 0, max_length: int | None = None
) -> list[Expression]:
    """Draw unique expressions; bare digits are dropped.

    At depth 1 to 19 an operation with probability 1/4, uniform among four, with two to five
    arguments, each one deeper; else, and at depth 20, a digit.

    :param max_length: keep only expressions of at most so many tokens; ``size`` counts the kept.
    """
    uniform = random.Random(seed).random
    seen: dict[bytes, int] = {}
    while len(seen) < size:
        tokens = bytearray()
        value = _draw(uniform, 1, tokens)
        if 1 < len(tokens) and (max_length is None or len(tokens) <= max_length):
            seen[bytes(tokens)] = value
    return [Expression(tokens, value) for tokens, value in seen.items()]


def _draw(uniform: Callable[[], float], depth: int, tokens: bytearray) -> int:
    """Append a random expression to ``tokens``; its value."""
    if depth == MAX_DEPTH or uniform() > OPERATOR_PROBABILITY:
        digit = int(10 * uniform())
        tokens.append(digit)
        return digit
    operator = int(len(OPERATORS) * uniform())
    tokens.append(_FIRST_OPERATOR + operator)
    num_arguments = 2 + int((MAX_ARGUMENTS - 1) * uniform())
    arguments = [_draw(uniform, depth + 1, tokens) for _ in range(num_arguments)]
    tokens.append(_CLOSE)
    return _FUNCTIONS[operator](arguments)


def to_batch(expressions: Sequence[Expression]) -> Batch:
    """Expressions as tensors."""
    lengths = torch.tensor([len(expression.tokens) for expression in expressions])
    longest = int(lengths.max())
    padded = b"".join(e.tokens.ljust(longest, bytes([_CLOSE])) for e in expressions)
    tokens = torch.frombuffer(bytearray(padded), dtype=torch.uint8).view(-1, longest).long()
    return Batch(tokens, lengths, torch.tensor([e.value for e in expressions]))
