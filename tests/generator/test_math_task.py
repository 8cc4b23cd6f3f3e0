"""Mathematical problems from files, and the equality that their answers are judged by."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groupreplay_generator.tasks import Task, create_task


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write a JSON Lines file."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def sums(count: int) -> list[dict[str, Any]]:
    """Return problems with their answers."""
    return [{"question": f"What is {number}+1?", "answer": str(number + 1)} for number in range(count)]


def problem_ids(task: Task[Any]) -> tuple[list[str], list[str]]:
    """Return the prompt ids of both splits."""
    train, heldout = (
        [task.problem(index, split).prompt_id for index in range(task.problem_count(split))]
        for split in ("train", "heldout")
    )
    return train, heldout


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("42", ["\\boxed{42}", "So it is $42$.", "The answer is 42.0"], ["\\boxed{43}", "", "forty-two"]),
        ("\\frac{1}{2}", ["\\boxed{1/2}", "\\boxed{0.5}", "\\boxed{\\dfrac{2}{4}}"], ["\\boxed{2}", "\\boxed{1/3}"]),
        ("x+1", ["\\boxed{1+x}"], ["\\boxed{x-1}"]),
        ("He has 3 and 4.\n#### 7", ["\\boxed{7}"], ["\\boxed{3}", "\\boxed{4}"]),
        ("$\\{1,2\\}$", ["\\boxed{\\{2,1\\}}"], ["\\boxed{\\{1,3\\}}"]),
    ],
)
def test_a_response_earns_1_for_an_equal_answer(
    tmp_path: Path, answer: str, right: list[str], wrong: list[str]
) -> None:
    """However it is written; what stands before the final answer does not count."""
    path = write_lines(tmp_path / "problems.jsonl", [{"problem": "?", "answer": answer}])
    task = create_task(f"math:{path}?heldout={path}")
    problem = task.problem(0, "heldout")
    assert [task.score(problem, response) for response in right] == [1.0] * len(right)
    assert [task.score(problem, response) for response in wrong] == [0.0] * len(wrong)


def test_problems_are_split_by_their_content(tmp_path: Path) -> None:
    """Every eighth or so is held out, the same in whatever file and order it comes, and none appears twice."""
    forth = create_task(f"math:{write_lines(tmp_path / 'forth.jsonl', sums(80))}")
    back = create_task(f"math:{write_lines(tmp_path / 'back.jsonl', [*reversed(sums(80)), *sums(5)])}", seed=9)
    (train, heldout), (back_train, back_heldout) = problem_ids(forth), problem_ids(back)
    assert len(train) + len(heldout) == 80
    assert 3 <= len(heldout) <= 20
    assert (set(train), set(heldout)) == (set(back_train), set(back_heldout))
    assert len(back_train) == len(train)


def test_a_file_of_its_own_can_be_held_out(tmp_path: Path) -> None:
    """All of the first file is trained on, but for what the second repeats, spaces aside."""
    train = write_lines(tmp_path / "train.jsonl", sums(20))
    again = [{"question": "What  is 3+1? ", "answer": "4"}, {"question": "new", "answer": "1"}]
    heldout = write_lines(tmp_path / "test.jsonl", again)
    task = create_task(f"math:{train}?heldout={heldout}")
    ids = problem_ids(task)
    assert [len(split) for split in ids] == [19, 2]
    assert not set(ids[0]) & set(ids[1])


def test_fields_of_other_names_can_be_named(tmp_path: Path) -> None:
    """Data sets disagree on what a question is called."""
    path = write_lines(tmp_path / "other.jsonl", [{"query": "1+1?", "gold": 2, "answer": "elsewhere"}] * 2)
    task = create_task(f"math:{path}?question=query&answer=gold&heldout={path}")
    assert task.problem(0, "heldout").prompt_text.startswith("1+1?\n\nPlease reason")
    assert task.problem(0, "heldout").answer == "2"
    assert task.name == "math:other.jsonl"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "1?", "answer": "1"}\n\n{"question": "2?"\n', r"bad.jsonl:3: this is not JSON"),
        ('{"question": "1?", "answer": "1"}\n[1]\n', r"bad.jsonl:2: expected a JSON object, got \[1\]"),
        ('{"question": "1?"}\n', r"bad.jsonl:1: no text in 'answer'; it has the fields 'question'"),
        ('{"question": " ", "answer": 1}\n', r"bad.jsonl:1: no text in 'question' or 'problem'"),
        ('{"question": "1?", "answer": null}\n', r"bad.jsonl:1: no text in 'answer'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    """The error says the file and the line."""
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        create_task(f"math:{path}")


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    """So are an option that nobody knows and a place that is missing."""
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.jsonl"):
        create_task(f"math:{tmp_path}/absent.jsonl")
    with pytest.raises(ValueError, match=r"unknown option 'hold'; known: answer, config, heldout, question, split"):
        create_task("math:x.jsonl?hold=y")
    with pytest.raises(ValueError, match="names no file"):
        create_task("math:?answer=x")


def test_an_answer_that_nobody_can_read_is_an_error_of_the_problem(tmp_path: Path) -> None:
    """It is counted as a failed verifier, and not as a wrong response."""
    path = write_lines(tmp_path / "p.jsonl", [{"question": "?", "answer": "$ $"}])
    task = create_task(f"math:{path}?heldout={path}")
    with pytest.raises(ValueError, match=r"the answer '\$ \$' of math/\w+ is nothing that math-verify can read"):
        task.score(task.problem(0, "heldout"), "\\boxed{1}")


def test_data_sets_are_read_from_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Parquet file, a folder of files, and what `save_to_disk` wrote, all without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = pa.Table.from_pylist(sums(40))
    (tmp_path / "folder").mkdir()
    pq.write_table(table, tmp_path / "sums.parquet")
    pq.write_table(table, tmp_path / "folder" / "train.parquet")
    saved = datasets.Dataset(table)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved, "test": saved.select(range(4))}).save_to_disk(str(tmp_path / "both"))
    expected = problem_ids(create_task(f"math:{write_lines(tmp_path / 'sums.jsonl', sums(40))}"))
    for source in ("sums.parquet", "folder", "one", "both"):
        assert problem_ids(create_task(f"math:hf:{tmp_path / source}")) == expected
    assert [len(ids) for ids in problem_ids(create_task(f"math:hf:{tmp_path}/both?heldout=test"))] == [36, 4]


@pytest.mark.parametrize(
    ("module", "source", "package"),
    [("math_verify", "math:x.jsonl", "math-verify"), ("datasets", "math:hf:x", "datasets")],
)
def test_without_the_package_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, source: str, package: str
) -> None:
    """A generator installed without extras says what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs the package {package}: pip install 'groupreplay\[tasks\]'"):
        create_task(source)
