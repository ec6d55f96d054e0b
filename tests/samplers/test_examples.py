"""Every example runs as it stands, and says what its docstring promises."""

import runpy
import sys
import tempfile
from pathlib import Path

import batchloom
import pytest

EXAMPLES = Path(batchloom.__file__).parent / "examples"

SAYS = {
    "plain_torch": ("53 steps, up to epoch 1, step 12", "27 steps", "same weights: True"),
    "lightning_loop": ("stopped at step 53", "trained to step 80", "same weights: True"),
    "accelerate_loop": ("53 steps, up to epoch 1, step 12", "27 steps", "same weights: True"),
    "seta_accelerate": ("53 steps, up to epoch 3", "same weights: True"),
    "images": ("400 images", "loss 0."),
    "tokens": ("50 rows, layout torch.jagged", "of the values would be tokens"),
    "ngame_training": (
        "random batches: P@1 0.",
        "NGAME's batches: P@1 0.",
        "stopped at step 425, in epoch 5",
        "same weights: True",
    ),
    "seta_ngame": (
        "epoch 0: 1120 rows, 1 clusters a micro-batch",
        "epoch 9: 1120 rows, 4 clusters a micro-batch",
        "images kept aside: ",
    ),
    "colm_mixture": ("CoLM's halves: 544 rows an epoch", "random halves: 544 rows an epoch"),
    "graph_nodes": ("12 batches an epoch", "better than half are right: True"),
    "graph_links": ("links rank above what is none: True",),
    "graph_kinds": ("60 micro-batches", "two ranks sample what one does: True"),
    "graph_large": (
        "stopped after 13 batches, in epoch 1",
        "same weights: True",
        "of the reads, all right: True",
    ),
    "colm_trainer": ("poems:  30 rows, loss", "same weights: True"),
}
NEEDS = {
    "lightning_loop": "lightning",
    "accelerate_loop": "accelerate",
    "seta_accelerate": "accelerate",
    "images": "PIL",
    "colm_trainer": "transformers",
    "graph_nodes": "torch_geometric",
    "graph_links": "torch_geometric",
    "graph_kinds": "torch_geometric",
    "graph_large": "torch_geometric",
}


def test_every_example_is_run_here():
    elsewhere = {"made_up", "seta_training", "service_training"}  # no program; by other tests
    assert {p.stem for p in EXAMPLES.glob("*.py")} - elsewhere == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_example(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip(NEEDS.get(name, "torch"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    for expected in SAYS[name]:
        assert expected in said
