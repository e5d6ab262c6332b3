from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prefkit.config import Choice, Generate, Lora
from prefkit.distributed.collectives import Processes
from prefkit.errors import FingerprintError, PluginError, TrainingError, UsageError
from prefkit.models import precision
from prefkit.testing import TINY_KINDS
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.monitor.validation import Validation
from prefkit.train.optimizers import rate_factor
from prefkit.train.run import Job, make_trainer, run_train
from prefkit.train.setup import ModelLoader, prepare


def lines(store, name="dpo"):
    return [json.loads(line) for line in (store.train(name) / "metrics.jsonl").read_text().splitlines()]


def steps(store, name="dpo"):
    return [line for line in lines(store, name) if "validation" not in line]


@pytest.mark.parametrize(
    "kind, lora, rate",
    [
        *((kind, None, 2e-3) for kind in TINY_KINDS),
        *((kind, Lora(rank=4), 1e-2) for kind in ("sd-v", "sd3", "flux")),
    ],
)
def test_training_learns_and_starts_at_log_two(run, kind, lora, rate, loop_of):
    store, recipe = run(kind, lora=lora, steps=15, batch_size=4, learning_rate=rate, checkpoint_every=15)
    loop = loop_of(store, recipe)
    loop.validation = Validation(loop.family, loop.data, loop.data.pairs, 8, scale=1000.0)
    loop.run()
    found = steps(store)
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and found[0]["implicit_accuracy"] == 0.5
    report = loop.validation.report(loop.measure(reference=False))
    assert sum(report["implicit_accuracy"]) / 5 > 0.85  # on fixed draws: 8 pairs, 5 times
    assert sum(report["margin"]) > 0


def test_every_step_is_logged(run):
    store, recipe = run()
    summary = run_train(store, recipe, "dpo")
    found = steps(store)
    assert summary["done"] and summary["steps"] == 4 and [line["step"] for line in found] == [1, 2, 3, 4]
    for line in found:
        gap = line["win_advantage"] - line["lose_advantage"]
        assert line["margin"] == pytest.approx(1000 * gap, rel=1e-3, abs=1e-3)
        assert {"loss", "implicit_accuracy", "grad_norm", "lr", "seconds", "pairs_seen"} <= line.keys()


@pytest.mark.parametrize("kind, lora", [("sd", None), ("sd3", None), ("sd", Lora(rank=2))])
def test_the_start_is_log_two_and_the_reference_never_moves(run, kind, lora, loop_of):
    store, recipe = run(kind, lora=lora, validation=2, steps=3, learning_rate=1e-2)
    loop = loop_of(store, recipe)
    before = loop.measure(reference=True)
    loop.run()
    assert torch.equal(loop.measure(reference=True), before)
    assert not torch.allclose(loop.measure(reference=False), before)
    assert steps(store)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_swapped_labels_flip_the_margin(run, loop_of):
    store, recipe = run(learning_rate=1e-2)
    loop = loop_of(store, recipe)
    loop.run()
    pairs = loop.data.pairs
    margins = []
    for chosen in (pairs, [pair.flipped() for pair in pairs]):
        (batch,) = loop.data.batches(loop.family, [(pair, 5) for pair in chosen])
        with torch.no_grad():
            margins.append(loop.losses(batch)[1]["margin"])
    assert margins[0].abs().max() > 0.1
    torch.testing.assert_close(margins[0], -margins[1], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("objective", ["dpo", "sdpo", "linear", "mapo", "kto", "lpo", "sft", "gpo", "nft"])
def test_splitting_the_global_batch_changes_nothing(run, pair_rows, objective, loop_of, gradients):
    rows = pair_rows(4) + pair_rows(3, seed=1, size=(128, 64))  # two signatures
    rows = [row | {"score_gap": 1.0} for row in rows]
    store, recipe = run(rows=rows, lora=None, objective=Choice(objective))
    whole, gradient = gradients(loop_of(store, recipe, batch_size=4))
    for size, accumulation in ((2, 2), (1, 4)):
        shown, other = gradients(loop_of(store, recipe, batch_size=size, accumulation=accumulation))
        # mapo's margin is a difference of float32 numbers near 1, times 1000: its last digit is 6e-5
        assert shown == pytest.approx(whole, rel=1e-4, abs=1e-4 if objective == "mapo" else 1e-5)
        assert (other - gradient).norm() < 1e-4 * gradient.norm()


def test_the_order_within_a_batch_changes_nothing(run, loop_of, gradients):
    store, recipe = run(lora=None)
    loop = loop_of(store, recipe, batch_size=4)
    _, gradient = gradients(loop)
    chosen = [(pair, 0) for batch in loop.micro_batches(0)[0] for pair in batch.members]
    loop.policy.net.zero_grad()
    loop.accumulate([list(loop.data.batches(loop.family, chosen[::-1]))])
    other = torch.cat([p.grad.flatten() for p in loop.policy.parameters()])
    assert (other - gradient).norm() < 1e-4 * gradient.norm()


def test_the_gradient_is_that_of_the_loss(run, loop_of):
    """Against central differences of the loss written from eq. 14 in float64, over one parameter direction."""
    store, recipe = run("flux", lora=None, objective=Choice("dpo", {"beta": 200.0}))
    loop = loop_of(store, recipe)
    loop.run(limit=1)
    micro = loop.micro_batches(1)
    loop.accumulate(micro)
    parameters = loop.policy.parameters()
    direction = [torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(parameters)]
    expected = sum((p.grad * d).sum().item() for p, d in zip(parameters, direction, strict=True))

    def loss(shift):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(shift * d)
            total = 0.0
            for batch in micro[0]:
                policy = loop.residuals(loop.policy.net, batch)["image"].double().square().flatten(1).mean(1)
                frozen = loop.residuals(loop.policy.frozen, batch)["image"].double().square().flatten(1).mean(1)
                win, lose = (frozen - policy).view(2, -1)
                total += torch.nn.functional.softplus(-100.0 * (win - lose)).sum().item() / loop.global_batch
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(shift * d)
        return total

    numeric = (loss(1e-4) - loss(-1e-4)) / 2e-4
    assert numeric == pytest.approx(expected, rel=2e-2)


def test_sft_lowers_the_winners_error(run):
    store, recipe = run(objective=Choice("sft"), steps=24, batch_size=4, learning_rate=1e-2, validation=2)
    run_train(store, recipe, "dpo")
    report = [line["validation"] for line in lines(store) if "validation" in line][-1]
    assert sum(report["win_advantage"]) > 0
    losses = [line["loss"] for line in steps(store)]
    assert sum(losses[-8:]) < sum(losses[:8])


def test_controls_run_under_the_same_budget(run):
    store, recipe = run(rows=None, steps=3, validation=1)
    summary = run_train(store, recipe, "dpo", controls=True)
    assert sorted(summary["controls"]) == ["dpo-flipped", "dpo-sft"]
    for name in ("dpo", "dpo-sft", "dpo-flipped"):
        assert (store.train(name) / "final" / "pytorch_lora_weights.safetensors").exists()
        assert len(steps(store, name)) == 3
    again = run_train(store, recipe, "dpo", controls=True)
    assert again == summary


def test_flipping_touches_about_half_of_the_training_pairs_and_no_held_out_one(run, pair_rows):
    store, recipe = run(rows=pair_rows(40), validation=8)
    source = PairSource.find(store, "main")
    pairs = read_pairs(source)
    plan = ModelLoader(store, recipe, recipe.train["dpo"], store.train("dpo"))
    data = prepare(plan, pairs, source, Processes("cpu"))
    processes = Processes("cpu")
    plain = make_trainer(plan, Job("a", recipe.train["dpo"]), data, processes)
    flipped = make_trainer(plan, Job("b", recipe.train["dpo"], flip=True), data, processes)
    same = sum(a == b for a, b in zip(plain.data.pairs, flipped.data.pairs, strict=True))
    assert 8 <= same <= len(plain.data.pairs) - 8
    assert plain.validation.pairs == flipped.validation.pairs


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_log_two_and_float32_errors(run, precision, loop_of):
    store, recipe = run("sd3", precision=precision, gradient_checkpointing=True)
    run_train(store, recipe, "dpo")
    assert steps(store)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    loop = loop_of(store, recipe)
    (batch,) = loop.micro_batches(0)[0]
    assert loop.residuals(loop.policy.net, batch)["image"].dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in loop.policy.parameters())
    assert any(line["margin"] for line in steps(store))


def test_gradient_checkpointing_changes_no_gradient(run, loop_of, gradients):
    store, recipe = run(lora=None)
    _, plain = gradients(loop_of(store, recipe))
    _, other = gradients(loop_of(store, recipe, gradient_checkpointing=True))
    assert (other - plain).norm() < 1e-5 * plain.norm()


def test_dropout_repeats_and_leaves_the_reference_alone(run, loop_of, gradients):
    store, recipe = run(lora=Lora(rank=4, dropout=0.5), learning_rate=1e-2)
    loop = loop_of(store, recipe)
    loop.run()
    first, gradient = gradients(loop)
    loop.policy.net.zero_grad()
    again, same = gradients(loop)
    assert first == again and torch.equal(gradient, same)
    (batch,) = loop.micro_batches(0)[0]
    with torch.no_grad():
        policy = [loop.residuals(loop.policy.net, batch)["image"] for _ in range(2)]
        with loop.policy.reference() as net:
            frozen = [loop.residuals(net, batch)["image"] for _ in range(2)]
    assert not torch.equal(*policy) and torch.equal(*frozen)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(run):
    store, recipe = run(steps=20, learning_rate=1e30, checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"of step \d+ is not finite.*checkpoint of step \d+ is kept"):
        run_train(store, recipe, "dpo")
    assert list((store.train("dpo") / "checkpoints").glob("step-*"))
    assert not (store.train("dpo") / "final").exists()


def test_the_pair_whose_loss_is_not_finite_is_named(run, monkeypatch, loop_of):
    store, recipe = run(batch_size=4)
    loop = loop_of(store, recipe)
    victim = loop.micro_batches(0)[0][0].members[2]
    losses = loop.losses

    def broken(batch):
        loss, metrics = losses(batch)
        return loss + torch.tensor([math.nan if m.id == victim.id else 0.0 for m in batch.members]), metrics

    monkeypatch.setattr(loop, "losses", broken)
    with pytest.raises(TrainingError, match=rf"the loss of step 1 .* loss is not finite for pair row {victim.row}\."):
        loop.run()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("Tried to allocate 20 GiB"), RuntimeError("MPS backend out of memory (20 GB allocated)")],
)
def test_out_of_memory_says_what_to_change(run, monkeypatch, loop_of, error):
    store, recipe = run(batch_size=4, accumulation=2)
    loop = loop_of(store, recipe)

    def full(batch):
        raise error

    monkeypatch.setattr(loop, "losses", full)
    with pytest.raises(
        TrainingError, match=r"out of memory in step 1.*batch_size 2 with accumulation 4.*No checkpoint"
    ):
        loop.run()


def test_fp16_counts_the_steps_it_leaves_out_and_gives_up_when_none_is_left(run, loop_of):
    store, recipe = run(precision="fp16")
    loop = loop_of(store, recipe)

    def update(value):
        loop.optimizer.scaler.scale(torch.zeros(()))
        for p in loop.policy.parameters():
            p.grad = torch.full_like(p, value)
        shown = loop.update({"loss": 0.5})
        loop.step += 1
        return shown

    before = [p.detach().clone() for p in loop.policy.parameters()]
    assert [update(math.inf)["skipped"] for _ in range(3)] == [1, 2, 3]
    assert all(torch.equal(p, q) for p, q in zip(loop.policy.parameters(), before, strict=True))
    assert update(1.0)["skipped"] == 3
    loop.save()
    loop = loop_of(store, recipe)
    loop.resume()
    assert update(math.inf)["skipped"] == 4
    for _ in range(48):
        update(math.inf)
    with pytest.raises(TrainingError, match="the gradient of step 54 is not finite"):
        update(math.inf)


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            raise TypeError(f"{func} made a float64 tensor")
        return found


@pytest.mark.parametrize("kind", ["sd-v", "sd3"])
def test_a_device_without_float64_trains_alike(run, kind, monkeypatch, loop_of):
    """MPS has none. The CPU stands in for it, and refuses float64 wherever the device's tensors are."""
    store, recipe = run(kind)
    loop = loop_of(store, recipe)
    (batch,) = loop.micro_batches(0)[0]
    expected = loop.residuals(loop.policy.net, batch)["image"]
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", ("cpu",))
    with NoFloat64():
        moved = batch.to("cpu")
        found = loop.residuals(loop.policy.net, moved)["image"]
        loop.losses(moved)[0].sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"lora": Lora(rank=0)}, UsageError, "lora.rank is 0"),
        ({"lora": Lora(targets=["nowhere"])}, UsageError, "nowhere"),
        ({"lora": Lora(resume=True)}, UsageError, "only adapter, but the model has 0"),
        ({"schedule": "cosin"}, UsageError, "cosin"),
        ({"precision": "fp8"}, UsageError, "fp8"),
        ({"device": "abacus"}, UsageError, "abacus"),
        ({"report_to": "pigeon"}, UsageError, "pigeon"),
        ({"objective": Choice("dpo", {"bta": 1})}, UsageError, "beta"),
        ({"objective": Choice("dop")}, UsageError, "dpo"),
        ({"pairs": "missing"}, UsageError, "missing"),
    ],
)
def test_bad_settings(run, changes, error, message):
    store, recipe = run(**changes)
    with pytest.raises(error, match=message):
        run_train(store, recipe, "dpo")
    with pytest.raises(UsageError, match="not in the recipe"):
        run_train(store, recipe, "other")


def test_an_objective_of_an_unknown_shape_is_refused(run, tmp_path):
    code = "class Lists:\n    shape, reference, needs_residual = 'triple', 'ema', False\n    def __init__(self, options): self.options = options\n"
    (tmp_path / "lists.py").write_text(code)
    store, recipe = run(objective=Choice(f"{tmp_path / 'lists.py'}:Lists"))
    with pytest.raises(PluginError, match="'triple'"):
        run_train(store, recipe, "dpo")


def test_a_longer_run_goes_on_and_other_settings_are_refused(run):
    store, recipe = run(steps=2)
    run_train(store, recipe, "dpo")
    whole, other = run(where="other", steps=4)
    run_train(whole, other, "dpo")
    longer = replace(recipe, train={"dpo": replace(recipe.train["dpo"], steps=4)})
    run_train(store, longer, "dpo")
    files = [s.train("dpo") / "final" / "pytorch_lora_weights.safetensors" for s in (store, whole)]
    a, b = (safetensors.torch.load_file(file) for file in files)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert [line["step"] for line in steps(store)] == [1, 2, 3, 4]
    with pytest.raises(FingerprintError, match="was trained for 4 steps"):
        run_train(store, recipe, "dpo")
    changed = replace(recipe, train={"dpo": replace(recipe.train["dpo"], learning_rate=1.0)})
    with pytest.raises(FingerprintError, match="learning_rate"):
        run_train(store, changed, "dpo")
    split = replace(longer, train={"dpo": replace(longer.train["dpo"], batch_size=1, accumulation=2)})
    assert run_train(store, split, "dpo")["steps"] == 4


def test_limit_goes_on_later(run):
    store, recipe = run(steps=4, validation=1)
    first = run_train(store, recipe, "dpo", limit=1)
    assert (first["steps"], first["done"], first["final"]) == (1, False, None)
    assert run_train(store, recipe, "dpo")["steps"] == 4
    assert [line["step"] for line in steps(store)] == [1, 2, 3, 4]
    shown = [line["validation"] for line in lines(store) if "validation" in line]
    assert len(shown) == 3 and len(shown[0]["margin"]) == 5 and set(shown[0]["margin"]) == {0.0}


def test_the_startup_table(run, capsys):
    store, recipe = run(steps=8, accumulation=2)
    run_train(store, recipe, "dpo")
    shown = " ".join(capsys.readouterr().err.split())
    for text in ("pairs 8", "4 = 2 x 2 accumulated x 1 processes", "8 = 4 epochs", "(LoRA)", "= 7.81 on summed errors"):
        assert text in shown
    assert "adapter off" in shown and "for 8 steps" in shown


def test_a_warning_while_the_winner_gets_worse(capsys):
    from prefkit.train.monitor.metrics import WinnerRegressionWarning

    watch = WinnerRegressionWarning()
    for step in range(49):
        watch.update(step, -1.0)
    assert capsys.readouterr().err == ""
    watch.update(49, -1.0)
    assert "worse at the winners" in capsys.readouterr().err
    for step in range(100):
        watch.update(step, 1.0)
    assert capsys.readouterr().err == "" and watch.below == 0


def test_rates():
    from prefkit.config import Train

    for schedule, end in (("constant", 1.0), ("cosine", 0.0), ("linear", 0.0)):
        config = Train(warmup=4, steps=104, schedule=schedule)
        assert [rate_factor(config, step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
        assert rate_factor(config, 104) == pytest.approx(end, abs=1e-9)
    assert rate_factor(Train(warmup=0, steps=100, schedule="cosine"), 50) == pytest.approx(0.5)


def test_tensorboard(run):
    store, recipe = run(report_to="tensorboard", validation=1)
    run_train(store, recipe, "dpo")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(store.train("dpo") / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_pictures_at_fixed_seeds_and_an_average_of_the_weights(run):
    """Without scorers. The exported weights are the average, which a resumed training continues exactly."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    generate = {"own": Generate(steps=1, guidance=1.0, height=64, width=64)}
    store, recipe = run(report_to="tensorboard", sample_every=2, watch_requests=1, ema=0.5)
    recipe = replace(recipe, generate=generate)
    for limit in (3, None):
        run_train(store, recipe, "dpo", limit=limit)
    folder = store.train("dpo")
    assert sorted(path.name for path in (folder / "watch").iterdir()) == [f"step-00000{n}.png" for n in (0, 2, 4)]
    assert "watch" not in (folder / "metrics.jsonl").read_text()
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert {event.step for event in events.Images("held-out samples")} == {0, 2, 4}
    resumed = (folder / "final" / "pytorch_lora_weights.safetensors").read_bytes()
    shutil.rmtree(folder)
    run_train(store, replace(recipe, train={"dpo": replace(recipe.train["dpo"], sample_every=0)}), "dpo")
    assert (folder / "final" / "pytorch_lora_weights.safetensors").read_bytes() == resumed
    shutil.rmtree(folder)
    run_train(store, replace(recipe, train={"dpo": replace(recipe.train["dpo"], sample_every=0, ema=0)}), "dpo")
    assert (folder / "final" / "pytorch_lora_weights.safetensors").read_bytes() != resumed
