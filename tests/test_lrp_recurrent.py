"""Recurrent layers against one written by hand, in which gates are constants and every activation is a factor."""

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from lrp_networks import every_composite, lrp, missing
from tiny import images, seeded


def through(x: Tensor, activation=torch.tanh) -> Tensor:
    """An activation through which all relevance goes: gradient × input does the rest."""
    return x * (activation(x) / x).detach()


class Rows(nn.Module):
    """Reads the rows of an image one after the other."""

    def __init__(self, kind: str, **options) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.read = getattr(nn, kind)(4, 3, **options)
        width = (options.get("proj_size") or 3) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 5)
        self.double()

    def rows(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean(3)
        return y.transpose(1, 2) if self.read.batch_first else y.permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.read(self.rows(x))[0]
        return self.head(y.mean(1 if self.read.batch_first else 0))

    def by_hand(self, x: Tensor) -> Tensor:
        y = self.rows(x)
        y = y if self.read.batch_first else y.transpose(0, 1)
        for depth in range(self.read.num_layers):
            ways = [self.way(y, depth, "")]
            if self.read.bidirectional:
                ways.append(self.way(y.flip(1), depth, "_reverse").flip(1))
            y = torch.cat(ways, -1)
        return self.head(y.mean(1))

    def way(self, y: Tensor, depth: int, suffix: str) -> Tensor:
        w_x, w_h, b_x, b_h, project = (
            getattr(self.read, f"{name}_l{depth}{suffix}", None)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        )
        b_x, b_h = (0.0 if b is None else b for b in (b_x, b_h))
        h = y.new_zeros(len(y), w_h.shape[1])
        c, out = y.new_zeros(len(y), 3), []
        for step in y.unbind(1):
            a, b = step @ w_x.T + b_x, h @ w_h.T + b_h
            if isinstance(self.read, nn.LSTM):
                i, f, g, o = (a + b).chunk(4, 1)
                c = f.sigmoid().detach() * c + i.sigmoid().detach() * through(g)
                h = o.sigmoid().detach() * through(c)
                h = h if project is None else h @ project.T
            elif isinstance(self.read, nn.GRU):
                (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
                r, z = (ar + br).sigmoid().detach(), (az + bz).sigmoid().detach()
                h = (1 - z) * through(an + r * bn) + z * h
            else:
                h = through(a + b, torch.tanh if self.read.nonlinearity == "tanh" else torch.relu)
            out.append(h)
        return torch.stack(out, 1)


KINDS = {
    "LSTM": ("LSTM", {"batch_first": True}),
    "LSTM, deep, both ways": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "LSTM, projected, without biases": ("LSTM", {"proj_size": 2, "bias": False, "batch_first": True}),
    "LSTM, projected": ("LSTM", {"proj_size": 2, "num_layers": 2, "batch_first": True}),
    "GRU": ("GRU", {"batch_first": True}),
    "GRU, deep, both ways": ("GRU", {"num_layers": 2, "bidirectional": True, "bias": False}),
    "RNN": ("RNN", {"batch_first": True}),
    "RNN, relu": ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
}


@pytest.mark.parametrize("name", KINDS)
def test_lrp_0_is_gradient_times_input_of_the_one_by_hand(name):
    kind, options = KINDS[name]
    net, x = seeded(lambda: Rows(kind, **options)), images(2, size=(8, 6)).double()
    torch.testing.assert_close(net.by_hand(x), net(x))
    ex = lrp(net, x, "lrp0", 1, ledger=True)
    leaf = x.clone().requires_grad_()
    net.by_hand(leaf)[:, 1].sum().backward()
    torch.testing.assert_close(ex.raw[:, 0], (leaf * leaf.grad).detach())
    assert missing(ex) < 1e-8 and {row["place"] for row in ex.ledger} >= {"conv", "read", "head"}


@every_composite
@pytest.mark.parametrize("name", KINDS)
def test_recurrent_layers_add_up(name, composite):
    kind, options = KINDS[name]
    net, x = seeded(lambda: Rows(kind, **options)), images(3, size=(5, 6)).double()  # as many rows as images
    assert missing(lrp(net, x, composite, [0, 1, 2])) < 1e-8
    assert all(row["rule"] != "none" for row in hp.lrp.coverage(net, x))


class Cells(nn.Module):
    """The same row again and again, by cells."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.cell, self.head = nn.Conv2d(3, 4, 3), getattr(nn, f"{kind}Cell")(4, 3), nn.Linear(3, 5)
        self.whole = getattr(nn, kind)(4, 3, batch_first=True)
        self.whole.load_state_dict({f"{key}_l0": value for key, value in self.cell.state_dict().items()})
        self.double()

    def forward(self, x: Tensor, cells: bool = True) -> Tensor:
        y, state = self.conv(x).mean((2, 3)), None
        if not cells:
            return self.head(self.whole(y[:, None].expand(-1, 3, -1))[0][:, -1])
        for _ in range(3):
            state = self.cell(y, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Wholes(Cells):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, cells=False)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_cells_are_layers_of_one_step(kind):
    x = images(2, size=(8, 6)).double()
    one, other = (lrp(seeded(lambda c=c: c(kind)), x, "lrp0", 1) for c in (Cells, Wholes))
    torch.testing.assert_close(one.raw, other.raw)
    torch.testing.assert_close(one.residual, other.residual)


def test_packed_sequences_are_named():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            rows = nn.utils.rnn.pack_padded_sequence(x.mean(3).transpose(1, 2), [x.shape[2]] * len(x), batch_first=True)
            return self.head(self.read(rows)[1][0][-1])

    with pytest.raises(hp.MethodError, match="no rule for the operation"):
        hp.explain(seeded(Packed), images(2, size=(8, 6)), "lrp")
