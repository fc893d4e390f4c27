"""The command line: options, files of options, error lines, help, and one voice under mpirun."""

from __future__ import annotations

import dataclasses
import json
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import hpcdml as package
import launch
from hpcdml.cli import files, main, options, ranks, report, train, values
from hpcdml.cli.parser import Answer
from hpcdml.config import POLICIES, TrainConfig, flag, groups
from hpcdml.errors import UsageError

OPTIONS = [option for _, group in groups() for option in options.options_of(group)]
# Set by the launcher of whoever runs the tests, perhaps; the tests of one process are not part of that job.
LAUNCHER = [*ranks.LAUNCHER_RANKS, "SLURM_STEP_ID"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def config_of(*argv: object) -> TrainConfig:
    """The configuration that ``hpcdml train ARGV`` would use."""
    with pytest.raises(Answer) as answer:
        train.parse([*map(str, argv), "--print-config"])
    entries = yaml.load(answer.value.text, values.Loader)
    return TrainConfig.from_flat({key.replace("-", "_"): value for key, value in entries.items()})


def mistake(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line that a wrong command line gets."""
    assert main.main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hpcdml: ")
    assert err.count("\n") == 1
    return err.removeprefix("hpcdml: ").rstrip("\n")


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_without_options_everything_has_its_default() -> None:
    assert config_of() == TrainConfig()


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--batch-size", "64"], "batch_size", 64),
        (["--batch-size=64"], "batch_size", 64),
        (["--max-samples", "1e6"], "max_samples", 1_000_000),
        (["--lr", "1e-3"], "lr", 0.001),
        (["--lr", "1", "--lr", "2"], "lr", 2.0),
        (["--policy", "local-sgd"], "policy", "local-sgd"),
        (["--local-steps", "4"], "local_steps", 4),
        (["--local-steps", "none"], "local_steps", None),
        (["--overwrite"], "overwrite", True),
        (["--overwrite", "--no-overwrite"], "overwrite", False),
        (["--model-args", "hidden=64,layers=2"], "model_args", {"hidden": 64, "layers": 2}),
        (["--model-args", "name=no,flag=true,none=null"], "model_args", {"name": "no", "flag": True, "none": None}),
        (["--model-args", "text='a,b',list=[1, 2]"], "model_args", {"text": "a,b", "list": [1, 2]}),
        (["--model-args", '{"hidden": 64}'], "model_args", {"hidden": 64}),
        (["--model-args", ""], "model_args", {}),
        (["--optimizer-args", "betas=[0.9,0.99],eps=1e-8"], "optimizer_args", {"betas": [0.9, 0.99], "eps": 1e-8}),
        (["--shard-weights", "3,1"], "shard_weights", [3.0, 1.0]),
        (["--shard-weights", "[3, 1]"], "shard_weights", [3.0, 1.0]),
        (["--shard-weights", ""], "shard_weights", []),
        (["--slowdown", "1=5,2=1.5"], "slowdown", {"1": 5.0, "2": 1.5}),
        (["--output", "-odd"], "output", None),
        (["--output=-odd"], "output", "-odd"),
    ],
)
def test_words_become_typed_values(argv: list[str], name: str, value: Any) -> None:
    if argv == ["--output", "-odd"]:
        with pytest.raises(UsageError, match="--output: needs a value"):
            config_of(*argv)
        return
    found = config_of(*argv).flat()[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("spelling", ["batch-size", "batch_size"])
def test_file_keys_have_hyphens_or_underscores(tmp_path: Path, spelling: str) -> None:
    assert config_of(write(tmp_path, f"{spelling}: 8\n")).data.batch_size == 8


@pytest.mark.parametrize("place", [0, 2, 4])
def test_command_line_wins_wherever_the_file_stands(tmp_path: Path, place: int) -> None:
    file = write(tmp_path, "lr: 0.5\nseed: 7\npolicy: bsp\noverwrite: true\n")
    words = ["--lr", "0.02", "--no-overwrite", "--seed=8"]
    words.insert(place, str(file))
    config = config_of(*words)
    assert (config.optimizer.lr, config.run.seed, config.run.overwrite) == (0.02, 8, False)
    assert config.policy.policy == "bsp"


def test_file_may_hold_every_kind(tmp_path: Path) -> None:
    text = """
        lr: 1e-3            # PyYAML alone takes this for a word
        model-args: {hidden: 64, activation: no}
        optimizer-args: momentum=0.9,nesterov=true
        shard-weights:
          - 3
          - 1
        slowdown: {1: 5}
        local-steps: null
        overwrite: true
        max-samples: 1000000.0
    """
    text = "\n".join(line[8:] for line in text.splitlines())
    flat = config_of(write(tmp_path, text)).flat()
    assert flat["lr"] == 0.001
    assert flat["model_args"] == {"hidden": 64, "activation": "no"}
    assert flat["optimizer_args"] == {"momentum": 0.9, "nesterov": True}
    assert flat["shard_weights"] == [3.0, 1.0]
    assert flat["slowdown"] == {"1": 5.0}
    assert flat["local_steps"] is None
    assert flat["overwrite"] is True
    assert flat["max_samples"] == 1_000_000


def test_json_file(tmp_path: Path) -> None:
    text = json.dumps({"batch-size": 8, "model_args": {"hidden": 16}, "clip-norm": None}, indent="\t")
    config = config_of(write(tmp_path, text, "run.json"))
    assert config.data.batch_size == 8
    assert config.model.model_args == {"hidden": 16}


def test_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert config_of(write(tmp_path, "# all as usual\n")) == TrainConfig()


MISTAKES = [
    ("--lr abc", "--lr abc: must be a number"),
    ("--lr=", "--lr '': must be a number"),
    ("--lr -1e-3", "--lr -0.001: must be a finite number above 0"),
    ("--lr nan", "--lr nan: must be a finite number above 0"),
    ("--lr", "--lr: needs a value: --lr X"),
    ("--lr --seed 3", "--lr: needs a value: --lr X"),
    ("--seed 1.5", "--seed 1.5: must be a whole number"),
    ("--batch-size 0", "--batch-size 0: must be at least 1"),
    ("--epochs soon", "--epochs soon: must be a number or none"),
    ("--target-accuracy 97", "--target-accuracy 97.0: must be above 0 and at most 1 (0.97, not 97)"),
    ("--policy ospp", "--policy ospp: must be one of " + ", ".join(POLICIES)),
    ("--model-args hidden", "--model-args hidden: must be key=value,..."),
    ("--model-args a=1,a=2", "--model-args a=1,a=2: must be key=value,..."),
    ("--model-args a=[1", "--model-args a=[1: must be key=value,..."),
    ("--shard-weights 3,x", "--shard-weights 3,x: must be numbers, as in 3,1"),
    ("--slowdown 1=fast", "--slowdown 1=fast: must be key=number,..."),
    ("--output=", "--output '': must be text"),
    ("--overwrite=1", "--overwrite: takes no value"),
    ("--batchsize 3", "--batchsize: no such option; did you mean --batch-size?"),
    ("--batch_size 3", "--batch_size: no such option; did you mean --batch-size?"),
    ("--batch 3", "--batch: no such option"),
    ("-x", "-x: no such option; hpcdml train --help lists them"),
    ("missing.yaml", "missing.yaml: no such file of options"),
    ("/", "/: cannot be read: is a directory"),
    ("a.yaml b.yaml", "b.yaml: one argument too many"),
]


@pytest.mark.parametrize(("argv", "line"), MISTAKES, ids=[argv for argv, _ in MISTAKES])
def test_mistake_on_the_command_line_is_one_line(capsys: pytest.CaptureFixture[str], argv: str, line: str) -> None:
    assert mistake(capsys, "train", *argv.split()).startswith(line)


FILE_MISTAKES = [
    ("lr: abc", ", line 1: lr: abc: must be a number"),
    ("# a\nlr: null", ", line 2: lr: null: must be a number"),
    ("lr: [1]", ", line 1: lr: [1]: must be a number"),
    ("seed: true", ", line 1: seed: true: must be a whole number"),
    ("seed: 1.5", ", line 1: seed: 1.5: must be a whole number"),
    ("output: 2024", ", line 1: output: 2024: must be text (in quotes"),
    ("overwrite: yes", ", line 1: overwrite: yes: must be true or false"),
    ("model-args: [1]", ", line 1: model-args: [1]: must be key=value,..."),
    ("batchsize: 3", ", line 1: batchsize: no such option; did you mean batch-size?"),
    ("data: {dataset: digits}", ", line 1: data: no such option"),
    ("1: 2", ", line 1: 1: no such option"),
    ("lr: 1\nlr: 2", ", line 2: lr: is given twice"),
    ("batch-size: 1\nbatch_size: 2", ", line 2: batch_size: is given twice"),
    ("model-args: {a: 1, a: 2}", ", line 1: not well-formed YAML: a is given twice"),
    ("lr: 1\nseed: [1, 2", ", line 2: not well-formed YAML: "),
    ("lr: 1\nseed: a: b", ", line 2: not well-formed YAML: "),
    ("lr: 1\nmodel: \x07", ", line 2: not well-formed YAML: "),
    ("model: !!python/object/apply:os.getcwd []", ", line 1: not well-formed YAML: "),
    ("- lr\n- seed", ": must hold lines of the form option: value"),
    ("digits", ": must hold lines of the form option: value"),
    ("model-args: " + "[" * 5000, ""),
    ("lr: -1", "(from "),
]


@pytest.mark.parametrize(("text", "line"), FILE_MISTAKES, ids=[text[:30] for text, _ in FILE_MISTAKES])
def test_mistake_in_a_file_names_file_and_place(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, line: str
) -> None:
    path = write(tmp_path, text)
    found = mistake(capsys, "train", path)
    if line.startswith("(from"):
        assert found == f"--lr -1.0: must be a finite number above 0 (from {path})"
    else:
        assert found.startswith(f"{path}{line}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"lr": }', ", line 1: not well-formed JSON: "),
        ('{"lr": 1,\n"lr": 2}', ": lr: is given twice"),
        ("[1]", ": must hold one object"),
        ('{"lr": "x"}', ": lr: x: must be a number"),
    ],
)
def test_mistake_in_a_json_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, line: str) -> None:
    path = write(tmp_path, text, "run.json")
    assert mistake(capsys, "train", path).startswith(f"{path}{line}")


def test_file_that_is_no_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\x89HDF\xff\xfe")
    assert mistake(capsys, "train", path) == f"{path}: must be a YAML or JSON file in UTF-8"


def test_value_of_many_lines_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, "train", "--lr", "1\n2\r3") == "--lr 1 2 3: must be a number"
    assert len(mistake(capsys, "train", "--lr", "9x" * 1000)) < 120


def test_outside_mpi_it_tells_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, "train", "--dataset", "my data.h5")
    assert line == (
        "train needs at least 2 ranks, a server and its workers: mpirun -n 3 hpcdml train --dataset 'my data.h5'"
    )


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "which command? train, resume, replay, report"),
        (["trian"], "trian: no such command; did you mean train?"),
        (["--verbose"], "--verbose: no such option; there are train, resume, replay, report"),
        (["report"], "report: of which run?"),
        (["report", "x", "--jsn"], "--jsn: no such option; did you mean --json?"),
        (["report", "x", "--json", "--compare", "y"], "--json: does not go with --compare"),
        (["report", "x", "--compare"], "--compare: needs a value: --compare OTHER"),
    ],
)
def test_mistake_beyond_train(capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    assert mistake(capsys, *argv).startswith(line)


def test_help_lists_every_option_with_type_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS:
        start = text.index(f" {flag(option.name)} ")
        end = text.index(")", text.index(f"({option.kind.name}; default: ", start))
        shown = {"None": "none", "[]": "empty", "{}": "empty"}.get(str(option.default), values.show(option.default))
        assert text[start : end + 1].endswith(f"default: {shown})")
        assert " ".join(option.help.split()) in text[start:end]
    for _, group in groups():
        assert f"{(group.__doc__ or '').strip()}:" in text


def test_help_of_the_whole_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in main.COMMANDS)
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hpcdml {package.__version__}\n"


def test_help_wins_over_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "--lr", "abc", "-h"]) == 0
    assert "--batch-size N" in capsys.readouterr().out


def test_printed_configuration_reads_back_the_same(tmp_path: Path) -> None:
    words = ["--model-args", "a='1e-3',b=1e-3,c='null',d=null,e=[x, {y: 'no'}]", "--lr", "1e-5", "--overwrite"]
    with pytest.raises(Answer) as first:
        train.parse([*words, "--print-config"])
    with pytest.raises(Answer) as second:
        train.parse([str(write(tmp_path, first.value.text)), "--print-config"])
    assert first.value.text == second.value.text
    assert "batch-size: 32\n" in first.value.text
    assert config_of(*words).model.model_args == {
        "a": "1e-3",
        "b": 0.001,
        "c": "null",
        "d": None,
        "e": ["x", {"y": "no"}],
    }


WORDS = st.text(string.printable + "äß漢😀\x85\u2028", min_size=1, max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS


@given(st.dictionaries(WORDS, SCALARS | st.lists(SCALARS, max_size=3), max_size=4), WORDS)
@settings(max_examples=200, deadline=None)
def test_whatever_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, mapping: dict[str, Any], word: str
) -> None:
    text = files.write({"model_args": mapping, "output": word})
    path = tmp_path_factory.mktemp("options") / "run.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    found = {key: value for key, value, _ in files.read(str(path))}
    assert found == {"model-args": mapping, "output": word}


def test_every_field_is_an_option_of_a_known_kind() -> None:
    names = [f.name for _, group in groups() for f in dataclasses.fields(group)]
    assert [option.name for option in OPTIONS] == names
    for option in OPTIONS:
        if option.default is not None:
            assert option.kind.convert(option.default) == option.default


@pytest.mark.parametrize(
    ("env", "rank"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_RANK": "2"}, 2),
        ({"PMIX_RANK": "0"}, 0),
        ({"PMI_RANK": "1"}, 1),
        ({"SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_PROCID": "3", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, 3),
    ],
)
def test_launchers_are_known_by_the_environment(env: dict[str, str], rank: int | None) -> None:
    assert ranks.launcher_rank(env) == rank


def test_mistakes_and_help_need_neither_torch_nor_mpi() -> None:
    code = (
        "import sys; from hpcdml.cli.main import main; main(['train', '--lr', 'x']); main(['train', '--help']);"
        "print([m for m in ('torch', 'mpi4py', 'numpy', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


@pytest.mark.parametrize(
    ("problem", "status", "line"),
    [
        (UsageError("--lr 3: no"), 2, "hpcdml: --lr 3: no\n"),
        (ValueError("two\nlines"), 1, "hpcdml: failed: ValueError: two lines; --debug shows where\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_failures_of_a_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], problem: BaseException, status: int, line: str
) -> None:
    def fail(job: object) -> int:
        raise problem

    monkeypatch.setattr(report, "run", fail)
    monkeypatch.setattr(main, "_drop", lambda stream: None)  # it would close this process's standard output
    assert main.main(["report", "x"]) == status
    assert capfd.readouterr().err == line


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report, "run", lambda job: 1 // 0)
    assert main.main(["report", "x", "--debug"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("hpcdml: failed: ZeroDivisionError: ")


def test_reader_that_goes_away_is_no_failure() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{sys.executable}' -m hpcdml train --help | head -n 1"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: hpcdml train")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_under_standard_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hpcdml", "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "hpcdml: standard output: no space left on device\n"


def test_comparison_is_one_line() -> None:
    one = {
        "policy": "losp",
        "final_accuracy": 0.972,
        "final_loss": 0.1,
        "samples_per_second": 1000.0,
        "idle_fraction": [0.01, 0.0],
    }
    other = {**one, "policy": "bsp", "final_accuracy": 0.961, "samples_per_second": 250.0, "idle_fraction": [0.5, 0.6]}
    assert report.compare(one, other) == (
        "losp against bsp: accuracy 97.20% against 96.10%; 1,000 samples/s against 250, 4.00 times as many; "
        "workers idle 1.0%, 0.0% against 50.0%, 60.0% of the time"
    )
    regression = {**one, "final_accuracy": None}
    assert "loss 0.1 against 0.1" in report.compare(regression, {**other, "final_accuracy": None})
    assert "samples/s" not in report.compare({**one, "samples_per_second": None}, other)
    assert "times" not in report.compare(one, {**other, "samples_per_second": 0.0})


def said(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("hpcdml")]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["train", "--lr", "abc"], "hpcdml: --lr abc: must be a number"),
        ([], "hpcdml: which command? " + ", ".join(main.COMMANDS) + "; hpcdml --help tells more"),
    ],
)
def test_under_mpirun_one_rank_speaks(hpcdml_job: Any, argv: list[str], line: str) -> None:
    done = hpcdml_job(3, *argv, timeout=60)
    assert done.returncode == 2
    assert said(done.stderr) == [line]
    assert "Traceback" not in done.stderr


def test_under_mpirun_one_rank_answers(hpcdml_job: Any) -> None:
    done = hpcdml_job(3, "train", "--lr", "0.5", "--print-config", timeout=60)
    assert done.returncode == 0
    assert done.stdout.count("\nlr: 0.5\n") == 1


def test_mistake_of_a_single_rank_ends_all(mpirun: Any, tmp_path: Path) -> None:
    # The file of options is missing for one rank, as on a disk that is not shared.
    file = write(tmp_path, "lr: 0.5\n")
    script = '[ "${OMPI_COMM_WORLD_RANK:-$PMI_RANK}" = 1 ] && set -- missing.yaml; exec "$0" -m hpcdml train "$@"'
    done = mpirun(3, "sh", "-c", script, sys.executable, file, timeout=60)
    assert done.returncode == 2
    (line,) = said(done.stderr)
    assert line.startswith("hpcdml: missing.yaml: no such file of options")
    assert "(rank 1 on " in line


def test_hanging_job_is_ended_and_its_output_told(mpirun: Any) -> None:
    code = "import time; from mpi4py import MPI; print('alive', flush=True); time.sleep(600)"
    with pytest.raises(launch.JobHangs, match="alive"):
        mpirun(2, sys.executable, "-c", code, timeout=5)


def test_process_that_outlives_its_job_is_found(mpirun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "LEAVING_SECONDS", 1.0)
    with pytest.raises(launch.JobLeftProcesses, match="sleep 600"):
        mpirun(1, "sh", "-c", "setsid sleep 600 >/dev/null 2>&1 &", timeout=60)


def test_a_bound_below_the_least_number_of_local_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-local-steps 4: must be at least --local-steps, 8"):
        TrainConfig.from_flat({"local_steps": 8, "max_local_steps": 4})
