"""What Add & Norm is, and the claims about it, as a document."""

from __future__ import annotations

import re

from ..claims import Claim, Evidence, Explanation, Number
from .document import Document, Section, Table, digits

SUMMARY = (
    "Each of a transformer's sublayers, attention and feed-forward, is wrapped in Add & Norm. Add: the sublayer's "
    "output is added to its input, so that it only has to learn a change. Norm: each token's features are brought to "
    "mean 0 and variance 1, then scaled and shifted by learned gamma and beta.",
)
ANSWER = (
    "Why add? The input has a way around every layer, forwards, and the gradient backwards: deep stacks stay "
    "trainable.",
    "Why norm? A sum of many branches grows with depth; the norm holds its size, per token, whatever the batch and "
    "the padding.",
    "Where? The transformer of 2017 norms after the sum (Post-LN); most since then norm the sublayer's input and "
    "leave the skip free (Pre-LN), which trains without warm-up.",
)
FORMULA = "y = LN(x + f(x))        LN(z) = gamma (z - mean z) / sqrt(var z + eps) + beta"
VERDICTS = ("right", "loose", "wrong", "contested")


def document(result: Explanation) -> Document:
    """The answer in a screen, then the claims; a single claim stands alone."""
    sections = tuple(section(claim, evidence) for claim, evidence in result.claims)
    if len(sections) == 1:
        return Document("addnorm explain", (), sections)
    answer = Section("Why, and where", ANSWER, formula=lines(FORMULA), picture="add_norm.svg.j2")
    return Document("What is Add & Norm?", SUMMARY, (answer, overview(result), *sections))


def overview(result: Explanation) -> Section:
    """Every claim in a line."""
    rows = tuple((f"{claim.number}. {claim.text}", claim.verdict, held(evidence)) for claim, evidence in result.claims)
    counts = [(verdict, sum(claim.verdict == verdict for claim, _ in result.claims)) for verdict in VERDICTS]
    text = "Of what is commonly said, " + ", ".join(f"{count} {verdict}" for verdict, count in counts) + "."
    links = tuple(anchor(claim) for claim, _ in result.claims)
    table = Table(("claim", "verdict", "numbers in band"), rows, labels=2, links=links)
    return Section("What is said of it", (text,), (table,))


def anchor(claim: Claim) -> str:
    return f"claim-{claim.name}"


def held(evidence: Evidence) -> str:
    """Of the numbers of which something is claimed."""
    judged = [number for number in evidence.numbers if number.judged]
    return f"{sum(number.holds for number in judged)} of {len(judged)}"


def section(claim: Claim, evidence: Evidence) -> Section:
    """A claim, what is true, and its numbers beside the expected ones."""
    rows = tuple(
        (number.name, digits(number.value), expected(number), band(number), inside(number))
        for number in evidence.numbers
    )
    reasons: dict[str, list[str]] = {}
    for number in evidence.numbers:
        reasons.setdefault(number.why, []).append(number.name)
    notes = tuple(f"{'; '.join(dict.fromkeys(names))}: {why}." for why, names in reasons.items())
    table = Table(
        ("number", "measured", "expected", "band", "inside"), rows, notes=(*notes, f"Source: {claim.source}.")
    )
    return Section(
        f"{claim.number}. {claim.title}",
        (claim.truth,),
        (table,),
        (evidence.plot,),
        badge=claim.verdict,
        quote=claim.text,
        formula=lines(claim.formula),
        anchor=anchor(claim),
    )


def lines(formula: str) -> str:
    """One formula a line, where wide gaps part them."""
    return re.sub(" {4,}", "\n", formula)


def inside(number: Number) -> str:
    return ("yes" if number.holds else "NO") if number.judged else "–"


def expected(number: Number) -> str:
    return "–" if number.expected is None else digits(number.expected)


def band(number: Number) -> str:
    """The band as text; an open side has no number.

    >>> band(Number("", 1.0, None, 0.5, float("inf"), "")), band(Number("", 1.0, 1.0, 1.0, 1.0, ""))
    ('at least 0.5', 'exactly 1')
    """
    low, high = (abs(limit) != float("inf") for limit in (number.low, number.high))
    if low and high:
        same = number.low == number.high
        if not same and digits(number.low) == digits(number.high):
            return f"{digits(number.low)} ± {(number.high - number.low) / 2:.1g}"
        return f"exactly {digits(number.low)}" if same else f"{digits(number.low)} to {digits(number.high)}"
    if low:
        return f"at least {digits(number.low)}"
    return f"at most {digits(number.high)}" if high else "not judged"
