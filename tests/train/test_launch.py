"""An accelerate configuration is done or refused, never left out in silence."""

from __future__ import annotations

import os

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from prefkit.errors import UsageError
from prefkit.train import fsdp
from prefkit.train.run import run_train


@pytest.fixture
def launched(monkeypatch):
    """launched(*flags): the environment that `accelerate launch` itself makes of these flags."""

    def install(*flags, precision="no"):
        rest = ["--num_processes", "2", "--num_machines", "1", "--dynamo_backend", "no", "--mixed_precision", precision]
        args = launch_command_parser().parse_args([*flags, *rest, "entry.py"])
        args.deepspeed_fields_from_accelerate_config = ""  # set where a configuration file is read
        made = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
        for key in made.keys() - os.environ.keys():
            monkeypatch.setenv(key, made[key])

    return install


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--use_deepspeed", "--zero_stage", "2"], "DeepSpeed"),
        (["--use_fsdp", "--fsdp_version", "1"], "FSDP 1"),
        (["--use_fsdp", "--fsdp_version", "2", "--fsdp_offload_params", "true"], "fsdp_offload_params"),
        (["--use_fsdp", "--fsdp_version", "2", "--fsdp_reshard_after_forward", "false"], "reshard_after_forward"),
        (["--use_fsdp", "--fsdp_version", "2", "--fsdp_activation_checkpointing", "true"], "gradient_checkpointing"),
        (["--use_parallelism_config"], "parallelism_config"),
    ],
)
def test_what_training_would_not_do_is_refused_by_name(run, launched, flags, named):
    launched(*flags)
    with pytest.raises(UsageError, match=named):
        run_train(*run(), "dpo")


def test_fsdp_2_is_followed(run, launched):
    config = run()[1].train["dpo"]
    assert fsdp.shard_of(config) == "none"
    launched("--use_fsdp", "--fsdp_version", "2")
    fsdp.check_launch("dpo", config)
    assert fsdp.shard_of(config) == "fsdp2"


def test_another_precision_is_said(run, launched, capsys):
    launched("--multi_gpu", precision="bf16")
    _, recipe = run()
    fsdp.check_launch("dpo", recipe.train["dpo"])
    assert "train.dpo.precision" in capsys.readouterr().err
