"""Our training path beside others: python -m tests.benchmarks.training [CASE ...] [--peers PEER ...]

Every figure is a process of its own on the same device, one after the other, on random weights of real
dimensions in NF4 with double quantisation, r 16 on all linear layers. Without a GPU it compares the
starter with plain TRL. ``--unsloth-path`` is a folder that holds Unsloth and what it wants of its own.

    python -m tests.benchmarks.training 3b-none 3b-full 3b-small --probe --peers usual packed unsloth
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.peers import DIMS

OFF, SMALL = ["--checkpointing", "off"], ["--checkpointing", "offload", "--tokens", "2048"]
FULL_ROWS = ["--rows", "full", "--examples", "8"]
LONG = ["--warm-up", "20", "--steps", "24"]  # a graph takes longer to record than a small model's step
# What each case pins of our recipe, and the options that peers have for the same case.
CASES: dict[str, tuple[str, list[str], dict[str, list[str]]]] = {
    "3b-none": (
        "3b",
        ["--checkpointing", "none"],
        {"packed": OFF, "unsloth": OFF},
    ),
    "3b-full": (
        "3b",
        ["--checkpointing", "offload", "--tokens", "16384"],
        {"packed": [], "unsloth": [], "usual": []},
    ),
    "3b-small": ("3b", [*SMALL, "--optimizer", "adamw_8bit"], {"unsloth": ["--batch", "1"]}),
    "3b-planner": ("3b", [], {}),
    "3b-rows-full": (
        "3b",
        [*FULL_ROWS, "--checkpointing", "none"],
        {"packed": [*FULL_ROWS, *OFF], "unsloth": [*FULL_ROWS, *OFF]},
    ),
    "7b-none": (
        "7b",
        ["--checkpointing", "none", "--tokens", "18432"],
        {"packed": OFF, "unsloth": OFF},
    ),
    "7b-full": (
        "7b",
        ["--checkpointing", "offload", "--tokens", "16384"],
        {"packed": [], "unsloth": []},
    ),
    "7b-small": ("7b", [*SMALL, "--optimizer", "adamw_8bit"], {"unsloth": ["--batch", "1"]}),
    "0.5b": ("0.5b", LONG, {"packed": OFF, "unsloth": OFF}),
    # For the forecasts: other lengths, with checkpointing and without.
    "0.5b-full-512": ("0.5b", [*LONG, "--length", "512", "--checkpointing", "full"], {}),
    "0.5b-none-1024": ("0.5b", [*LONG, "--length", "1024", "--checkpointing", "none"], {}),
    "3b-none-512": ("3b", ["--length", "512", "--checkpointing", "none"], {}),
    "3b-full-1024": ("3b", ["--length", "1024", "--checkpointing", "full"], {}),
    "7b-none-512": ("7b", ["--length", "512", "--checkpointing", "none"], {}),
    "7b-full-1024": ("7b", ["--length", "1024", "--checkpointing", "full"], {}),
}
COLUMNS = ("case", "who", "tokens/s", "peak GiB", "reserved", "of peak", "step s", "attention or plan")


def matmul_peak() -> float:
    """What a plain product reaches on this device, in FLOP/s."""
    code = (
        "import tests; from plumbline.planner.cost import device_speed;"
        "print(device_speed('cuda', 'bfloat16').matmul_flops)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def flops_per_token(dims: str) -> float:
    """Of a step that computes nothing twice: two products forward and two backward, weights frozen."""
    d = DIMS[dims]
    width = d.get("head_dim", d["hidden_size"] // d["num_attention_heads"])
    heads = 2 * d["num_attention_heads"] + 2 * d["num_key_value_heads"]
    layer = d["hidden_size"] * (width * heads + 3 * d["intermediate_size"])
    return 4 * (d["num_hidden_layers"] * layer + d["hidden_size"] * d["vocab_size"])


def run(
    module: str, options: list[str], environment: dict[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """The RESULTs of one process as they come, or what went wrong under ``error``."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *options]
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=os.environ | (environment or {}),
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("RESULT "):
                yield json.loads(line.removeprefix("RESULT "))
        if process.wait():
            complaints.seek(0)
            yield {"error": complaints.read()[-600:]}


def unsloth_environment(folder: str) -> dict[str, str]:
    libraries = [f"{folder}/lib", os.environ.get("LD_LIBRARY_PATH", "")]
    return {"PYTHONPATH": folder, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}


def row(case: str, who: str, found: dict[str, Any], peak: float | None) -> str:
    if "error" in found:
        return f"| {case} | {who} | {found['error']} |"
    share = found["tokens_per_second"] * flops_per_token(found["dims"]) / peak if peak else None
    tokens = found.get("tokens_per_step", 0) / found["tokens_per_second"]
    how = found.get("attention") or ", ".join(found.get("plan", {}).values())
    cells = [
        case,
        who,
        f"{found['tokens_per_second']:,}",
        found["peak_gib"],
        found["reserved_gib"],
        f"{share:.0%}" if share else "",
        f"{tokens:.3f}",
        how,
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def on_cpu() -> None:
    """The starter with plain TRL, padded and packed, and here, alternating."""
    starter = str(Path("assets/starter").resolve())
    plain = ["--length", "256", "--examples", "8", "--batch", "8", "--steps", "10", "--checkpointing", "off"]
    for _ in range(2):
        for name, module, options in (
            ("ours", "ours", ["--model", "starter", "--length", "256", "--examples", "8", "--steps", "10"]),
            ("TRL padded", "peers", ["--model", starter, "--peer", "usual", "--dims", "tiny", *plain]),
        ):
            found = list(run(module, options))[-1]
            print(name, found.get("tokens_per_second", found), "tokens/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--peers", nargs="*", default=[], choices=["usual", "packed", "unsloth"])
    parser.add_argument("--models", default="/tmp/plumbline-benchmark", help="where checkpoints are made")
    parser.add_argument("--unsloth-path", help="folder that goes on PYTHONPATH for Unsloth alone")
    parser.add_argument("--probe", action="store_true", help="compare forecasts with outcomes")
    parser.add_argument("--skip-ours", action="store_true")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        on_cpu()
        return
    peak = matmul_peak()
    print(f"{torch.cuda.get_device_name(0)}: {peak / 1e12:.0f} TFLOP/s in a plain bfloat16 product\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    wanted = arguments.cases or list(CASES)
    for dims in dict.fromkeys(CASES[case][0] for case in wanted):
        model = f"{arguments.models}/{dims}"
        if not Path(model, "config.json").exists():
            list(run("peers", ["--make", "--dims", dims, "--model", model]))
        mine = [case for case in wanted if CASES[case][0] == dims]
        common = ["--dims", dims, "--model", model]
        if not arguments.skip_ours:
            ours(common + ["--probe"] * arguments.probe, mine, peak)
        for case in mine:
            for peer in arguments.peers:
                if peer in CASES[case][2]:
                    options = [*common, "--peer", peer, *CASES[case][2][peer]]
                    environment = None
                    if peer == "unsloth" and arguments.unsloth_path:
                        environment = unsloth_environment(arguments.unsloth_path)
                    for found in run("peers", options, environment):
                        print(row(case, peer, found, peak), flush=True)


def ours(common: list[str], cases: list[str], peak: float) -> None:
    """All cases of one base in one process, which loads it once."""
    options = [part for case in cases for part in ("--also", *CASES[case][1])]
    for case, found in zip(cases, run("ours", [*common, *options]), strict=False):
        print(row(case, "ours", found, peak), flush=True)
        for kind in ("forecast", "probe"):
            if kind in found:
                print(f"    {kind}: {found[kind]}", flush=True)
        if "plan" in found:
            print(f"    launch {found['launch_microseconds']} us, callbacks {found['callbacks_share']:.2%}")


if __name__ == "__main__":
    main()
