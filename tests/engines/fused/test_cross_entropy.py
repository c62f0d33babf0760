import torch

from medcot.engines.compat import provide_loss
from medcot.engines.fused.cross_entropy import TRL_CHUNK_TOKENS, ChunkedLogProb


def reference(hidden, weight, targets, temperature=1.0, softcap=None, scale=1.0):
    logits = hidden @ weight.T * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits / temperature, -1).gather(1, targets[:, None]).squeeze(1)


def test_loss_and_gradient_are_those_of_the_full_logits():
    torch.manual_seed(0)
    count = TRL_CHUNK_TOKENS + 7
    weight = torch.randn(50, 16)
    targets = torch.randint(0, 50, (count,))
    weights = torch.rand(count)
    for settings in ({}, {"temperature": 0.7, "softcap": 5.0, "scale": 0.5}):
        hidden = torch.randn(count, 16, dtype=torch.float32, requires_grad=True)
        wanted = reference(hidden, weight, targets, **settings)
        (expected,) = torch.autograd.grad((wanted * weights).sum(), hidden)
        order = (settings.get("temperature", 1.0), 256, settings.get("softcap"))
        got, *_, is_top1 = ChunkedLogProb.apply(
            hidden, weight, None, targets, *order, settings.get("scale", 1.0), ("log_probs",)
        )
        (gradient,) = torch.autograd.grad((got * weights).sum(), hidden)
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(gradient, expected)
        assert is_top1.sum() == ((hidden @ weight.T).argmax(-1) == targets).sum()


def test_trl_has_a_loss_on_this_machine():
    import trl.trainer.utils

    provide_loss(ChunkedLogProb, "cpu")
    assert trl.trainer.utils._ChunkedLogProbFunction is not None
