"""A multi-label set of short texts, made of what every Debian machine has: its packages.

A row is a package, its text its name and one line of description, its labels its debtags
(``t:``) and the packages that it depends on (``d:``, the first of each group of alternatives).
Labels of fewer than 2 or more than 2,000 packages are dropped, and rows that are left without one.
The embedding of a row is its TF-IDF, by a truncated SVD in 128 dimensions, at length 1.

The packages are those that ``apt-cache dumpavail`` knows of, in the order of their names. Where
there is no apt, or its lists are empty (``apt-get update`` fills them), a generated set of the same
shape stands in: topics of topics, with words and labels of each.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

__all__ = [
    "ALTERNATIVE",
    "ENOUGH",
    "WIDTH",
    "MultiLabel",
    "known_packages",
    "multi_label",
    "paragraphs",
]

WIDTH = 128
FEWEST, MOST = 2, 2000  # rows of a label
ENOUGH = 20_000  # packages that make a set; without a package index only installed ones are known

_TOPICS, _INSIDE, _GENERATED = 64, 48, 50_000
ALTERNATIVE = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)")
"""A package that another names, without its version."""

_Text = tuple[str, set[str]]  # and its labels


@dataclass(frozen=True)
class MultiLabel:
    """Texts and their labels.

    Attributes
    ----------
    source : str
        "Debian", or "generated".
    texts : list of str, length n
    labels : scipy sparse array of bool, shape (n, number of labels)
        Each row has one at least.
    terms : scipy sparse array of float32, shape (n, number of terms)
        TF-IDF.
    embeddings : float32, shape (n, 128)
        At length 1; zeros where a text has no term that others have too.
    """

    source: str
    texts: list[str]
    labels: Any
    terms: Any
    embeddings: Any

    @property
    def real(self) -> bool:
        return self.source == "Debian"

    def __str__(self) -> str:
        n, count = self.labels.shape
        return f"{self.source}, {n:,} rows, {count:,} labels, {self.labels.nnz / n:.1f} a row"


def multi_label(most: int | None = None) -> MultiLabel:
    """Return the set, or `most` of its rows drawn at random."""
    found = dict(_packages(known_packages()))
    source = "Debian" if len(found) >= ENOUGH else "generated"
    rows = [found[name] for name in sorted(found)] if source == "Debian" else list(_generated())
    if most is not None and most < len(rows):
        chosen = np.random.default_rng(0).choice(len(rows), most, replace=False)
        rows = [rows[i] for i in np.sort(chosen)]
    return _made(source, rows)


def _made(source: str, rows: list[_Text]) -> MultiLabel:
    """Drop rare and frequent labels, and rows without one; embed the others."""
    from scipy.sparse import csr_array

    counts = Counter(label for _, labels in rows for label in labels)
    names = sorted(label for label, n in counts.items() if FEWEST <= n <= MOST)
    number = {label: i for i, label in enumerate(names)}
    known = [(text, sorted(number[s] for s in labels if s in number)) for text, labels in rows]
    known = [row for row in known if row[1]]
    texts = [text for text, _ in known]
    offsets = np.concatenate([[0], np.cumsum([len(labels) for _, labels in known])])
    columns = np.concatenate([np.array(labels) for _, labels in known])
    ones = np.ones(len(columns), dtype=bool)
    labels = csr_array((ones, columns, offsets), shape=(len(known), len(names)))
    vectorizer = TfidfVectorizer(min_df=3, max_df=0.2, sublinear_tf=True, dtype=np.float32)
    terms = vectorizer.fit_transform(texts)
    x = TruncatedSVD(WIDTH, random_state=0).fit_transform(terms).astype(np.float32)
    lengths = np.sqrt((x * x).sum(axis=1, keepdims=True))
    return MultiLabel(source, texts, labels, terms, x / np.where(lengths > 0, lengths, 1))


# --- Debian's packages ----------------------------------------------------------------------------


def known_packages() -> str:
    """Return what apt knows of all packages, in the format of Debian's control files."""
    if shutil.which("apt-cache") is None:
        return ""
    command = ["apt-cache", "dumpavail"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode else done.stdout


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yield the fields of each package, values as they stand."""
    for paragraph in text.split("\n\n"):
        fields = dict(
            line.split(":", 1) for line in paragraph.replace("\n ", " ").split("\n") if ":" in line
        )
        if "Package" in fields:
            yield fields


def _packages(text: str) -> Iterator[tuple[str, _Text]]:
    """Read packages; of a name that comes twice the last one counts."""
    for fields in paragraphs(text):
        name = fields["Package"].strip()
        labels = {f"t:{tag.strip()}" for tag in fields.get("Tag", "").split(",") if tag.strip()}
        for group in fields.get("Depends", "").split(","):
            if first := ALTERNATIVE.match(group):
                labels.add(f"d:{first[1]}")
        yield name, (f"{name} {fields.get('Description', '').strip()}", labels)


# --- the stand-in ---------------------------------------------------------------------------------


def _generated() -> Iterator[_Text]:
    """Make rows of topics, with few of a topic's labels: near rows may share none."""
    draw = np.random.default_rng(0)
    odds = 1 / np.arange(1, _TOPICS * _INSIDE + 1) ** 0.7
    topics = draw.choice(len(odds), _GENERATED, p=odds / odds.sum())
    for number, topic in enumerate(draw.permutation(len(odds))[topics].tolist()):
        above = topic // _INSIDE
        words = [
            *(f"word{topic}x{i}" for i in draw.integers(0, 12, 3)),
            *(f"wider{above}x{i}" for i in draw.integers(0, 30, 2)),
            *(f"common{i}" for i in draw.geometric(0.002, 2)),
        ]
        labels = {f"d:{topic}:{i}" for i in draw.integers(0, 8, draw.integers(1, 5))}
        labels |= {f"t:{above}:{i}" for i in draw.integers(0, 12, draw.integers(0, 4))}
        yield f"item{number} {' '.join(words)}", labels
