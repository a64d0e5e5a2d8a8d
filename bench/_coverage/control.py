"""Networks of reinforcement learning, sound, text and tables, written out."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import Input, Network, image


class Atari(nn.Module):
    """DQN's body; dueling: a value, and advantages around their mean."""

    def __init__(self, dueling: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 8, 8, 4), nn.ReLU(), nn.Conv2d(8, 16, 4, 2), nn.ReLU(),
            nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 64), nn.ReLU(),
        )  # fmt: skip
        self.advantage = nn.Linear(64, 6)
        self.value = nn.Linear(64, 1) if dueling else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x / 255.0)
        q = self.advantage(h)
        return q if self.value is None else self.value(h) + q - q.mean(1, keepdim=True)


class ActorCritic(nn.Module):
    """Logits and a value, in a tuple."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), activation(), nn.Linear(32, 32), activation())
        self.actor, self.critic = nn.Linear(32, 4), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.actor(h), self.critic(h).squeeze(-1)


class Policy(nn.Module):
    """SAC's actor: a mean, and a log deviation that is clamped."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.mean, self.log_deviation = nn.Linear(32, 2), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.mean(h), torch.clamp(self.log_deviation(h), -20, 2)


class Twins(nn.Module):
    """TD3's two critics of a state and an action."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (
            nn.Sequential(
                nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
            )
            for _ in range(2)
        )

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([state, action], 1)
        return self.one(both), self.two(both)


class Impala(nn.Module):
    """Residual blocks that begin with an activation, max pooling with borders."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.two, self.last = nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8 * 64, 15)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        x = x + self.two(F.relu(self.one(F.relu(x))))
        return self.last(F.relu(x).flatten(1))


class Board(nn.Module):
    """AlphaZero: a policy in logarithms and a value in tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.policy = nn.Sequential(nn.Conv2d(16, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
        self.value = nn.Sequential(nn.Conv2d(16, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten())
        self.moves, self.worth = nn.Linear(128, 65), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.stem(x)
        moves = F.log_softmax(self.moves(self.policy(h)), dim=1)
        return moves, torch.tanh(self.worth(self.value(h)))


class Waves(nn.Module):
    """M5: convolutions of a raw wave."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 16, 80, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(4),
            nn.Conv1d(16, 16, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(4),
        )  # fmt: skip
        self.last = nn.Linear(16, 35)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = F.avg_pool1d(x, x.shape[-1]).permute(0, 2, 1)
        return F.log_softmax(self.last(x), dim=2)


class Gated(nn.Module):
    """WaveNet: tanh times sigmoid, and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 8, 1)
        self.filters, self.gates, self.ones = (
            nn.ModuleList(nn.Conv1d(8, 8, k, dilation=d) for k, d in pairs)
            for pairs in (((2, 1), (2, 2)), ((2, 1), (2, 2)), ((1, 1), (1, 1)))
        )
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Conv1d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.stem(x), 0
        for filter_, gate, one in zip(self.filters, self.gates, self.ones):
            z = one(torch.tanh(filter_(x)) * torch.sigmoid(gate(x)))
            x = x[..., -z.shape[-1] :] + z
            skips = skips + z[..., -32:]
        return self.last(skips)


class Speakers(nn.Module):
    """x-vector: dilated convolutions, mean and deviation over time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(24, 32, 5), nn.ReLU(), nn.BatchNorm1d(32),
            nn.Conv1d(32, 32, 3, dilation=2), nn.ReLU(), nn.BatchNorm1d(32),
        )  # fmt: skip
        self.last = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.last(torch.cat([h.mean(2), h.std(2)], 1))


class Keywords(nn.Module):
    """DS-CNN: depthwise and pointwise convolutions of a spectrogram."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 16, (10, 4), (2, 2), (5, 1)), nn.BatchNorm2d(16)]
        for _ in range(2):
            layers += [nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16)]
            layers += [nn.ReLU(), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)]
        self.body, self.last = nn.Sequential(*layers, nn.ReLU()), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))


class Reader(nn.Module):
    """CRNN: convolutions, then a GRU over the width."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )
        self.over, self.last = nn.GRU(64, 16, batch_first=True), nn.Linear(16, 20)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        h, _ = self.over(h.permute(0, 3, 1, 2).flatten(2))
        return self.last(h)


class Sentences(nn.Module):
    """Kim's text CNN: convolutions of embeddings, the maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(99, 16)
        self.layers = nn.ModuleList(nn.Conv1d(16, 8, k) for k in (3, 4, 5))
        self.last = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x).transpose(1, 2)
        found = [F.relu(layer(x)) for layer in self.layers]
        return self.last(torch.cat([F.max_pool1d(h, h.size(2)).squeeze(2) for h in found], 1))


class Causal(nn.Module):
    """TCN: convolutions that are padded and cut, with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (
            nn.Conv1d(8, 16, 3, padding=2),
            nn.Conv1d(16, 16, 3, padding=4, dilation=2),
        )
        self.short, self.last = nn.Conv1d(8, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(x)[:, :, :-2])
        y = F.relu(self.two(y)[:, :, :-4])
        return self.last(F.relu(y + self.short(x))[:, :, -1])


class Tabular(nn.Module):
    """Embeddings beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.ModuleList(nn.Embedding(9, 4) for _ in range(3))
        self.body = nn.Sequential(
            nn.Linear(18, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 2)
        )

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        found = [each(kinds[:, i]) for i, each in enumerate(self.kinds)]
        return self.body(torch.cat([numbers, *found], 1))


class Recommender(nn.Module):
    """NCF: a product of embeddings beside an MLP, and a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item, self.users, self.items = (nn.Embedding(50, 8) for _ in range(4))
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.last = nn.Linear(16, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        product = self.user(user) * self.item(item)
        deep = self.body(torch.cat([self.users(user), self.items(item)], -1))
        return torch.sigmoid(self.last(torch.cat([product, deep], -1)))


class Machines(nn.Module):
    """DeepFM: pairs of features by the square of their sum, on layers that spike."""

    def __init__(self) -> None:
        super().__init__()
        self.fields = nn.Linear(6, 24)
        self.body = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        v = F.relu(self.fields(x)).view(-1, 6, 4)
        pairs = 0.5 * (v.sum(1).pow(2) - v.pow(2).sum(1)).sum(1, keepdim=True)
        return pairs + self.body(v.flatten(1))


class Points(nn.Module):
    """PointNet, with the transform that it multiplies the points by."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.frame = nn.Conv1d(3, 16, 1), nn.Linear(16, 9)
        self.two, self.last = nn.Conv1d(3, 32, 1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        frame = self.frame(torch.max(F.relu(self.one(x)), 2)[0]).view(-1, 3, 3)
        x = torch.bmm(x.transpose(2, 1), frame).transpose(2, 1)
        return self.last(torch.max(F.relu(self.two(x)), 2)[0])


class Graphs(nn.Module):
    """GCN: features times a matrix of neighbours that is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        h = F.relu(torch.matmul(neighbours, self.one(x)))
        return torch.matmul(neighbours, self.two(h)).mean(1)


class Attention(nn.Module):
    """One layer of torch's encoder, on words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(99, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.last = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.words(x)).mean(1))


def control() -> list[Network]:
    state, frames = (Input((8,)),), image(84, 4)
    one = (Input((), ids=50),)
    return [
        Network("dqn", Atari, frames),
        Network("dueling dqn", partial(Atari, True), frames),
        Network("actor-critic", ActorCritic, state),
        Network("actor-critic, tanh", partial(ActorCritic, nn.Tanh), state),
        Network("sac actor", Policy, state),
        Network("td3 critics", Twins, (*state, Input((2,)))),
        Network("impala", Impala, image(16)),
        Network("alphazero", Board, image(8)),
        Network("m5", Waves, (Input((1, 2000)),)),
        Network("wavenet", Gated, (Input((1, 64)),)),
        Network("x-vector", Speakers, (Input((24, 40)),)),
        Network("ds-cnn", Keywords, (Input((1, 49, 10)),)),
        Network("crnn", Reader, image(32, 1)),
        Network("text cnn", Sentences, (Input((20,), ids=99),)),
        Network("tcn", Causal, (Input((8, 20)),)),
        Network("tabular", Tabular, (Input((6,)), Input((3,), ids=9))),
        Network("ncf", Recommender, (*one, *one)),
        Network("deepfm", Machines, (Input((6,)),)),
        Network("pointnet", Points, (Input((3, 64)),)),
        Network("gcn", Graphs, (Input((10, 8)), Input((10, 10)))),
        Network("transformer layer", Attention, (Input((12,), ids=99),), "inputs"),
    ]
