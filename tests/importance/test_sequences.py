"""Recurrent layers and embeddings against per-sample derivatives taken one at a time, in double precision."""

import pytest
import slow_importance
import torch
import torch.nn.functional as F
from small_nets import OUT, Function, close, values
from torch import nn

from waterfill.importance import regression
from waterfill.importance.plan import Plan, extend
from waterfill.importance.state import differentiable
from waterfill.models.capture import variables

RECURRENT = {
    "lstm": lambda: nn.LSTM(3, 4, batch_first=True),
    "lstm, two layers, both ways": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True),
    "lstm without biases": lambda: nn.LSTM(3, 4, num_layers=2, bias=False, batch_first=True),
    "lstm with projection": lambda: nn.LSTM(3, 4, proj_size=2, num_layers=2, bidirectional=True, batch_first=True),
    "lstm with projection without biases": lambda: nn.LSTM(3, 4, proj_size=2, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True),
    "rnn": lambda: nn.RNN(3, 4, num_layers=2, batch_first=True),
    "rnn with relu": lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("case", RECURRENT)
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_agree_with_the_slow_twin(case, batch_first):
    torch.manual_seed(0)
    layer = RECURRENT[case]().double()
    layer.batch_first = batch_first

    def forward(self, x):
        outputs, _ = self.layer(x if batch_first else x.transpose(0, 1))
        return self.out(outputs.select(1 if batch_first else 0, 2).tanh())

    with torch.no_grad():
        features = layer(torch.zeros(1, 1, 3, dtype=torch.float64))[0].shape[-1]
    model = Function(forward, layer=layer, out=nn.Linear(features, OUT).double())
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    close(values(regression().estimate(model, [x], "values"), model), slow_importance.regression(model, x))
    assert set(methods(model, x).values()) <= {"major", "minor"}


@pytest.mark.parametrize(
    "kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, lambda i, h: nn.RNNCell(i, h, nonlinearity="relu")]
)
def test_recurrent_cells_agree_with_the_slow_twin(kind):
    torch.manual_seed(0)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)

    model = Function(forward, cell=kind(3, 4), out=nn.Linear(4, OUT)).double()
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    close(values(regression().estimate(model, [x], "values"), model), slow_importance.regression(model, x))


def test_packed_sequences_agree_with_the_slow_twin():
    torch.manual_seed(0)

    def forward(self, x):
        lengths = (x[:, :, 0] != 0).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.layer(packed)[1].squeeze(0))

    model = Function(forward, layer=nn.GRU(3, 4), out=nn.Linear(4, OUT)).double()
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    x[1, 3:] = 0
    x[2, 1:] = 0
    close(values(regression().estimate(model, [x], "values"), model), slow_importance.regression(model, x))
    assert methods(model, x)["layer.weight_hh_l0"] == "loop"


def methods(model, x):
    with differentiable(model):
        return extend(Plan(), model, variables(model), x).methods


def tokens(batch=4, length=6):
    return torch.randint(0, 5, (batch, length), generator=torch.Generator().manual_seed(0))


def text_net(**options):
    torch.manual_seed(0)
    return Function(
        lambda self, t: self.out(self.table(t).cumsum(1).tanh().sum(1)),
        table=nn.Embedding(7, 4, **options), out=nn.Linear(4, OUT),
    ).double()  # fmt: skip


def test_embeddings_agree_with_the_slow_twin():
    model = text_net()
    close(
        values(regression().estimate(model, [tokens()], "values"), model), slow_importance.regression(model, tokens())
    )


def test_bags_of_embeddings_agree_with_the_slow_twin():
    torch.manual_seed(0)
    model = Function(lambda self, t: self.out(self.bag(t).tanh()), bag=nn.EmbeddingBag(7, 4), out=nn.Linear(4, OUT))
    model = model.double()
    close(
        values(regression().estimate(model, [tokens()], "values"), model), slow_importance.regression(model, tokens())
    )


def test_an_error_in_the_padding_row_counts():
    model, plain = text_net(padding_idx=1), text_net()
    plain.load_state_dict(model.state_dict())
    close(
        values(regression().estimate(model, [tokens()], "values"), model), slow_importance.regression(plain, tokens())
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_embedding_tied_to_the_output_layer(sparse):
    torch.manual_seed(0)
    table = nn.Embedding(6, 4, sparse=sparse)
    model = Function(lambda self, t: F.linear(self.table(t).tanh().mean(1), self.table.weight), table=table).double()
    twin = Function(model.function, table=nn.Embedding(6, 4).double())
    twin.load_state_dict(model.state_dict())
    close(values(regression().estimate(model, [tokens()], "values"), model), slow_importance.regression(twin, tokens()))


def test_tied_modules_are_summed_before_squaring():
    torch.manual_seed(0)
    table, out = nn.Embedding(6, 4), nn.Linear(4, 6)
    out.weight = table.weight
    model = Function(lambda self, t: self.out(self.table(t).tanh().mean(1)), table=table, out=out).double()
    close(
        values(regression().estimate(model, [tokens()], "values"), model), slow_importance.regression(model, tokens())
    )
