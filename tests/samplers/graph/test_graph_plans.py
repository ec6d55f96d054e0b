"""Plans that the loader of graphs takes: of any method, of its own graph, of a kind of nodes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("torch_geometric")

from batchloom.dataplane import BatchPlan, ManifestWriter, Series, SignalStore, open_dataset
from batchloom.dataplane.errors import (
    DatasetChangedError,
    ManifestError,
    ParameterError,
    SelectionError,
)
from batchloom.jobs import pack
from batchloom.jobs import plan as make_plan
from batchloom.jobs.graph_build import build_graph
from batchloom.samplers import ManifestLoader, weighted_loss
from batchloom.samplers.graph import (
    CSCGraph,
    HeteroNeighborSampler,
    NeighborSampler,
    graph_loader,
    sample_neighbors,
)
from batchloom.samplers.graph.keys import key_of_step
from batchloom.tests.contracts.batches import flat
from batchloom.tests.samplers.graph.graphs import (
    NODES,
    csc_graph,
    features,
    graph_data,
    hetero_data,
    node_plan,
    pairs,
    write_nodes,
)

FANOUTS = [4, 3]
BATCHES = 20  # two epochs of ten


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nodes(tmp_path_factory.mktemp("nodes") / "nodes")


@pytest.fixture(scope="module")
def plan(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans") / "plan"
    node_plan(folder, data)
    return folder


# --- plans ----------------------------------------------------------------------------------------


def test_weights_and_the_loss_of_a_step(data: Path, tmp_path: Path) -> None:
    node_plan(tmp_path / "plan", data, epochs=(0,), weighted=True, weight_semantics="importance")
    loader = graph_loader(tmp_path / "plan", graph_data(), fanouts=FANOUTS)
    for batch in loader:
        assert batch.weights.tolist() == [float(r % 3 + 1) for r in batch.rows.tolist()]
        losses = batch.x[: batch.batch_size].sum(1)
        mean = (losses * batch.weights).sum() / batch.weights.sum()
        assert torch.allclose(weighted_loss(losses, batch), mean)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("shuffle", {}),
        ("shuffle", {"form": "recipe"}),
        ("kmeans", {"columns": ["x"], "k": 4}),
        ("ngame", {"columns": ["x"], "cluster_size": 4}),
        ("groups", {"column": "part", "batches": "aligned"}),
        ("shuffle", {"stratify": "part"}),
    ],
    ids=["shuffle", "recipe", "kmeans", "ngame", "parts", "stratified"],
)
def test_plans_of_any_method(
    data: Path, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    make_plan(
        method, data, out=tmp_path / "plan", batch_size=32, epochs=(0, 1), workers=0, **options
    )
    loader = graph_loader(tmp_path / "plan", csc_graph(), {"x": features()}, fanouts=FANOUTS)
    batches = list(loader)
    seeds = [batch.n_id[: batch.batch_size].tolist() for batch in batches]
    with contextlib.closing(ManifestLoader(tmp_path / "plan", data)) as plain:
        assert seeds == [batch["node"].tolist() for batch in plain]


def test_seeds_by_their_losses(data: Path, tmp_path: Path) -> None:
    """SeTa over the nodes: each epoch is planned from the losses that the one before it wrote."""
    dropped = []
    for epoch in range(3):
        signal = {"signal": tmp_path / "signals"} if epoch else {}
        made = make_plan("seta", data, out=tmp_path / "plans", batch_size=32, training_epochs=3,
                         epochs=(epoch, epoch + 1), workers=0, **signal)  # fmt: skip
        loader = graph_loader(tmp_path / "plans", graph_data(), fanouts=FANOUTS, epochs=[epoch])
        seen = []
        with SignalStore.for_writing(tmp_path / "signals", made) as store:
            for batch in loader:
                losses = batch.x[: batch.batch_size].abs().sum(1)
                store.append(batch.rows, epoch=batch.epoch, step=batch.step, loss=losses)
                seen += batch.rows.tolist()
        assert len(set(seen)) == len(seen) == made.records[epoch].distinct_rows
        dropped.append(NODES - len(seen))
    assert min(dropped) > 0


def test_a_series_gains_members(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()

    def add(epoch: int) -> None:
        target, parent = Series(folder).next_member(epoch, epoch + 1)
        node_plan(Path(target), data, epochs=(epoch,), parent=parent)

    add(0)
    loader = graph_loader(folder, graph_data(), fanouts=FANOUTS)
    assert {b.epoch for b in loader} == {0}
    add(1)
    loader.set_epoch(1)
    assert [b.epoch for b in loader] == [1] * 10
    state = loader.state_dict()
    assert (state["epoch"], state["next_step"]) == (1, 10)


def test_rows_are_nodes_by_their_rank_where_ids_have_gaps(tmp_path: Path) -> None:
    folder = write_nodes(tmp_path / "nodes")
    snapshot = open_dataset(folder).snapshot
    write_nodes(tmp_path / "more", NODES // 2, files=1, chunk=40)
    (tmp_path / "more" / "0.arrow").replace(folder / "0.arrow")  # other bytes, so other row ids
    later = open_dataset(folder, since=snapshot).snapshot
    ids = later.ids_at(np.arange(NODES))
    assert ids.max() >= NODES
    with ManifestWriter(tmp_path / "plan", snapshot=later, seed=7) as writer:
        with writer.epoch(0):
            writer.append(BatchPlan.cut(ids, 50, None))
        writer.commit()
    seeds = [
        b.n_id[: b.batch_size].tolist()
        for b in graph_loader(tmp_path / "plan", csc_graph(), fanouts=[2])
    ]
    assert flat(seeds) == list(range(NODES))


# --- whose plan it is -----------------------------------------------------------------------------


class Marked(CSCGraph):
    fingerprint = "ab" * 32


def test_a_plan_of_another_graph_is_refused(tmp_path: Path) -> None:
    folder = write_nodes(tmp_path / "nodes")
    empty = next(folder.glob("*.arrow"))
    schema = pa.ipc.open_file(empty).schema
    marker = folder / f"graph-{'ab' * 32}.arrow"
    with pa.ipc.new_file(str(marker), schema):
        pass
    node_plan(tmp_path / "plan", folder)
    mine = Marked.from_edge_index(pairs(), NODES)
    assert len(list(graph_loader(tmp_path / "plan", mine, fanouts=[2]))) == BATCHES
    assert len(graph_loader(tmp_path / "plan", csc_graph(), fanouts=[2])) == BATCHES
    other = Marked.from_edge_index(pairs(), NODES)
    other.fingerprint = "cd" * 32
    with pytest.raises(DatasetChangedError, match="another graph.*abab.*cdcd"):
        graph_loader(tmp_path / "plan", other, fanouts=[2])


def test_a_plan_of_other_rows_is_refused(plan: Path) -> None:
    with pytest.raises(SelectionError, match="300 rows.*299 nodes"):
        graph_loader(plan, CSCGraph([0] * 300, []), fanouts=[2])
    with pytest.raises(ManifestError):
        graph_loader(plan.parent / "none", csc_graph(), fanouts=[2])


def test_the_dataset_is_checked_where_it_is_given(tmp_path: Path) -> None:
    folder = write_nodes(tmp_path / "nodes")
    node_plan(tmp_path / "plan", folder)
    graph_loader(tmp_path / "plan", csc_graph(), fanouts=[2], dataset=folder)
    (folder / "0.arrow").unlink()
    graph_loader(tmp_path / "plan", csc_graph(), fanouts=[2])
    with pytest.raises(DatasetChangedError):
        graph_loader(tmp_path / "plan", csc_graph(), fanouts=[2], dataset=folder)


@pytest.mark.parametrize(
    ("graph", "features_", "options", "match"),
    [
        (csc_graph(), None, {}, "'fanouts' are missing"),
        ("sampler", None, {"fanouts": [2]}, "'fanouts' beside it"),
        ("sampler", None, {"seed": 3}, "'seed' beside it"),
        (7, None, {"fanouts": [2]}, "Got int"),
        (csc_graph(), {"x": np.zeros((5, 2))}, {"fanouts": [2]}, "5 rows.*300 nodes"),
        (csc_graph(), [1], {"fanouts": [2]}, "Got list"),
        (csc_graph(), {"paper": {"x": features()}}, {"fanouts": [2]}, "kind 'paper'"),
        (csc_graph(), {"x": "file"}, {"fanouts": [2]}, "Got str"),
        (csc_graph(), None, {"fanouts": [2], "num_workers": -1}, "num_workers"),
        (csc_graph(), None, {"fanouts": [2], "offsets": [0, 300]}, "without offsets"),
        (csc_graph(), None, {"fanouts": [2], "rank": 1}, "'world_size'|give both"),
    ],
)
def test_what_cannot_be_loaded(
    plan: Path, graph: Any, features_: Any, options: dict[str, Any], match: str
) -> None:
    if graph == "sampler":
        graph = NeighborSampler.from_graph(csc_graph(), [2])
    with pytest.raises(ParameterError, match=match):
        graph_loader(plan, graph, features_, **options)


# --- several kinds --------------------------------------------------------------------------------


def test_kinds_of_nodes_are_sources(tmp_path: Path) -> None:
    sources = {
        "author": write_nodes(tmp_path / "author", 80),
        "paper": write_nodes(tmp_path / "paper"),
    }
    first = open_dataset(sources).snapshot.fragments
    start = min(f.first_row_id for f in first if f.source == "paper")
    assert start == 80
    node_plan(tmp_path / "plan", sources, first_row=start)
    data = hetero_data()
    wrote = ("author", "wrote", "paper")
    alone = None
    for workers in (0, 2):
        loader = graph_loader(tmp_path / "plan", data, fanouts=[3, 2], num_workers=workers)
        assert loader.kind == "paper"
        batches = list(loader)
        for batch in batches:
            paper = batch["paper"]
            assert (paper.n_id[: paper.batch_size] + start).tolist() == batch.rows.tolist()
            assert torch.equal(paper.x, data["paper"].x[paper.n_id])
            assert torch.equal(paper.y, data["paper"].y[paper.n_id[: paper.batch_size]])
            assert torch.equal(batch["author"].x, data["author"].x[batch["author"].n_id])
            assert "y" not in batch["author"]
            edges = batch[wrote]
            assert torch.equal(edges.edge_attr, data[wrote].edge_attr[edges.e_id])
            ends = torch.stack(
                [batch["author"].n_id[edges.edge_index[0]], paper.n_id[edges.edge_index[1]]]
            )
            assert torch.equal(ends, data[wrote].edge_index[:, edges.e_id])
            assert len(paper.input_id) == paper.batch_size == batch.num_rows
        found = [[b["paper"].n_id.tolist(), b["author"].n_id.tolist()] for b in batches]
        alone = alone or found
        assert found == alone
    both = node_plan(tmp_path / "both", sources, rows=NODES + 80)
    with pytest.raises(SelectionError, match="several kinds of nodes, author, paper"):
        graph_loader(both, data, fanouts=[2])
    with pytest.raises(SelectionError, match="expected 'author'"):
        graph_loader(tmp_path / "plan", data, fanouts=[2], kind="author")


def test_the_kind_is_named_where_the_source_is_not_one(plan: Path) -> None:
    data = hetero_data()
    with pytest.raises(ParameterError, match="kind=…"):
        graph_loader(plan, data, fanouts=[2])
    with pytest.raises(ParameterError, match="no nodes of kind 'papers'.*Did you mean 'paper'"):
        graph_loader(plan, data, fanouts=[2], kind="papers")
    loader = graph_loader(plan, data, fanouts=[2], kind="paper")
    batch = next(iter(loader))
    assert batch["paper"].n_id[: batch.num_rows].tolist() == batch.rows.tolist()
    sampler = HeteroNeighborSampler.from_data(data, [2], seed=7)
    again = next(iter(graph_loader(plan, sampler, data, kind="paper")))
    assert torch.equal(again["author"].n_id, batch["author"].n_id)


# --- graphs in folders ----------------------------------------------------------------------------


def built(folder: Path, edges: Any) -> Path:
    """Build a graph of nodes with features."""
    table = pa.table({"src": edges[0], "dst": edges[1]})
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "edges.parquet")
    nodes = write_nodes(folder / "nodes")
    build_graph(folder / "edges.parquet", folder / "graph", nodes=nodes, workers=0)
    return folder / "graph"


def test_a_graph_that_was_built_is_the_dataset_of_its_plans(tmp_path: Path) -> None:
    graph = built(tmp_path / "one", pairs())
    other = built(tmp_path / "other", pairs()[::-1])
    make_plan("shuffle", graph, out=tmp_path / "plan", batch_size=60, epochs=(0, 1), workers=0)
    pack(graph, tmp_path / "packed", columns=["x"])
    loader = graph_loader(
        tmp_path / "plan", graph, tmp_path / "packed", fanouts=[4, 3], dataset=graph
    )
    held = csc_graph()
    for batch in loader:
        key = key_of_step(loader.sampler.options.seed, 0, batch.step)
        made = sample_neighbors(held, batch.rows.numpy(), [4, 3], key)
        assert batch.n_id.tolist() == made.nodes[0].tolist()
        assert np.array_equal(batch.x.numpy(), features()[batch.n_id.numpy()])
        ends = torch.from_numpy(pairs())[:, batch.e_id]
        assert torch.equal(ends, batch.n_id[batch.edge_index])
    with pytest.raises(DatasetChangedError, match="another graph"):
        graph_loader(tmp_path / "plan", other, fanouts=[4])
    workers = graph_loader(tmp_path / "plan", graph, fanouts=[4, 3], num_workers=1)
    assert [b.n_id.tolist() for b in workers] == [b.n_id.tolist() for b in loader]
