from __future__ import annotations

from pathlib import Path

import pytest
from batchloom.dataplane.errors import JobSpecError
from batchloom.jobs import plan, run
from batchloom.jobs.job_file import load_job, resolve_stages

GOOD = """
dataset = "{data}"
out = "{out}"
batch_size = 32
micro_per_step = 2
epochs = "1:3"
seed = 7
workers = 0

[[stages]]
method = "where"
expression = "a > 0"

[[stages]]
method = "kmeans"
columns = ["x"]
k = 4
batches = "across"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def test_a_job_file_is_the_same_as_the_call(small: Path, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.format(data=small, out=tmp_path / "file"))
    from_file = run(path)
    called = plan(
        "kmeans", small, out=tmp_path / "call", where="a > 0", columns=["x"], k=4, workers=0,
        batches="across", batch_size=32, micro_per_step=2, epochs=(1, 3), seed=7,
    )  # fmt: skip
    assert from_file.manifest_id == called.manifest_id


def test_named_sources_are_a_table(small: Path, tmp_path: Path) -> None:
    text = GOOD.replace('dataset = "{data}"\n', "") + '\n[dataset]\nweb = "{data}"\n'
    made = run(write(tmp_path, text.format(data=small, out=tmp_path / "p")))
    assert {f.source for f in made.snapshot.fragments} == {"web"}


def test_the_batch_stage_may_be_named(small: Path, tmp_path: Path) -> None:
    text = GOOD.format(data=small, out=tmp_path / "p").replace('batches = "across"', "")
    text += '\n[[stages]]\nmethod = "aligned"\ndrop_last = true\n'
    stages = resolve_stages(load_job(write(tmp_path, text)))
    assert [s.method for s in stages] == ["where", "kmeans", "aligned"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "batch_size = 32",
            "batchsize = 32",
            "no parameter 'batchsize'. Did you mean 'batch_size'",
        ),
        ("batch_size = 32", "batch_size = 0", r"'batch_size' .* range \[1, inf\). Got 0 instead"),
        ("batch_size = 32", 'batch_size = "many"', "'batch_size' .* an int .* Got 'many' instead"),
        ("seed = 7", "seed = -1", "'seed' .* Got -1 instead"),
        ('epochs = "1:3"', 'epochs = "3:1"', "'epochs' .* Got '3:1' instead"),
        ('out = "', 'snapshot = "a"\nsince = "b"\nout = "', "either a snapshot or a since"),
        ('out = "', 'added_only = true\nout = "', "'added_only' needs a 'since'"),
        ('out = "', 'scheduler = "tcp://x"\nout = "', "either a scheduler or a number"),
        ('out = "', 'on_invalid = "skip"\nout = "', "one of 'fail', 'drop'. Got 'skip' instead"),
        (
            'out = "',
            'memory = "lots"\nout = "',
            "A size is written like '4GiB' .* Got 'lots' instead",
        ),
        ("k = 4", "k = 0", r"stages\[1\]: The 'k' parameter of kmeans .* Got 0 instead"),
        ("k = 4", "kk = 4", r"stages\[1\]: .*(required|no parameter 'kk'.*Did you mean 'k')"),
        (
            'method = "kmeans"',
            'method = "kmeens"',
            r"stages\[1\]: .*'kmeens'. Did you mean 'kmeans'",
        ),
        ('method = "kmeans"', 'name = "kmeans"', r"stages\[1\] names no method"),
        ('"a > 0"', '"a >"', r"stages\[0\]: The expression 'a >' does not parse"),
        ('dataset = "', 'dataset = ["', "is not TOML"),
    ],
)
def test_errors_name_file_key_value_and_what_is_allowed(
    small: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = GOOD.format(data=small, out=tmp_path / "p")
    assert old in text
    with pytest.raises(JobSpecError, match=message) as error:
        load_job(write(tmp_path, text.replace(old, new)))
    assert str(tmp_path / "job.toml") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["shuffle", "where"], "'where' stands on the wrong side of the batch stage 'shuffle'"),
        (["kmeans", "kmeans"], "at most one group stage; these are kmeans, kmeans"),
        (["shuffle", "shuffle"], "at most one batch stage"),
        (["within"], "'within' needs a group stage"),
    ],
)
def test_kinds_that_make_no_plan_are_refused(
    tmp_path: Path, stages: list[str], message: str
) -> None:
    more = {"where": 'expression = "a > 0"', "kmeans": 'columns = ["x"]\nk = 2'}
    text = f'dataset = "d"\nout = "{tmp_path}/p"\n' + "".join(
        f'[[stages]]\nmethod = "{s}"\n{more.get(s, "")}\n' for s in stages
    )
    with pytest.raises(JobSpecError, match=message):
        load_job(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JobSpecError, match=r"none\.toml cannot be read: No such file"):
        load_job(tmp_path / "none.toml")
