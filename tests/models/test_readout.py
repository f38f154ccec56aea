import torch

from engine.models.readout import Readout


def test_a_candidate_is_read_from_the_mean_of_its_own_tokens() -> None:
    readout = Readout(2)
    hidden_BTD = torch.tensor([[[9.0, 9.0], [3.0, 1.0], [1.0, 3.0], [4.0, 3.0], [7.0, 7.0]]])
    segments_BT = torch.tensor([[0, 1, 1, 2, 0]])           # prefix, two blocks, padding
    assert readout(hidden_BTD, segments_BT, 3).tolist() == [[0.0, 0.0, 0.0]]
    with torch.no_grad():
        readout.weight.copy_(torch.tensor([2.0, -1.0]))
        readout.bias.fill_(0.5)
    first, second, none = readout(hidden_BTD, segments_BT, 3)[0].tolist()
    assert abs(first - (0.5 + 1.0)) < 1e-6                  # mean (2, 2), at unit length (1, 1)
    assert abs(second - (0.5 + (2 * 4 - 3) / 12.5**0.5)) < 1e-6
    assert none == 0.5


def test_the_length_of_the_states_does_not_matter() -> None:
    torch.manual_seed(0)
    readout = Readout(8)
    torch.nn.init.normal_(readout.weight)
    hidden_BTD, segments_BT = torch.randn(2, 6, 8), torch.tensor([[0, 1, 1, 2, 2, 2]] * 2)
    expected = readout(hidden_BTD, segments_BT, 2)
    torch.testing.assert_close(readout(100 * hidden_BTD, segments_BT, 2), expected)


def test_standardised_states_have_mean_0_and_variance_1() -> None:
    readout = Readout(3)
    states_ND = torch.tensor([[5.0, 1.0, 7.0], [7.0, 3.0, 7.0], [9.0, 5.0, 7.0]])
    readout.standardise(states_ND)
    seen_ND = (states_ND - readout.mean_D) / readout.scale_D
    torch.testing.assert_close(seen_ND.mean(0), torch.zeros(3))
    deviations_D = torch.tensor([1.0, 1.0, 0.0])            # the constant dimension stays 0
    torch.testing.assert_close(seen_ND.std(0, correction=0), deviations_D, atol=1e-3, rtol=0)


def test_plain_weights_do_to_states_what_the_readout_does_to_standardised_ones() -> None:
    torch.manual_seed(1)
    readout, loaded = Readout(8), Readout(8)
    readout.standardise(3 + 2 * torch.randn(50, 8))
    torch.nn.init.normal_(readout.weight)
    torch.nn.init.normal_(readout.bias)
    trained = (p.detach().numpy() for p in (readout.weight, readout.bias))
    with torch.no_grad():
        for parameter, plain in zip((loaded.weight, loaded.bias), readout.plain(*trained),
                                    strict=True):
            parameter.copy_(torch.from_numpy(plain))
    hidden_BTD, segments_BT = torch.randn(2, 6, 8), torch.tensor([[0, 1, 1, 2, 2, 2]] * 2)
    torch.testing.assert_close(
        loaded(hidden_BTD, segments_BT, 2), readout(hidden_BTD, segments_BT, 2)
    )
    again = Readout(8)
    again.standardise(torch.randn(50, 8) - 1)               # other states than the first time
    with torch.no_grad():
        for parameter, plain in zip(again.parameters(), loaded.parameters(), strict=True):
            parameter.copy_(plain)
    again.take_over(*(parameter.detach().numpy() for parameter in again.parameters()))
    torch.testing.assert_close(
        again(hidden_BTD, segments_BT, 2), readout(hidden_BTD, segments_BT, 2)
    )
