"""The spelling of signals and which divergences they support."""

import pytest

from tutelage import divergences
from tutelage.errors import UserError
from tutelage.teacher.base import SignalKind, parse_signal


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        ("hidden", SignalKind("hidden")),
        (" sampled ", SignalKind("sampled")),
        ("topk(64)", SignalKind("topk", 64)),
        ("topk( 1 )", SignalKind("topk", 1)),
    ],
)
def test_parse(spelling, kind):
    assert parse_signal(spelling) == kind
    assert parse_signal(str(kind)) == parse_signal(kind) == kind


@pytest.mark.parametrize("spelling", ["topk", "topk(0)", "topk(-1)", "topk(k)", "logits", "", "hidden(3)"])
def test_unknown(spelling):
    with pytest.raises(UserError, match=r"unknown teacher signal .* write hidden .* topk\(64\) .* or sampled"):
        parse_signal(spelling)


def test_which_divergences_are_legal():
    for signal in ("hidden", "topk(4)"):
        for divergence in ("forward_kl", "reverse_kl", "jsd(0.5)", "total_variation"):
            parse_signal(signal).check(divergences.parse(divergence))
    sampled = parse_signal("sampled")
    sampled.check(divergences.parse("forward_kl"))
    sampled.check(divergences.parse("reverse_kl"))
    with pytest.raises(UserError, match=r"jsd\(0.5\) needs more"):
        sampled.check(divergences.parse("jsd(0.5)"))
