"""How a passage is found to hold an answer, by the words of --answer_match."""

from __future__ import annotations

from dataclasses import dataclass

STRING, REGEX = "string", "regex"


@dataclass(frozen=True)
class AnswerMatch:
    """A rule of DPR's evaluation (Karpukhin et al. 2020, arXiv 2004.04906)."""

    description: str


ANSWER_MATCHES = {
    STRING: AnswerMatch("the answer's tokens stand next to each other in the text, in lower case"),
    REGEX: AnswerMatch("the answer is a regular expression that the text matches somewhere, as CuratedTREC's are"),
}
