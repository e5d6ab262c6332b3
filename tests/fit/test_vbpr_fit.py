"""VBPR: the loss by hand in float64 and against cornac; the AUC against a plain loop; the whole verb."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from cornac_numbers import KEPT, one_epoch, small
from PIL import Image

from prefkit.fit.interactions import Interactions, split
from prefkit.fit.vbpr_train import Regularisers, auc, bpr_loss, start
from prefkit.score.core import make_scorer
from prefkit.score.embed.vbpr import Vbpr
from prefkit.types import Candidate


def net_of(given, dtype=torch.float32):
    t = {name: torch.tensor(value.copy(), dtype=dtype) for name, value in given.items()}
    return Vbpr(t["Gu"], t["Gi"], t["Tu"], t["E"], t["Bp"][:, 0].clone(), t["Bi"])


def test_a_triple_by_hand():
    """The loss and its gradient, with the paper's program's tenth on gamma_j and cornac's tenth on beta_j."""
    given, features, _ = small()
    net = net_of(given, torch.float64)
    for tensor in net.tensors().values():
        tensor.requires_grad_(True)
    u, i, j = 4, 7, 21
    reg = Regularisers(0.2, 0.3, 0.05, negative_factors=0.1, negative_bias=0.1)
    f = torch.from_numpy(features).double()
    loss = bpr_loss(net, f, *(torch.tensor([n]) for n in (u, i, j)), reg)
    loss.backward()
    g = {name: value.astype(np.float64) for name, value in given.items()}
    fi, fj = features[i].astype(np.float64), features[j].astype(np.float64)

    def x(item, f):
        return g["Bi"][item] + g["Gu"][u] @ g["Gi"][item] + g["Tu"][u] @ (f @ g["E"]) + f @ g["Bp"][:, 0]

    push = 1 / (1 + np.exp(x(i, fi) - x(j, fj)))
    wanted = -np.log(1 - push)
    wanted += 0.1 * (sum((g[n][u] ** 2).sum() for n in ("Gu", "Tu")) + (g["Gi"][i] ** 2).sum())
    wanted += 0.1 * 0.1 * (g["Gi"][j] ** 2).sum() + 0.15 * g["Bi"][i] ** 2 + 0.015 * g["Bi"][j] ** 2
    wanted += 0.025 * ((g["E"] ** 2).sum() + (g["Bp"] ** 2).sum())
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-12)
    grad = {name: tensor.grad.numpy() for name, tensor in net.tensors().items()}
    assert np.allclose(grad["gamma_item"][j], push * g["Gu"][u] + 0.02 * g["Gi"][j], atol=1e-12)
    assert np.allclose(grad["gamma_item"][i], -push * g["Gu"][u] + 0.2 * g["Gi"][i], atol=1e-12)
    assert np.allclose(grad["theta_user"][u], -push * ((fi - fj) @ g["E"]) + 0.2 * g["Tu"][u], atol=1e-12)
    assert np.allclose(grad["projection"], -push * np.outer(fi - fj, g["Tu"][u]) + 0.05 * g["E"], atol=1e-12)
    assert grad["item_bias"][j] == pytest.approx(push + 0.03 * g["Bi"][j], abs=1e-12)


def test_the_loss_of_a_batch_is_the_sum_of_its_triples():
    """Where cornac's is not: its visual bias meets every other triple of the batch."""
    given, features, _ = small()
    net, f = net_of(given, torch.float64), torch.from_numpy(features).double()
    u, i, j = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8])
    whole = bpr_loss(net, f, u, i, j, Regularisers())
    assert float(whole) == pytest.approx(sum(float(bpr_loss(net, f, u[n:n+1], i[n:n+1], j[n:n+1], Regularisers())) for n in range(3)))  # fmt: skip


def test_the_score_is_the_same_in_all_its_forms():
    """table = visual + known = the formula item by item, as vbpr-pytorch's forward has it (difference of two)."""
    given, features, _ = small()
    net, f = net_of(given, torch.float64), torch.from_numpy(features).double()
    table = net.table(torch.arange(12), f)
    for u, i in ((0, 0), (3, 17), (11, 29)):
        one, item = torch.tensor([u]), torch.tensor([i])
        assert float(net.visual(one, f[item]) + net.known(one, item)) == pytest.approx(float(table[u, i]), abs=1e-12)
        g = {n: v.astype(np.float64) for n, v in given.items()}
        wanted = (
            g["Bi"][i] + g["Gu"][u] @ g["Gi"][i] + (features[i] @ g["E"]) @ g["Tu"][u] + features[i] @ g["Bp"][:, 0]
        )
        assert float(table[u, i]) == pytest.approx(float(wanted), abs=1e-6)


def test_the_margin_is_vbpr_pytorchs():
    """Every (user, item, item) against the forward of aaossa's package, where it is installed (`--no-deps`: it wants an
    old numpy); the test above writes the same formula out."""
    theirs = pytest.importorskip("vbpr")
    given, features, _ = small()
    net, f = net_of(given, torch.float64), torch.from_numpy(features).double()
    model = theirs.VBPR(12, 30, f, dim_gamma=net.gamma_user.shape[1], dim_theta=net.theta_user.shape[1]).double()
    names = {"gamma_users": "Gu", "gamma_items": "Gi", "theta_users": "Tu", "embedding": "E", "visual_bias": "Bp"}
    state = {f"{name}.weight": torch.tensor(given[key]).double() for name, key in names.items()}
    state |= {"beta_items.weight": net.item_bias[:, None], "features.weight": f}
    model.load_state_dict(state)
    u, i, j = torch.cartesian_prod(torch.arange(12), torch.arange(30), torch.arange(30)).T
    table = net.table(torch.arange(12), f)
    with torch.no_grad():
        assert torch.allclose(model(u, i, j).flatten(), table[u, i] - table[u, j], atol=1e-12, rtol=0)


def learned(triples, batch_size, loss):
    """One epoch as cornac_numbers.py has it: Adam 0.005, lambdas 0.01, 0.02, 0.03, a tenth on beta_j."""
    given, features, _ = small()
    net, reg = net_of(given), Regularisers(0.01, 0.02, 0.03, negative_bias=0.1)
    for tensor in net.tensors().values():
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(list(net.tensors().values()), lr=0.005)
    f = torch.from_numpy(features)
    for u, i, j in zip(*(row.split(batch_size) for row in torch.tensor(triples).T)):
        optimizer.zero_grad()
        loss(net, f, u, i, j, reg).backward()
        optimizer.step()
    return net


def gap(net, parameters):
    """Largest difference of any parameter."""
    return max(
        float((tensor.detach() - torch.tensor(parameters[name])).abs().max()) for name, tensor in net.tensors().items()
    )


def bpr_loss_of_cornac(net, features, u, i, j, reg):
    """Its margin is [B, B]: (f_i - f_j) beta' is a column, the rest a row."""
    right = bpr_loss(net, features, u, i, j, reg)
    visual = (features[i] - features[j]) @ net.visual_bias
    rest = net.table(u, features).gather(1, i[:, None])[:, 0] - net.table(u, features).gather(1, j[:, None])[:, 0]
    rest = rest - visual
    softplus = torch.nn.functional.softplus
    return right - softplus(-(rest + visual)).sum() + softplus(-(rest[None] + visual[:, None])).sum()


@pytest.fixture(scope="module")
def cornac():
    """What cornac 3.0.1 made, by cornac_numbers.py."""
    return json.loads(KEPT.read_text())


def test_one_epoch_against_cornac(cornac):
    theirs = cornac["batch_size_1"]
    ours = learned(theirs["triples"], 1, bpr_loss)
    print("largest difference of a parameter after", len(theirs["triples"]), "steps:", gap(ours, theirs["parameters"]))
    assert len(theirs["triples"]) == 96 and gap(ours, theirs["parameters"]) <= 1e-6
    _, features, _ = small()
    table = ours.table(torch.arange(12), torch.from_numpy(features)).detach().numpy()
    assert np.abs(table - np.array(theirs["scores"])).max() <= 1e-5


def test_a_batch_of_cornac_is_not_the_sum_of_its_triples(cornac):
    """With its broadcast put in we are it again, without we are not: why parity is taken at a batch size of 1."""
    theirs = cornac["batch_size_8"]
    assert gap(learned(theirs["triples"], 8, bpr_loss_of_cornac), theirs["parameters"]) <= 1e-5
    assert gap(learned(theirs["triples"], 8, bpr_loss), theirs["parameters"]) > 1e-3


def test_auc_against_cornac(cornac):
    _, features, pairs = small()
    held = np.array(cornac["auc"]["held"])
    keys = np.sort([u * 30 + i for u, i in pairs])
    data = Interactions([str(n) for n in range(12)], [str(n) for n in range(30)], held, held, held, keys, keys)
    net = learned(cornac["batch_size_1"]["triples"], 1, bpr_loss)
    assert np.allclose(auc(net, torch.from_numpy(features), data, held), cornac["auc"]["values"], atol=1e-12)


def test_the_kept_numbers_are_those_of_the_installed_cornac(cornac):
    pytest.importorskip("cornac")
    now = one_epoch(1)
    assert now["triples"] == cornac["batch_size_1"]["triples"]
    for name, values in now["parameters"].items():
        assert np.allclose(values, cornac["batch_size_1"]["parameters"][name], atol=1e-7, rtol=0)


def plain_auc(net, features, data, held):
    found = []
    for u, i in held:
        own = {int(key - u * len(data.items)) for key in data.keys if key // len(data.items) == u}
        scores = net.table(torch.tensor([u]), features)[0]
        others = [j for j in range(len(data.items)) if j not in own]
        found.append(np.mean([float(scores[i]) > float(scores[j]) for j in others]))
    return np.array(found)


def test_auc_and_split():
    given, features, pairs = small()
    table = pd.DataFrame([(f"u{u:02d}", f"i{i:02d}", i) for u, i in pairs], columns=["user", "item", "time"])
    data = split(table, [f"i{n:02d}" for n in range(30)], 0)
    assert len(data.test) == len(data.validation) == 12 and len(data.train) == len(pairs) - 24
    for u, i in data.test:
        assert i == max(item for user, item in pairs if user == u)  # the last by time
    net, f = net_of(given), torch.from_numpy(features)
    assert np.allclose(auc(net, f, data, data.test), plain_auc(net, f, data, data.test), atol=1e-12)
    flat = start(12, 30, 16, 2, 2, 0)
    zero = Vbpr(**{name: torch.zeros_like(t) for name, t in flat.tensors().items()})
    assert (auc(zero, f, data, data.test) == 0).all()  # ties count against
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(12), 500)
    drawn = data.negatives(users, rng)
    positive = {(int(u), int(i)) for u, i in data.train}
    assert not [1 for pair in zip(users.tolist(), drawn.tolist()) if pair in positive]
    for u in range(12):
        assert set(drawn[users == u]) == set(range(30)) - {i for user, i in positive if user == u}


@pytest.fixture
def shop(tmp_path):
    """Reds and blues, and two users of one colour each, plus others."""
    rng = np.random.default_rng(0)
    (tmp_path / "img").mkdir()
    names = []
    for n in range(60):
        colour = (200 + n % 50, 20, 20) if n % 2 else (20, 20, 200 + n % 50)
        Image.new("RGB", (16, 16), colour).save(tmp_path / "img" / f"i{n}.png")
        names.append(f"i{n}")
    rows = [
        (f"u{u}", f"i{2 * n + u % 2}", t) for u in range(20) for t, n in enumerate(rng.choice(30, 8, replace=False))
    ]
    pd.DataFrame(rows, columns=["user", "item", "time"]).to_csv(tmp_path / "log.csv", index=False)
    return tmp_path


def picture(colour):
    data = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(data, "PNG")
    return data.getvalue()


def fit(cli, shop, *more, out="fitted"):
    return cli("fit", "vbpr", "--interactions", shop / "log.csv", "--images", shop / "img", "--encoder", "tiny",
               "--scaling", "standard", "--out", shop / out, "--json", *more)  # fmt: skip


def test_the_verb_and_the_scorer(shop, cli):
    code, out, err = fit(cli, shop)
    assert code == 0, err
    spec = json.loads(out)
    assert spec["validation"]["auc"]["low"] > 0.6 and spec["validation"]["auc_visual"]["low"] > 0.6
    assert {p.name for p in (shop / "fitted").iterdir()} == {
        "prefkit-checksums.json",
        "spec.json",
        "weights.safetensors",
        "users.json",
        "items.json",
    }
    assert not list(shop.glob(".fitted*"))
    scorer = make_scorer("vbpr", {"model": str(shop / "fitted")})
    scorer.load("cpu", "float32")
    red, blue = picture((230, 20, 20)), picture((20, 20, 230))
    batch = [Candidate(str(n), "r", n, 0, image=data, extra={"user": user})
             for n, (data, user) in enumerate([(red, "u1"), (blue, "u1"), (red, "u2"), (blue, "u2"), (red, "eve")])]  # fmt: skip
    scores = scorer.score(batch)
    assert scores[0].value > scores[1].value and scores[2].value < scores[3].value
    assert scores[4].value is None and "eve" in scores[4].error
    known = make_scorer("vbpr", {"model": str(shop / "fitted"), "items": "known"})
    assert "item" in known.requires and known.spec() != scorer.spec()


def test_the_same_again_another_and_a_foreign_folder(shop, cli):
    assert fit(cli, shop, "--epochs", 1)[0] == 0
    stamp = (shop / "fitted/spec.json").stat().st_mtime_ns
    code, _, err = fit(cli, shop, "--epochs", 1)
    assert code == 0 and "nothing to do" in err and (shop / "fitted/spec.json").stat().st_mtime_ns == stamp
    code, _, err = fit(cli, shop, "--epochs", 2)
    assert code == 1 and "settings.epochs" in err and "--out" in err
    (shop / "img/i0.png").write_bytes(picture((1, 2, 3)))
    code, _, err = fit(cli, shop, "--epochs", 1)
    assert code == 1 and "data.features" in err
    (shop / "mine").mkdir()
    (shop / "mine/thesis.txt").write_text("x")
    assert fit(cli, shop, out="mine")[0] == 2 and (shop / "mine/thesis.txt").read_text() == "x"


def test_a_fit_that_dies_leaves_no_folder(shop, cli, monkeypatch):
    import prefkit.fit.folder as folder

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "write_json", die)
    assert fit(cli, shop, "--epochs", 1)[0] == 130
    assert not (shop / "fitted").exists() and not list(shop.glob(".fitted*"))


def test_features_of_the_users_own(shop, cli):
    rng = np.random.default_rng(1)
    np.save(shop / "f.npy", rng.normal(size=(60, 8)).astype(np.float32))
    (shop / "f.txt").write_text("\n".join(f"i{n}" for n in range(60)))
    code, _, err = cli("fit", "vbpr", "--interactions", shop / "log.csv", "--features", shop / "f.npy", "--epochs", 1,
                       "--out", shop / "own")  # fmt: skip
    assert code == 0, err
    from prefkit.errors import UsageError

    with pytest.raises(UsageError, match="unknown encoder"):
        make_scorer("vbpr", {"model": str(shop / "own")})
    (shop / "f.txt").write_text("\n".join(f"i{n}" for n in range(59)))
    code, _, err = cli(
        "fit", "vbpr", "--interactions", shop / "log.csv", "--features", shop / "f.npy", "--out", shop / "x"
    )
    assert code == 2 and "59 ids" in err


def test_a_classifier_as_encoder(shop, cli):
    """The fit stores the hash of the weights; the scorer refuses other weights and a missing file."""
    from prefkit.errors import UsageError
    from tests.classifier_files import saved

    _, path = saved(shop, "shufflenet_v2_x0_5")
    encoder = ("--encoder", "torchvision:shufflenet_v2_x0_5")
    code, _, err = fit(cli, shop, *encoder)
    assert code == 2 and "`pretrained` is not set" in err and "shufflenetv2_x0.5-f707e7126e.pth" in err
    code, out, err = fit(cli, shop, *encoder, "--pretrained", path)
    assert code == 0, err
    spec = json.loads(out)
    assert spec["features"]["width"] == 1024 and spec["validation"]["auc_visual"]["low"] > 0.6
    stored = spec["encoder"]
    assert stored["library"] == "torchvision" and stored["revision"] and "IMAGENET1K_V1" in stored["preprocessing"]
    scorer = make_scorer("vbpr", {"model": str(shop / "fitted")})
    scorer.load("cpu", "float32")
    red, blue = picture((230, 20, 20)), picture((20, 20, 230))
    right, wrong = scorer.score([Candidate("x", "r", 0, 0, image=image, extra={"user": "u1"}) for image in (red, blue)])
    assert right.value > wrong.value
    path.rename(shop / "moved.pth")
    with pytest.raises(UsageError, match="needs the encoder that it was fitted on.*which is not a file"):
        make_scorer("vbpr", {"model": str(shop / "fitted")})
    saved(shop, "shufflenet_v2_x0_5", seed=1)
    with pytest.raises(UsageError, match="gives other features"):
        make_scorer("vbpr", {"model": str(shop / "fitted")})
