"""Parameters in other programs' formats and back, and what ``inspect`` says about files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hpcdml.cli.main import main
from hpcdml.storage import Checkpoint, RunWriter, TensorArray, read_state, write_checkpoint
from hpcdml.storage.tables import STEPS
from hpcdml.training.state import to_arrays, typed_state


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2).to(torch.bfloat16))
    net[2].bias.data[0] = float("nan")
    return net


def checkpoint(folder: Path, version: int = 7, net: nn.Module | None = None, lr: float = 0.1) -> Path:
    net = net or model()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    sum(p.float().sum() for p in net.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    worker = {"optimizer": to_arrays(optimizer.state_dict(), "optimizer"), "place": [3, 17]}
    return write_checkpoint(
        folder, Checkpoint(version, typed_state(model()), {"seconds": 1.5}, {1: worker}, {"lr": lr, "policy": "losp"})
    )


def run_file(folder: Path, finish: bool) -> Path:
    state = {name: (t.values.shape, t.torch_dtype) for name, t in typed_state(model()).items()}
    with RunWriter.create(folder, {"lr": 0.1, "policy": "bsp"}, {"host": "here"}, 2, state, False) as writer:
        writer.append("steps", np.ones(3, STEPS.dtype))
        writer.event(0.5, 0, "started", "")
        if finish:
            writer.write_parameters({name: t.values for name, t in typed_state(model()).items()}, 2.0)
    return folder / "run.h5"


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, bytes]]:
    return {
        name: (t.dtype, (t.view(torch.int16) if t.dtype is torch.bfloat16 else t).numpy().tobytes())
        for name, t in tensors.items()
    }


def hpcdml(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    found = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert found == status, err
    assert (err == "") == (status == 0) and len(err.splitlines()) <= 1
    return out if status == 0 else err.removeprefix("hpcdml: ").rstrip("\n")


@pytest.mark.parametrize("kind", [".safetensors", ".pt"])
@pytest.mark.parametrize("source", ["checkpoint", "finished run", "killed run"])
def test_parameters_go_out_and_come_back_bit_for_bit(
    kind: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if source == "finished run":
        given, read = tmp_path / "run", run_file(tmp_path / "run", finish=True)
    else:
        read = checkpoint(tmp_path / "run" / "checkpoints")
        given = read if source == "checkpoint" else run_file(tmp_path / "run", finish=False).parent
    out, back = tmp_path / f"deep/model{kind}", tmp_path / "back.h5"
    assert hpcdml(capsys, "export", given, out) == f"{out}: 9 parameters and buffers of {read}\n"
    if kind == ".pt":
        loaded = torch.load(out, weights_only=True)
    else:
        from safetensors.torch import load_file

        loaded = load_file(out)
    assert bits(loaded) == bits(dict(model().state_dict()))
    model().load_state_dict(loaded)
    hpcdml(capsys, "export", out, back)
    state, about = read_state(back)
    assert about == {"source": out.name}
    assert {n: a.tobytes() for n, a in state.items()} == {
        n: t.values.tobytes() for n, t in typed_state(model()).items()
    }
    again = tmp_path / f"again{kind}"
    hpcdml(capsys, "export", back, again)
    assert again.read_bytes() == out.read_bytes() or kind == ".pt"  # .pt holds its own name
    assert "parameters   the same in every bit, 9 of them" in hpcdml(capsys, "inspect", read, back)


def test_wrong_use_of_export_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(Path("c"))
    source = "c/step-00000007.h5"
    Path("there.pt").write_text("x")
    Path("bad.safetensors").write_text("x" * 100)
    torch.save({"a": torch.zeros(1), "b": [1]}, "list.pt")
    torch.save(nn.Linear(2, 2), "model.pt")
    Path("damaged.h5").write_bytes(Path(source).read_bytes()[:-1])
    run_file(Path("run"), finish=False)
    for arguments, message in (
        ([source], "export: from what to what? as in hpcdml export runs/latest model.safetensors"),
        ([source, "a.onnx"], "a.onnx: the name must end in .safetensors, .pt or .h5"),
        ([source, "there.pt"], "there.pt: is there already; name another file or add --overwrite"),
        (["none.h5", "a.pt"], "none.h5: there is no such file"),
        (["none.pt", "a.h5"], "none.pt: there is no such file"),
        (["there.pt", "a.h5"], "there.pt: cannot be read as .pt: "),
        (["bad.safetensors", "a.h5"], "bad.safetensors: cannot be read as .safetensors: "),
        (["list.pt", "a.h5"], "list.pt: must hold tensors by name only; 'b' is a list"),
        (["model.pt", "a.h5"], "model.pt: cannot be read as .pt: Weights only load failed"),
        (["damaged.h5", "a.pt"], "damaged.h5: "),
        (["run", "a.pt"], "run: the run has neither finished nor left a valid checkpoint"),
        ([source, "there.pt/a.pt"], "there.pt/a.pt: cannot be written: "),
    ):
        assert hpcdml(capsys, "export", *arguments, status=2).startswith(message)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert hpcdml(capsys, "export", source, "a.safetensors", status=2) == (
        "a .safetensors file needs the package safetensors, which is not installed: pip install 'hpcdml[export]'"
    )
    assert not any(name.startswith(("a.", ".")) for name in os.listdir())
    hpcdml(capsys, "export", source, "there.pt", "--overwrite")


def test_inspect_tells_what_a_checkpoint_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path)
    text = hpcdml(capsys, "inspect", path)
    for part in (
        f"{path}: a checkpoint, ",
        "validity     every byte is as it was written",
        "version      7 of the global parameters",
        "number 1 of the run",
        "parameters   9 of ",
        "  0.weight  float32[3, 4]  from -",
        "  2.bias  bfloat16[2]  from -0.118652 to -0.118652  and 1 not finite",
        "  optimizer/state/0/step = 1.0\n",
        "seconds = 1.5",
        "worker 1     ",
        "  optimizer/state/0/exp_avg = float32[3, 4]",
        "  lr = 0.1",
    ):
        assert part in text, text
    assert "and " in text and "more; --all names them" in text
    assert "more; --all" not in hpcdml(capsys, "inspect", path, "--all")


def test_inspect_tells_what_a_run_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file(tmp_path / "run", finish=True)
    text = hpcdml(capsys, "inspect", tmp_path / "run")
    for part in (
        "a record of a run, ",
        "validity     every byte is as it was written",
        "status       finished, 2 workers, made ",
        "rows         3 steps, 0 pushes, 0 rounds, 0 evaluations, 3 events",
        "events (1 started, 1 parameters, 1 finished)",
        "       0.500 s  rank 0  started",
        "  host = here",
    ):
        assert part in text, text
    with RunWriter.create(tmp_path / "live", {}, {}, 1, {}, False) as writer:
        writer.append("steps", np.ones(3, STEPS.dtype))
        writer.flush(force=True)
        text = hpcdml(capsys, "inspect", tmp_path / "live")
        assert "validity     every row is; the file is being written, or its writer was killed" in text
        assert "status       not finished" in text and "3 steps" in text


def test_inspect_tells_how_two_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = checkpoint(tmp_path / "one")
    assert "options      the same" in hpcdml(capsys, "inspect", one, one)
    state = typed_state(model())
    changed = state["0.weight"].values.copy()
    changed[1, 2] += 0.5
    state["0.weight"] = TensorArray(changed, "float32")
    del state["0.bias"]
    state["2.weight"] = TensorArray(state["2.weight"].values, "float32")
    other = write_checkpoint(tmp_path / "other", Checkpoint(8, state, config={"lr": 0.2, "seed": 1, "policy": "losp"}))
    text = hpcdml(capsys, "inspect", one, other)
    for part in (
        "options      2 differ\n  lr = 0.1 against 0.2\n  seed = (not there) against 1\n",
        "versions     7 against 8",
        "parameters   3 of 9 differ, the first is 0.weight",
        "  0.weight: 1 of 12 values differ, by 0.5 at most; the first at [1, 2]: ",
        "  0.bias: only in the first",
        "  2.weight: bfloat16[2, 3] against float32[2, 3]",
    ):
        assert part in text, text
    run_file(tmp_path / "run", finish=False)
    assert "not compared: " in hpcdml(capsys, "inspect", one, tmp_path / "run")


def test_inspect_of_a_damaged_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path)
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    assert "damaged: bytes 0 to " in hpcdml(capsys, "inspect", path, status=2)
    assert hpcdml(capsys, "inspect", tmp_path / "no", status=2) == f"{tmp_path / 'no'}: there is no such file"
    assert hpcdml(capsys, "inspect", status=2) == "inspect: which file? as in hpcdml inspect runs/latest"
