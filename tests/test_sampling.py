"""The sampler against its definitions: slow and simple references in numpy, property tests, statistics, and seeds.

Where transformers is installed, its logits processors are asked too.
"""
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st

from distill import sampling
from distill.sampling import (PRESETS, SamplingConfig, Stopped, apply_repetition_penalty, apply_temperature,
                              apply_top_k, apply_top_p, draw, level_history, preset, resolve_seed, row_noise,
                              sample_code_sequence, scale_logits, warp_logits)

GRID = dict(deadline=None, max_examples=60)
rows = st.integers(0, 2**31).map(lambda seed: np.random.default_rng(seed))


def random_logits(rng, b=None, k=None, scale=None):
    b, k = b or int(rng.integers(1, 5)), k or int(rng.integers(2, 200))
    return torch.tensor(rng.normal(size=(b, k)) * (scale or rng.uniform(.1, 8)), dtype=torch.float32)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


# --- a second opinion: one row at a time, straight from the definitions
def reference(logits, cfg, history=()):
    x = logits.double().numpy().copy()
    for code in set(map(int, history)):
        x[code] = x[code] / cfg.repetition_penalty if x[code] > 0 else x[code] * cfg.repetition_penalty
    x /= cfg.temperature
    if cfg.top_k:
        threshold = sorted(x)[-min(cfg.top_k, len(x))]
        x[x < threshold] = -np.inf
    if 0 < cfg.top_p < 1:
        p, mass, keep = softmax(x), 0., []
        for code in np.argsort(-x, kind='stable'):
            keep.append(code)
            mass += p[code]
            if mass >= cfg.top_p: break
        x[[o for o in range(len(x)) if o not in keep]] = -np.inf
    return x


@settings(**GRID)
@given(rows, st.floats(.1, 2), st.integers(0, 250), st.floats(0, 1), st.floats(1, 2))
def test_all_controls_together_follow_the_reference(rng, temperature, top_k, top_p, penalty):
    logits = random_logits(rng)
    history = torch.tensor(rng.integers(0, logits.shape[1], (len(logits), int(rng.integers(0, 40)))))
    cfg = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    got = warp_logits(logits.double(), cfg, history)
    for b in range(len(logits)):
        want = reference(logits[b], cfg, history[b])
        assert np.array_equal(np.isfinite(want), got[b].isfinite().numpy())
        np.testing.assert_allclose(got[b].softmax(-1).numpy(), softmax(want), atol=1e-12)


def test_against_transformers():
    processors = pytest.importorskip('transformers.generation.logits_process')
    rng = np.random.default_rng(0)
    for _ in range(50):
        logits = random_logits(rng)
        history = torch.tensor(rng.integers(0, logits.shape[1], (len(logits), 20)))
        pairs = [(apply_temperature(logits, .7), processors.TemperatureLogitsWarper(.7)),
                 (apply_top_k(logits, 7), processors.TopKLogitsWarper(7)),
                 (apply_top_p(logits, .8), processors.TopPLogitsWarper(.8)),
                 (apply_repetition_penalty(logits, 1.3, history), processors.RepetitionPenaltyLogitsProcessor(1.3))]
        for ours, theirs in pairs: torch.testing.assert_close(ours, theirs(history, logits))


# --- each control
@settings(**GRID)
@given(rows)
def test_off_means_off(rng):
    logits = random_logits(rng)
    history = torch.tensor(rng.integers(0, logits.shape[1], (len(logits), 9)))
    for cfg in (SamplingConfig(), SamplingConfig(top_p=1.), SamplingConfig(top_k=512), SamplingConfig(penalty_context=3)):
        assert torch.equal(warp_logits(logits, cfg, history), logits)
    assert torch.equal(warp_logits(logits, SamplingConfig(), None), logits)


@settings(**GRID)
@given(rows, st.integers(1, 512))
def test_top_k_keeps_exactly_k(rng, top_k):
    logits = random_logits(rng)
    assume(all(len(set(row.tolist())) == len(row) for row in logits))
    kept = apply_top_k(logits, top_k).isfinite()
    assert (kept.sum(1) == min(top_k, logits.shape[1])).all()
    for b in range(len(logits)):
        if not kept[b].all(): assert logits[b][kept[b]].min() > logits[b][~kept[b]].max()
    assert torch.equal(apply_top_k(logits, top_k)[kept], logits[kept])


@pytest.mark.parametrize('top_k', [1, 2, 9, 10, 11, 512])
def test_top_k_around_the_size_of_the_codebook(top_k):
    assert apply_top_k(torch.arange(10.)[None], top_k).isfinite().sum() == min(top_k, 10)


@settings(**GRID)
@given(rows, st.integers(1, 20))
def test_top_k_keeps_all_that_tie_with_the_last(rng, top_k):
    logits = torch.tensor(rng.integers(0, 4, (3, 20)), dtype=torch.float32)
    kept = apply_top_k(logits, top_k).isfinite()
    for b in range(3):
        assert kept[b].tolist() == (logits[b] >= logits[b].sort(descending=True).values[top_k - 1]).tolist()


@settings(**GRID)
@given(rows, st.floats(.001, .999))
def test_top_p_is_the_smallest_set_with_enough_mass(rng, top_p):
    logits = random_logits(rng)
    kept = apply_top_p(logits, top_p).isfinite()
    for b in range(len(logits)):
        p = logits[b].double().softmax(-1)
        mass, n = p[kept[b]].sum().item(), kept[b].sum().item()
        assert n >= 1 and mass >= top_p - 1e-12
        best = p.sort(descending=True).values
        assert mass == pytest.approx(best[:n].sum().item(), abs=1e-12)       # no set of that size holds more
        assert n == 1 or best[:n - 1].sum().item() < top_p + 1e-12           # and a smaller one is not enough


@settings(**GRID)
@given(rows, st.floats(.01, .98), st.floats(.001, .01))
def test_a_larger_top_p_or_top_k_keeps_at_least_as_much(rng, top_p, more):
    logits = random_logits(rng)
    assert not (apply_top_p(logits, top_p).isfinite() & ~apply_top_p(logits, top_p + more).isfinite()).any()
    k = 1 + int(rng.integers(logits.shape[1]))
    assert not (apply_top_k(logits, k).isfinite() & ~apply_top_k(logits, k + 1).isfinite()).any()


def test_top_p_of_equal_codes_keeps_just_enough_of_them():
    assert apply_top_p(torch.zeros(1, 10), .35).isfinite()[0].tolist() == [True] * 4 + [False] * 6


def test_top_k_comes_before_top_p():
    logits = torch.tensor([[.4, .3, .2, .1]]).log()
    cfg = SamplingConfig(top_k=2, top_p=.55)  # after top-k: 0.57, 0.43. Before it, 0.4 would not have been enough
    assert warp_logits(logits, cfg).isfinite()[0].tolist() == [True, False, False, False]


@settings(**GRID)
@given(rows, st.floats(.1, 1.9), st.floats(.01, .1))
def test_temperature_is_monotone(rng, temperature, more):
    logits = random_logits(rng, scale=2.)
    entropy = lambda t: torch.distributions.Categorical(logits=apply_temperature(logits.double(), t)).entropy()
    assert (entropy(temperature) <= entropy(temperature + more) + 1e-9).all()
    assert torch.equal(apply_temperature(logits, temperature).argsort(), logits.argsort())


def test_argmax_is_the_limit_of_temperature():
    logits = random_logits(np.random.default_rng(1), 6, 64, 3.)
    p = apply_temperature(logits.double(), 1e-4).softmax(-1)
    assert (p.max(1).values > 1 - 1e-9).all()
    assert torch.equal(p.argmax(1), draw(logits, SamplingConfig.greedy()).tokens)
    assert apply_temperature(logits.double(), 1e6).softmax(-1).max() < 1.001 / 64


@settings(**GRID)
@given(rows, st.floats(1.01, 2))
def test_penalty_makes_what_was_used_less_likely_and_nothing_else(rng, penalty):
    logits = random_logits(rng, scale=2.)
    history = torch.tensor(rng.integers(0, logits.shape[1], (len(logits), 5)))
    after = apply_repetition_penalty(logits, penalty, history)
    used = torch.zeros_like(logits, dtype=torch.bool).scatter(1, history, True)
    assert torch.equal(after[~used], logits[~used]) and (after[used] < logits[used]).all()
    stronger = apply_repetition_penalty(logits, penalty + .1, history)
    assert (stronger[used] < after[used]).all()
    assert torch.equal(apply_repetition_penalty(logits, penalty, history.repeat(1, 3)), after)  # counted once


@settings(**GRID)
@given(st.integers(1, 8), st.integers(1, 70), st.integers(0, 300))
def test_the_penalty_window_holds_the_last_tokens_of_one_level(q, context, t):
    codes = torch.arange(300)[None]
    want = [o for o in range(t) if o % q == t % q][-context:]
    assert level_history(codes, t, q, context)[0].tolist() == want


# --- the draw
def chi_square(tokens, p):
    n = len(tokens)
    return (((torch.bincount(tokens, minlength=len(p)) - n * p)**2 / (n * p)).sum()).item()


@pytest.mark.parametrize('gumbel', [False, True])
@pytest.mark.parametrize('cfg', [SamplingConfig(), SamplingConfig(temperature=.5), SamplingConfig(temperature=2.),
                                 SamplingConfig(top_k=6), SamplingConfig(top_p=.8), SamplingConfig(top_k=8, top_p=.9)],
                         ids=['plain', 'cold', 'hot', 'top_k', 'top_p', 'both'])
def test_draws_follow_the_softmax(cfg, gumbel):
    n, k = 40_000, 10
    cfg = replace(cfg, gumbel=gumbel)
    logits = random_logits(np.random.default_rng(4), 1, k, 1.5)
    noise = row_noise([11], (n, k) if gumbel else (n,))[0]
    tokens = draw(warp_logits(logits, cfg).expand(n, -1), cfg, noise).tokens
    p = torch.tensor(softmax(reference(logits[0], cfg)))
    assert not torch.isin(tokens, (p == 0).nonzero()).any()       # what was ruled out is never drawn
    seen = p > 0
    index = torch.cumsum(seen, 0) - 1
    assert chi_square(index[tokens], p[seen]) < 27.9              # 9 degrees of freedom: once in a thousand


def test_the_chi_square_would_notice():
    p = torch.tensor(softmax(random_logits(np.random.default_rng(4), 1, 10, 1.5)[0].numpy()))
    tokens = torch.multinomial(torch.sqrt(p), 40_000, True, generator=torch.Generator().manual_seed(0))
    assert chi_square(tokens, p) > 100


def test_the_dart_never_hits_what_was_ruled_out():
    logits = torch.full((3, 5), -torch.inf)
    logits[:, 2] = 0.
    noise = row_noise([0], (3,))[0]
    noise[0], noise[2] = 0., 1 - 2**-52
    assert draw(logits, SamplingConfig(), noise).tokens.tolist() == [2, 2, 2]


def test_noise_is_uniform_and_below_one():
    u = row_noise(range(5), (20_000,))
    assert u.dtype == torch.float64 and 0 <= u.min() and u.max() <= 1 - 2**-52
    assert chi_square((u.flatten() * 20).long(), torch.full((20,), .05, dtype=torch.float64)) < 43.8
    assert np.abs(np.corrcoef(u.numpy()) - np.eye(5)).max() < .03  # neighbouring seeds have nothing in common


@settings(**GRID)
@given(rows)
def test_margin_is_how_far_the_dart_may_move(rng):
    logits = random_logits(rng, b=1, scale=1.)
    u = torch.tensor([rng.uniform(.05, .95)], dtype=torch.float64)
    drawn = draw(logits, SamplingConfig(), u)
    margin = drawn.margin.item()
    for step in (-1, 1):
        near = draw(logits, SamplingConfig(), (u + step * margin * .99)).tokens
        assert near == drawn.tokens
    assert margin > .04 or any(draw(logits, SamplingConfig(), u + step * (margin + 1e-9)).tokens != drawn.tokens
                               for step in (-1, 1))


# --- the loop, with a prior that is a table: what follows depends on the last two tokens
@dataclass
class TableConfig:
    codebook_size: int = 24
    n_quantizers: int = 4


class TablePrior(torch.nn.Module):
    "As much of a prior as the sampler sees. `noise` stands for rounding that differs with the batch size."
    max_length = 96

    def __init__(self, seed=0, noise=0., cfg=TableConfig()):
        super().__init__()
        self.cfg, self.noise, self.steps, self.settled = cfg, noise, [], 0
        g = torch.Generator().manual_seed(seed)
        self.table = torch.randn(cfg.codebook_size, cfg.codebook_size, generator=g) * 2
        self.rounding = {}

    def new_cache(self, batch_size): return {'b': batch_size, 'length': 0, 'sum': torch.zeros(batch_size, dtype=torch.long)}

    def rows(self, last): return self.table[last % self.cfg.codebook_size]

    def step(self, tokens, cache):
        assert not self.training and torch.is_inference_mode_enabled()
        self.steps.append(cache['b'])
        if tokens is not None:
            cache['sum'] = tokens + 3 * (cache['sum'] % 24)
            cache['length'] += 1
        b, t = cache['b'], cache['length']
        g = torch.Generator().manual_seed(1000 * b + t)
        return self.rows(cache['sum']) + self.noise * torch.randn(b, self.cfg.codebook_size, generator=g)

    def forward(self, codes):
        self.settled += 1
        total, out = torch.zeros(len(codes), dtype=torch.long), []
        for t in range(codes.shape[1]):
            out.append(self.rows(total))
            total = codes[:, t] + 3 * (total % 24)
        return torch.stack(out, 1)


WAYS = {'plain': SamplingConfig(), 'default': SamplingConfig.default(), 'greedy': SamplingConfig.greedy(),
        'creative': SamplingConfig.creative(), 'top_p': SamplingConfig(top_p=.7), 'cold': SamplingConfig(temperature=.3),
        'gumbel': SamplingConfig(gumbel=True, top_p=.8, top_k=12)}
each_way = pytest.mark.parametrize('cfg', [replace(o, seed=5) for o in WAYS.values()], ids=list(WAYS))


@each_way
def test_one_seed_is_one_sound_whatever_the_batch_size(cfg):
    want = sample_code_sequence(TablePrior(), 64, cfg, n=30, batch_size=30)
    assert want.shape == (30, 64) and want.dtype == torch.long and 0 <= want.min() and want.max() < 24
    for batch_size in (1, 7): assert torch.equal(sample_code_sequence(TablePrior(), 64, cfg, n=30, batch_size=batch_size), want)
    assert torch.equal(sample_code_sequence(TablePrior(), 64, cfg, seed=5 + 12)[0], want[12])
    assert torch.equal(sample_code_sequence(TablePrior(), 20, cfg, n=30), want[:, :20])
    assert cfg.argmax or len({tuple(row) for row in want.tolist()}) == 30


def with_and_without_referee(cfg, monkeypatch):
    "Whether batch sizes 1, 7 and 30 agree when rounding depends on them; all a thousand times coarser than it is"
    monkeypatch.setattr(sampling, 'TOLERANCE', 2e-2)
    agree = []
    for referee in (sampling.is_close_call, lambda drawn, *rest: torch.zeros(len(drawn.tokens), dtype=torch.bool)):
        monkeypatch.setattr(sampling, 'is_close_call', referee)
        a, b, c = (sample_code_sequence(TablePrior(noise=1e-3), 64, cfg, n=60, batch_size=o) for o in (1, 7, 30))
        agree.append(torch.equal(a, b) and torch.equal(a, c))
    return agree


@each_way
def test_rounding_that_differs_with_the_batch_size_changes_nothing(cfg, monkeypatch):
    with_it, without = with_and_without_referee(cfg, monkeypatch)
    assert with_it
    assert cfg.argmax or not without  # so the test can fail


@each_way
def test_close_calls_are_rare(cfg):
    prior = TablePrior()
    sample_code_sequence(prior, 96, cfg, n=50)
    assert prior.settled < 96 * 50 * .02


def test_the_first_token_follows_its_distribution():
    prior = TablePrior()
    tokens = sample_code_sequence(prior, 1, n=20_000, batch_size=20_000, seed=0)[:, 0]
    assert chi_square(tokens, prior.table[0].double().softmax(-1)) < 49.7  # 23 degrees of freedom


def test_the_penalty_in_the_loop_is_per_level():
    "Greedy with a strong penalty over a table that always wants code 0: each level avoids only what itself has used."
    prior = TablePrior()
    prior.table = torch.linspace(3, 1, 24).expand(24, -1)
    cfg = SamplingConfig(argmax=True, repetition_penalty=2., penalty_context=2)
    got = sample_code_sequence(prior, 16, cfg).view(4, 4)  # (positions, q)
    assert (got == got[:, :1]).all()                        # every level on its own does the same …
    assert got[:, 0].tolist() == [0, 1, 2, 0]               # … and may come back when its window of two has passed
    assert (sample_code_sequence(prior, 16, replace(cfg, repetition_penalty=1.)) == 0).all()


def test_settings_given_by_name_override_the_config():
    prior = TablePrior()
    cfg = SamplingConfig(temperature=.5, top_k=3, seed=1)
    assert torch.equal(sample_code_sequence(prior, 30, cfg, temperature=1.5, top_k=0, top_p=.9, seed=2),
                       sample_code_sequence(prior, 30, SamplingConfig(temperature=1.5, top_p=.9, seed=2)))
    assert not torch.equal(sample_code_sequence(prior, 30), sample_code_sequence(prior, 30))  # no seed: a fresh one


def test_progress_stop_and_mode_of_the_prior():
    prior, heard = TablePrior().train(), []
    sample_code_sequence(prior, 50, n=5, batch_size=2, progress_callback=lambda f, text: heard.append((f, text)))
    assert prior.training and prior.steps == [2] * 100 + [1] * 50
    fractions = [o for o, _ in heard]
    assert fractions[0] == 0 and fractions[-1] == 1 and fractions == sorted(set(fractions)) and len(heard) <= 60
    assert heard[-1][1] == 'Sampling token 250/250…'
    calls = iter(range(100))
    with pytest.raises(Stopped, match='token 10 of 50'):
        sample_code_sequence(prior, 50, should_stop=lambda: next(calls) >= 10)
    assert prior.training


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sample_code_sequence(TablePrior(), 20, n=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prior_that_answers_nan_is_named():
    prior = TablePrior()
    prior.table = prior.table * torch.nan
    for cfg in WAYS.values():
        with pytest.raises(ValueError, match='NaN'): sample_code_sequence(prior, 5, cfg)


# --- settings
@pytest.mark.parametrize('field, value', [
    ('temperature', 0), ('temperature', .0999), ('temperature', 2.01), ('temperature', float('nan')),
    ('temperature', 'hot'), ('temperature', None), ('temperature', True), ('top_p', -.1), ('top_p', 1.01), ('top_p', 90),
    ('top_k', -1), ('top_k', 513), ('top_k', 2.5), ('top_k', '50'), ('repetition_penalty', .9), ('repetition_penalty', 2.1),
    ('penalty_context', 0), ('penalty_context', 1.5), ('seed', -1), ('seed', 2**53), ('seed', 1.5), ('seed', 'x'),
    ('argmax', 1), ('gumbel', None)])
def test_what_is_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f'{field} is .* must be'): SamplingConfig(**{field: value})


@pytest.mark.parametrize('field, value', [
    ('temperature', .1), ('temperature', 2), ('top_p', 0), ('top_p', 1), ('top_k', 0), ('top_k', 512), ('top_k', np.int64(5)),
    ('repetition_penalty', 1), ('repetition_penalty', 2), ('penalty_context', 1), ('seed', 0), ('seed', 2**53 - 1), ('seed', None)])
def test_the_ends_of_each_range_are_fine(field, value): assert getattr(SamplingConfig(**{field: value}), field) == value


@pytest.mark.parametrize('given', [dict(seq_len=0), dict(seq_len=97), dict(n=0), dict(batch_size=0), dict(seq_len=4.5),
                                   dict(seed=-3), dict(top_p=2), dict(top_k=1000)], ids=str)
def test_the_loop_refuses_wrong_arguments(given):
    with pytest.raises(ValueError, match=f'{next(iter(given))} is'): sample_code_sequence(TablePrior(), **{'seq_len': 5} | given)


def test_presets_are_those_of_the_specification():
    assert preset('default') == SamplingConfig(temperature=1., top_k=50, top_p=.9, repetition_penalty=1.1, penalty_context=64, seed=42)
    assert preset('greedy').argmax and preset('creative') == SamplingConfig(
        temperature=1.2, top_p=.95, repetition_penalty=1.05, penalty_context=128, seed=None)
    assert list(PRESETS) == ['default', 'greedy', 'creative']


def test_settings_survive_json():
    import json
    for cfg in WAYS.values():
        assert SamplingConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert SamplingConfig.from_dict({}) == SamplingConfig()
    for wrong in ({'min_q': .1}, {'temperature': 9}, [1], None):
        with pytest.raises(ValueError): SamplingConfig.from_dict(wrong)


def test_seeds():
    assert resolve_seed(0) == 0 and resolve_seed(np.int64(7)) == 7
    assert len({resolve_seed() for _ in range(20)}) == 20
    for wrong in (-1, 1.5, 'x', True, 2**53):
        with pytest.raises(ValueError, match='seed is'): resolve_seed(wrong)


def test_greedy_ignores_only_what_cannot_matter():
    logits = random_logits(np.random.default_rng(0), 3, 30, 2.)
    history = torch.tensor([[1, 2]] * 3)
    cfg = SamplingConfig(argmax=True, repetition_penalty=1.5)
    assert torch.equal(scale_logits(logits, cfg, history), apply_repetition_penalty(logits, 1.5, history))
