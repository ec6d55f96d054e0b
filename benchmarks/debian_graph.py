"""A graph that every Debian machine has: packages, and what they depend on. GraphSAGE against MLP.

    OMP_NUM_THREADS=1 python benchmarks/debian_graph.py [--check] [--quick]

A node is a package, its class its section, its features the TF-IDF of its one line of description,
by a truncated SVD in 128 dimensions, at length 1. Its name is left out, which would tell the class
(python3-…, lib…-dev). An edge joins a package with each of its Depends and Pre-Depends, both ways;
of alternatives the first that there is, and of a virtual package the first that provides it. Where
there is no apt, or its lists are empty, a generated graph stands in: classes of like size whose
features are faint and most of whose edges stay inside. The archive moves, and figures with it.

Both are trained on the same half of the nodes, in the batches of the same plan, over
`graph_loader`, and are tested on a tenth. The classes are partly structural (a library, and its
headers), so a gain is easy.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from batchloom.jobs import plan
from batchloom.samplers import weighted_loss
from batchloom.samplers.graph import CSCGraph, NeighborLoader, graph_loader
from debian import ALTERNATIVE, ENOUGH, WIDTH, known_packages, paragraphs
from harness import Row, measured, run_benchmark, say
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn
from torch.nn.functional import cross_entropy, dropout
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

EPOCHS, BATCH, FANOUTS = 6, 1024, [10, 10]
GAIN = 0.08
_GENERATED, _CLASSES = 8000, 20


@dataclass(frozen=True)
class PackageGraph:
    """Nodes with classes, and edges both ways.

    Attributes
    ----------
    source : str
        "Debian", or "generated".
    x : float32, shape (n, 128)
    y : int64, shape (n,)
    edges : int64, shape (2, E)
    """

    source: str
    x: Any
    y: Any
    edges: Any

    def __str__(self) -> str:
        n, classes = len(self.y), int(self.y.max()) + 1
        return f"{self.source}, {n:,} nodes, {self.edges.shape[1]:,} edges, {classes} classes"


def package_graph(*, generated: bool = False) -> PackageGraph:
    """Return the graph of Debian's packages, or what stands in for it."""
    found = {} if generated else {f["Package"].strip(): f for f in paragraphs(known_packages())}
    return _debian(found) if len(found) >= ENOUGH else _generated()


def _debian(found: dict[str, dict[str, str]]) -> PackageGraph:
    names = sorted(found)
    number = {name: i for i, name in enumerate(names)}
    provided: dict[str, int] = {}
    for name in names:
        for other in _names(found[name].get("Provides", "")):
            provided.setdefault(other[0], number[name])
    links = set()
    for name in names:
        for field in ("Depends", "Pre-Depends"):
            for group in _names(found[name].get(field, "")):
                known = (number.get(n, provided.get(n)) for n in group)
                target = next((k for k in known if k is not None), None)
                if target is not None and target != number[name]:
                    links.add((number[name], target))
    sections = [found[name].get("Section", "").strip().split("/")[-1] for name in names]
    classes = {section: i for i, section in enumerate(sorted(Counter(sections)))}
    texts = [found[name].get("Description", "").strip() for name in names]
    terms = TfidfVectorizer(min_df=3, sublinear_tf=True, dtype=np.float32).fit_transform(texts)
    x = TruncatedSVD(WIDTH, n_iter=2, random_state=0).fit_transform(terms).astype(np.float32)
    y = np.array([classes[section] for section in sections])
    return PackageGraph("Debian", _at_length_1(x), y, _both_ways(np.array(sorted(links)).T))


def _names(field: str) -> list[list[str]]:
    """Return what a field names, group by group of alternatives."""
    groups = []
    for group in field.split(","):
        matches = (ALTERNATIVE.match(part) for part in group.split("|"))
        if names := [match[1] for match in matches if match]:
            groups.append(names)
    return groups


def _generated() -> PackageGraph:
    draw = np.random.default_rng(0)
    y = draw.integers(_CLASSES, size=_GENERATED)
    centers = draw.normal(size=(_CLASSES, WIDTH))
    x = centers[y] + 6 * draw.normal(size=(_GENERATED, WIDTH))
    source = np.repeat(np.arange(_GENERATED), 4)
    order = np.argsort(y, kind="stable")
    first = np.searchsorted(y[order], np.arange(_CLASSES + 1))
    own = y[source]
    inside = order[first[own] + (draw.random(len(own)) * (first[own + 1] - first[own])).astype(int)]
    target = np.where(draw.random(len(own)) < 0.6, inside, draw.integers(_GENERATED, size=len(own)))
    edges = _both_ways(np.stack([source, target]))
    return PackageGraph("generated", _at_length_1(x.astype(np.float32)), y, edges)


def _at_length_1(x: Any) -> Any:
    lengths = np.sqrt((x * x).sum(axis=1, keepdims=True))
    return x / np.where(lengths > 0, lengths, 1)


def _both_ways(edges: Any) -> Any:
    return np.unique(np.concatenate([edges, edges[::-1]], axis=1), axis=1)


# --- the models -----------------------------------------------------------------------------------


class Sage(nn.Module):
    def __init__(self, classes: int, hidden: int = 128) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(WIDTH, hidden), SAGEConv(hidden, hidden)
        self.last = nn.Linear(hidden, classes)

    def forward(self, x: Any, edge_index: Any) -> Any:
        x = dropout(self.first(x, edge_index).relu(), 0.2, self.training)
        return self.last(self.second(x, edge_index).relu())


class Mlp(nn.Module):
    def __init__(self, classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, hidden), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x: Any, _: Any) -> Any:
        return self.layers(x)


def trained(graph: PackageGraph, manifest: Path, model: nn.Module, fanouts: list[int]) -> nn.Module:
    """Train on the batches of a plan."""
    csc = CSCGraph.from_edge_index(graph.edges, len(graph.y))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in graph_loader(manifest, csc, {"x": graph.x, "y": graph.y}, fanouts=fanouts):
        out = model(batch.x, batch.edge_index)[: batch.batch_size]
        optimizer.zero_grad()
        weighted_loss(cross_entropy(out, batch.y, reduction="none"), batch).backward()
        optimizer.step()
    return model


@torch.no_grad()
def accuracy(graph: PackageGraph, nodes: Any, model: nn.Module, fanouts: list[int]) -> float:
    """Return the share of nodes that are put into their class."""
    model.eval()
    data = Data(
        x=torch.from_numpy(graph.x), y=torch.from_numpy(graph.y),
        edge_index=torch.from_numpy(graph.edges),
    )  # fmt: skip
    right = 0
    for batch in NeighborLoader(data, fanouts, torch.from_numpy(nodes), batch_size=2048):
        out = model(batch.x, batch.edge_index)[: batch.batch_size]
        right += int((out.argmax(1) == batch.y[: batch.batch_size]).sum())
    return right / len(nodes)


def run(folder: Path, quick: bool) -> list[Row]:
    say("making the graph")
    graph = package_graph(generated=quick)
    say(str(graph))
    split = np.random.default_rng(0).choice(3, len(graph.y), p=[0.5, 0.1, 0.4])  # train, test, rest
    nodes = folder / "nodes.parquet"
    pq.write_table(pa.table({"split": split}), nodes)
    plan("shuffle", nodes, out=folder / "plan", where="split == 0", batch_size=BATCH,
         epochs=(0, EPOCHS), seed=0, workers=0)  # fmt: skip
    test, classes = np.flatnonzero(split == 1), int(graph.y.max()) + 1
    found, costs = {}, {}
    for name, make, fanouts in (("MLP", Mlp, [0]), ("GraphSAGE", Sage, FANOUTS)):
        torch.manual_seed(0)
        model = make(classes)
        say(f"training {name}")
        costs[name] = measured(lambda m=model, f=fanouts: trained(graph, folder / "plan", m, f))
        found[name] = accuracy(graph, test, model, fanouts)
    gain = found["GraphSAGE"] - found["MLP"]
    majority = float((graph.y[test] == np.bincount(graph.y[split == 0]).argmax()).mean())
    title = f"{graph.source}: test accuracy, {EPOCHS} epochs"
    return [
        Row(f"{title}, GraphSAGE", f"{found['GraphSAGE']:.3f}", f"MLP {found['MLP']:.3f}",
            f"{gain:+.3f}", f"≥ +{GAIN}", gain >= GAIN),
        Row("  the largest class", f"{majority:.3f}", "", ""),
        Row("  training, CPU s", f"{costs['GraphSAGE'].cpu:.0f}", f"{costs['MLP'].cpu:.0f}", ""),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__ or "", run))
