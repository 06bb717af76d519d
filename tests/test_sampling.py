"""The sampler against its definitions: slow and simple references in numpy, transformers' logits processors, property
tests, statistics, and seeds."""
import json, os, pickle, sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings, strategies as st

from distill import sampling
from distill.sampling import (PER_LEVEL, PRESETS, RecentCodes, RowNoise, Sampler, SamplingConfig, Stopped, apply_filters,
                              apply_min_p, apply_repetition_penalty, apply_temperature, apply_top_k, apply_top_p,
                              apply_typical, atypicality, data_folder, delete_preset, distribution, draw, list_presets,
                              next_codes, preset, resolve_seed, sample_code_sequence, save_preset, softmax)

GRID = dict(deadline=None, max_examples=60)
rows = st.integers(0, 2**31).map(lambda seed: np.random.default_rng(seed))
mass = st.floats(.001, .999)


def random_logits(rng, b=None, k=None, scale=None):
    b, k = b or int(rng.integers(1, 5)), k or int(rng.integers(2, 200))
    return rng.normal(size=(b, k)) * (scale or rng.uniform(.1, 8))


def random_p(rng, **given): return softmax(random_logits(rng, **given))


def random_used(rng, logits): return rng.random(logits.shape) < rng.uniform(0, .5)


# --- a second opinion: one row at a time, straight from the definitions
def smallest_set(p, score, mass):
    total, keep = 0., []
    for code in np.argsort(score, kind='stable'):
        keep.append(code)
        total += p[code]
        if total >= mass: break
    out = np.zeros_like(p)
    out[keep] = p[keep]
    return out / out.sum()


def reference(logits, cfg, used=()):
    x = np.array(logits, np.float64)
    for code in set(map(int, used)):
        x[code] = x[code] / cfg.repetition_penalty if x[code] > 0 else x[code] * cfg.repetition_penalty
    e = np.exp((x - x.max()) / cfg.temperature)
    p = e / e.sum()
    if cfg.top_k:
        p[p < sorted(p)[-min(cfg.top_k, len(p))]] = 0
        p /= p.sum()
    if 0 < cfg.top_p < 1: p = smallest_set(p, -p, cfg.top_p)
    if cfg.min_p:
        p[p < cfg.min_p * p.max()] = 0
        p /= p.sum()
    if 0 < cfg.typical_p < 1:
        surprise = np.array([-np.log(o) if o else np.inf for o in p])
        entropy = sum(o * s for o, s in zip(p, surprise) if o)
        p = smallest_set(p, np.abs(surprise - entropy), cfg.typical_p)
    return p


def on_an_edge(logits, cfg, used=None, tolerance=1e-9):
    "Whether the last bits decide what a filter keeps, so that two right answers differ"
    p = softmax(sampling.scale_logits(logits, cfg, used))
    return any(sampling.edge_mass(cut, tolerance).any() for cut in apply_filters(p, cfg))


some_settings = st.builds(
    SamplingConfig, temperature=st.floats(.1, 2), top_k=st.integers(0, 250), top_p=st.floats(0, 1),
    min_p=st.just(0.) | st.floats(0, .3), typical_p=st.just(0.) | st.floats(0, 1), repetition_penalty=st.floats(1, 2))


@settings(**GRID | dict(max_examples=200))
@given(rows, some_settings)
def test_all_controls_together_follow_the_reference(rng, cfg):
    logits = random_logits(rng)
    used = random_used(rng, logits)
    assume(not on_an_edge(logits, cfg, used))
    got = distribution(logits, cfg, used)
    for b in range(len(logits)):
        np.testing.assert_allclose(got[b], reference(logits[b], cfg, used[b].nonzero()[0]), atol=1e-12)


# --- a third opinion: transformers
def theirs(name, *args):
    "One of transformers' processors, from float64 logits and a history to probabilities"
    processor = getattr(pytest.importorskip('transformers.generation.logits_process'), name)(*args)
    def run(logits, history=None): return processor(history, torch.tensor(logits)).softmax(-1).numpy()
    return run


def same_distribution(ours, theirs):
    assert np.array_equal(ours > 0, theirs > 0)
    np.testing.assert_allclose(ours / ours.sum(-1, keepdims=True), theirs, atol=1e-12)


@settings(**GRID)
@given(rows, st.floats(.1, 2))
def test_temperature_is_that_of_transformers(rng, temperature):
    logits = random_logits(rng)
    same_distribution(softmax(apply_temperature(logits, temperature)), theirs('TemperatureLogitsWarper', temperature)(logits))


@settings(**GRID)
@given(rows, st.integers(1, 512))
def test_top_k_is_that_of_transformers(rng, top_k):
    logits = random_logits(rng)
    same_distribution(apply_top_k(softmax(logits), top_k), theirs('TopKLogitsWarper', top_k)(logits))


@settings(**GRID)
@given(rows, mass)
def test_top_p_is_that_of_transformers(rng, top_p):
    logits = random_logits(rng)
    assume(not on_an_edge(logits, SamplingConfig(top_p=top_p)))
    same_distribution(apply_top_p(softmax(logits), top_p), theirs('TopPLogitsWarper', top_p)(logits))


@settings(**GRID)
@given(rows, st.floats(.001, 1))
@example(np.random.default_rng(0), 1.)
def test_min_p_is_that_of_transformers(rng, min_p):
    logits = random_logits(rng)
    same_distribution(apply_min_p(softmax(logits), min_p), theirs('MinPLogitsWarper', min_p)(logits))


@settings(**GRID)
@given(rows, mass)
def test_typical_is_that_of_transformers(rng, typical_p):
    logits = random_logits(rng)
    assume(not on_an_edge(logits, SamplingConfig(typical_p=typical_p)))
    same_distribution(apply_typical(softmax(logits), typical_p), theirs('TypicalLogitsWarper', typical_p)(logits))


@settings(**GRID)
@given(rows, st.floats(1, 2))
def test_the_penalty_is_that_of_transformers(rng, penalty):
    logits = random_logits(rng)
    history = rng.integers(0, logits.shape[1], (len(logits), 20))
    used = np.zeros(logits.shape, bool)
    np.put_along_axis(used, history, True, 1)
    same_distribution(softmax(apply_repetition_penalty(logits, penalty, used)),
                      theirs('RepetitionPenaltyLogitsProcessor', penalty)(logits, torch.tensor(history)))


@pytest.fixture(scope='module')
def gpt2():
    "A tiny GPT-2 of transformers that has learned nothing, in float64, bold enough for filters to bite."
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=1, bos_token_id=None, eos_token_id=None)).double().eval()
    with torch.no_grad(): model.lm_head.weight.mul_(30)
    return model


@settings(**GRID | dict(max_examples=40))
@given(rng=rows, cfg=some_settings)
def test_all_controls_together_are_those_of_generate(gpt2, rng, cfg):
    "What `generate` makes of its logits with the settings of the same names: the order of the controls is theirs, too."
    history = torch.tensor(rng.integers(0, 64, (1, 20)))
    names = ('temperature', 'top_k', 'top_p', 'min_p', 'typical_p', 'repetition_penalty')
    asked = {o: getattr(cfg, o) for o in names if getattr(cfg, o)} | {'top_k': cfg.top_k}  # their default is 50
    out = gpt2.generate(history, do_sample=True, max_new_tokens=1, return_dict_in_generate=True, output_scores=True,
                        output_logits=True, attention_mask=torch.ones_like(history), **asked)
    logits, used = out.logits[0].double().numpy(), np.isin(np.arange(64), history)[None]
    assume(not on_an_edge(logits, cfg, used, 1e-5))  # they count in float32
    np.testing.assert_allclose(distribution(logits, cfg, used), out.scores[0].double().softmax(-1).numpy(), atol=1e-6)


# --- each control
@settings(**GRID)
@given(rows)
def test_off_means_off(rng):
    logits = random_logits(rng)
    used = random_used(rng, logits)
    for off in (dict(), dict(top_p=1.), dict(top_k=512), dict(typical_p=1.), dict(min_p=0.), dict(penalty_context=3)):
        assert np.array_equal(distribution(logits, SamplingConfig(**off), used), distribution(logits, SamplingConfig(), None))
        assert not apply_filters(softmax(logits), SamplingConfig(**off))
    assert np.array_equal(apply_repetition_penalty(logits, 1., used), logits)
    np.testing.assert_allclose(distribution(logits, SamplingConfig()), softmax(logits), atol=1e-15)


@pytest.mark.parametrize('changed', [dict(temperature=.5), dict(top_k=3), dict(top_p=.5), dict(min_p=.5), dict(typical_p=.5),
                                     dict(repetition_penalty=1.5)], ids=str)
def test_on_means_on(changed):
    logits = random_logits(np.random.default_rng(0), 2, 30, 2.)
    used = random_used(np.random.default_rng(1), logits)
    plain, bent = (distribution(logits, SamplingConfig(**o), used) for o in ({}, changed))
    assert np.abs(plain - bent).max() > .01


@settings(**GRID)
@given(rows, st.integers(1, 512))
def test_top_k_keeps_exactly_k(rng, top_k):
    p = random_p(rng)
    kept = apply_top_k(p, top_k) > 0
    assert (kept.sum(1) == min(top_k, p.shape[1])).all()
    for b in range(len(p)):
        if not kept[b].all(): assert p[b][kept[b]].min() > p[b][~kept[b]].max()
    assert np.array_equal(apply_top_k(p, top_k)[kept], p[kept])


@pytest.mark.parametrize('top_k', [1, 2, 9, 10, 11, 512])
def test_top_k_around_the_size_of_the_codebook(top_k):
    assert (apply_top_k(np.arange(1., 11.)[None], top_k) > 0).sum() == min(top_k, 10)


@settings(**GRID)
@given(rows, st.integers(1, 20))
def test_top_k_keeps_all_that_tie_with_the_last(rng, top_k):
    p = rng.integers(1, 5, (3, 20)).astype(float)
    kept = apply_top_k(p, top_k) > 0
    for b in range(3): assert kept[b].tolist() == (p[b] >= sorted(p[b])[-top_k]).tolist()


@settings(**GRID)
@given(rows, mass)
def test_top_p_is_the_smallest_set_with_enough_mass(rng, top_p):
    p = random_p(rng)
    kept = apply_top_p(p, top_p) > 0
    for b in range(len(p)):
        held, n = p[b][kept[b]].sum(), kept[b].sum()
        assert n >= 1 and held >= top_p - 1e-12
        best = np.sort(p[b])[::-1]
        assert held == pytest.approx(best[:n].sum(), abs=1e-12)         # no set of that size holds more
        assert n == 1 or best[:n - 1].sum() < top_p + 1e-12             # and a smaller one is not enough


@settings(**GRID)
@given(rows, st.floats(.001, 1))
def test_min_p_keeps_what_is_likely_enough_beside_the_best(rng, min_p):
    p = random_p(rng)
    got = apply_min_p(p, min_p)
    for b in range(len(p)): assert np.array_equal(got[b] > 0, p[b] >= min_p * p[b].max())
    assert np.array_equal(got[got > 0], p[got > 0]) and (got.max(1) == p.max(1)).all()
    assert ((apply_min_p(p, 1.) > 0).sum(1) == 1).all()


@settings(**GRID)
@given(rows, mass)
def test_typical_keeps_the_most_typical_codes(rng, typical_p):
    p = random_p(rng)
    kept, far = apply_typical(p, typical_p) > 0, atypicality(p)
    for b in range(len(p)):
        entropy = -(p[b] * np.log(p[b])).sum()
        np.testing.assert_allclose(far[b], np.abs(-np.log(p[b]) - entropy), atol=1e-9)
        assert kept[b][far[b].argmin()] and p[b][kept[b]].sum() >= typical_p - 1e-12
        if not kept[b].all(): assert far[b][kept[b]].max() <= far[b][~kept[b]].min()
        last = np.where(kept[b], far[b], -1).argmax()
        assert kept[b].sum() == 1 or p[b][kept[b]].sum() - p[b][last] < typical_p + 1e-12


def test_typical_drops_a_likeliest_code_that_is_too_dull():
    p = np.array([[.3, .1, .1, .1, .1, .1, .1, .1]])
    assert (apply_typical(p, .5) > 0)[0].tolist() == [False] + [True] * 5 + [False] * 2


@settings(**GRID)
@given(rows, st.sampled_from(['top_k', 'top_p', 'min_p', 'typical_p']), mass, mass)
def test_filters_are_monotone(rng, name, a, b):
    "The looser of two settings keeps at least what the stricter one keeps."
    p, keep = random_p(rng), sampling.FILTERS[name]
    strict, loose = sorted((a, b), reverse=name == 'min_p')
    if name == 'top_k': strict, loose = int(1 + strict * 100), int(1 + loose * 100)
    assert not ((keep(p, strict) > 0) & (keep(p, loose) == 0)).any()


@settings(**GRID)
@given(rows, st.sampled_from(['top_k', 'top_p', 'min_p', 'typical_p']), mass, st.floats(.01, 100))
def test_filters_do_not_mind_the_sum(rng, name, value, factor):
    "What an earlier filter left does not add up to 1."
    p, keep = random_p(rng), sampling.FILTERS[name]
    if name == 'top_k': value = int(1 + 50 * value)
    cut = sampling.apply_filter(p, name, value)
    assume(cut is None or not sampling.edge_mass(cut, 1e-9).any())
    np.testing.assert_allclose(keep(p * factor, value), keep(p, value) * factor, rtol=1e-9)


def test_top_p_and_typical_of_equal_codes_keep_just_enough_of_them():
    for keep in (apply_top_p, apply_typical):
        assert (keep(np.full((1, 10), .1), .35) > 0)[0].tolist() == [True] * 4 + [False] * 6


@pytest.mark.parametrize('settings, want', [
    (dict(top_k=2, top_p=.55), [1, 0, 0, 0]),     # after top-k 0.57, 0.43. Before it, 0.4 would not have been enough
    (dict(top_p=.6, min_p=.7), [1, 1, 0, 0]),     # both keep 0.4 and 0.3
    (dict(top_k=3, typical_p=.3), [0, 1, 0, 0]),  # of 0.44, 0.33, 0.22 the second is nearest to the entropy
    (dict(temperature=2., min_p=.7), [1, 1, 1, 0])], ids=str)  # square roots: 0.63 0.55 0.45 0.32, the bar at 0.44
def test_the_order_of_the_controls(settings, want):
    assert (distribution(np.log([[.4, .3, .2, .1]]), SamplingConfig(**settings)) > 0)[0].tolist() == [bool(o) for o in want]


@settings(**GRID)
@given(rows, st.floats(.1, 1.9), st.floats(.01, .1))
def test_temperature_is_monotone(rng, temperature, more):
    logits = random_logits(rng, scale=2.)
    def entropy(t):
        p = softmax(apply_temperature(logits, t))
        return -(p * np.log(np.maximum(p, 1e-300))).sum(1)
    assert (entropy(temperature) <= entropy(temperature + more) + 1e-9).all()
    assert np.array_equal(apply_temperature(logits, temperature).argsort(), logits.argsort())


def test_argmax_is_the_limit_of_temperature():
    logits = random_logits(np.random.default_rng(1), 6, 64, 3.)
    p = softmax(apply_temperature(logits, 1e-4))
    assert (p.max(1) > 1 - 1e-9).all()
    assert np.array_equal(p.argmax(1), draw(softmax(logits), SamplingConfig.greedy()).tokens)
    assert softmax(apply_temperature(logits, 1e6)).max() < 1.001 / 64


@settings(**GRID)
@given(rows, st.floats(1.01, 1.9))
def test_penalty_makes_what_was_used_less_likely_and_nothing_else(rng, penalty):
    logits = random_logits(rng, scale=2.)
    used = random_used(rng, logits)
    after = apply_repetition_penalty(logits, penalty, used)
    assert np.array_equal(after[~used], logits[~used]) and (after[used] < logits[used]).all()
    assert (apply_repetition_penalty(logits, penalty + .1, used)[used] < after[used]).all()


@settings(**GRID)
@given(rows, st.integers(1, 12), st.integers(0, 40))
def test_the_window_holds_the_last_tokens(rng, context, n):
    tokens, recent = rng.integers(0, 9, (n, 3)), RecentCodes(3, 9, context)
    for o in tokens: recent.add(o)
    want = [[code in tokens[-context:, b] for code in range(9)] for b in range(3)] if n else np.zeros((3, 9), bool)
    assert np.array_equal(recent.used(), want)


# --- the draw
def chi_square(tokens, p):
    n = len(tokens)
    return (((np.bincount(tokens, minlength=len(p)) - n * p)**2 / (n * p)).sum()).item()


@pytest.mark.parametrize('gumbel', [False, True])
@pytest.mark.parametrize('cfg', [SamplingConfig(), SamplingConfig(temperature=.5), SamplingConfig(temperature=2.),
                                 SamplingConfig(top_k=6), SamplingConfig(top_p=.8), SamplingConfig(top_k=8, top_p=.9),
                                 SamplingConfig(min_p=.2), SamplingConfig(typical_p=.7)],
                         ids=['plain', 'cold', 'hot', 'top_k', 'top_p', 'both', 'min_p', 'typical'])
def test_draws_follow_the_softmax(cfg, gumbel):
    n, k = 40_000, 10
    cfg = replace(cfg, gumbel=gumbel)
    logits = random_logits(np.random.default_rng(4), 1, k, 1.5)
    noise = np.random.default_rng(11).random((n, k) if gumbel else n)
    tokens = draw(np.repeat(distribution(logits, cfg), n, 0), cfg, noise).tokens
    p = reference(logits[0], cfg)
    assert (p[tokens] > 0).all()                                  # what was ruled out is never drawn
    seen = p > 0
    assert chi_square((np.cumsum(seen) - 1)[tokens], p[seen]) < 27.9  # 9 degrees of freedom: once in a thousand


def test_the_chi_square_would_notice():
    p = random_p(np.random.default_rng(4), b=1, k=10, scale=1.5)[0]
    tokens = np.random.default_rng(0).choice(10, 40_000, p=np.sqrt(p) / np.sqrt(p).sum())
    assert chi_square(tokens, p) > 100


@pytest.mark.parametrize('gumbel', [False, True])
def test_the_loop_draws_from_the_softmax(gumbel):
    "Ten thousand tokens in a row from one generator, levels with settings of their own."
    cfg = SamplingConfig(temperature=(1., .7), top_p=(0., .8), gumbel=gumbel)
    logits = random_logits(np.random.default_rng(4), 1, 10, 1.5)
    sampler, answer = Sampler(cfg, [3], 2, 10), torch.tensor(logits)
    tokens = np.array([sampler.next(answer).item() for _ in range(20_000)])
    for q in (0, 1):
        p = reference(logits[0], cfg.at_level(q))
        assert chi_square((np.cumsum(p > 0) - 1)[tokens[q::2]], p[p > 0]) < 27.9


@settings(**GRID)
@given(rows, st.integers(1, 511))
def test_the_dart_never_hits_what_was_ruled_out(rng, n_out):
    k = 512
    p = random_p(rng, b=2, k=k)
    p[:, rng.permutation(k)[:n_out]] = 0
    assert (p[[0, 1], draw(p, SamplingConfig(), np.array([0., 1 - 2**-52])).tokens] > 0).all()


@settings(**GRID)
@given(rows)
def test_margin_is_how_far_the_dart_may_move(rng):
    p = random_p(rng, b=1, scale=1.) * rng.uniform(.1, 1)
    u = np.array([rng.uniform(.05, .95)])
    drawn = draw(p, SamplingConfig(), u)
    margin = drawn.margin.item()
    for step in (-1, 1): assert draw(p, SamplingConfig(), u + step * margin * .99).tokens == drawn.tokens
    assert margin > .04 or any(draw(p, SamplingConfig(), u + step * (margin + 1e-9)).tokens != drawn.tokens
                               for step in (-1, 1))


# --- random numbers
def take(noise, n): return np.stack([noise.next() for _ in range(n)], 1)


def test_noise_is_uniform_and_below_one():
    u = take(RowNoise(range(5)), 20_000)
    assert u.dtype == np.float64 and 0 <= u.min() and u.max() <= 1 - 2**-52
    assert chi_square((u.flatten() * 20).astype(int), np.full(20, .05)) < 43.8
    assert np.abs(np.corrcoef(u) - np.eye(5)).max() < .03  # neighbouring seeds have nothing in common
    both = np.stack([take(RowNoise([1]), 20_000)[0], take(RowNoise([1], stream=1), 20_000)[0]])
    assert np.abs(np.corrcoef(both)[0, 1]) < .03           # nor have two streams of one seed


@pytest.mark.parametrize('shape', [(), (7,)])
def test_noise_does_not_depend_on_blocks_or_company(shape, monkeypatch):
    want = take(RowNoise([5, 6, 2**53 - 1], shape), 300)
    for block in (1, 7, 1000):
        monkeypatch.setattr(RowNoise, 'block', block)
        for i, seed in enumerate((5, 6, 2**53 - 1)): assert np.array_equal(take(RowNoise([seed], shape), 300)[0], want[i])
    assert not np.array_equal(take(RowNoise([1]), 5), take(RowNoise([1 + 2**32]), 5))  # all bits of a seed count


def test_noise_is_the_same_everywhere():
    "PCG64 is fixed by numpy's promise; these figures are what makes an old seed the same sound in a new version."
    assert take(RowNoise([42]), 3)[0].tolist() == pytest.approx([0.9167441575549085, 0.9109866676343232, 0.8765925046098457], abs=1e-15)


# --- the loop, with a prior that is a table: what follows depends on the last two tokens
@dataclass
class TableConfig:
    codebook_size: int = 24
    n_quantizers: int = 4
    n_bands: int = 2


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
        totals = [torch.zeros(len(codes), dtype=torch.long)]
        for t in range(codes.shape[1] - 1): totals.append(codes[:, t] + 3 * (totals[-1] % 24))
        return self.rows(torch.stack(totals, 1))


WAYS = {'plain': SamplingConfig(), 'default': SamplingConfig.default(), 'greedy': SamplingConfig.greedy(),
        'creative': SamplingConfig.creative(), 'top_p': SamplingConfig(top_p=.7), 'cold': SamplingConfig(temperature=.3),
        'gumbel': SamplingConfig(gumbel=True, top_p=.8, top_k=12), 'min_p': SamplingConfig(min_p=.1, temperature=1.5),
        'typical': SamplingConfig(typical_p=.6), 'dull': SamplingConfig(argmax=True, typical_p=.5),
        'everything': SamplingConfig(1.3, 15, .95, .02, .9, repetition_penalty=1.2, penalty_context=3),
        'levels': SamplingConfig(temperature=(.5, 1.5), top_k=(0, 9), top_p=(.9, 0, .8), typical_p=(0, .8, 0), min_p=(0, .1),
                                 repetition_penalty=(1, 1.5, 1), argmax=(False, False, False, True)),
        'some gumbel': SamplingConfig(gumbel=True, argmax=(True, False))}
each_way = pytest.mark.parametrize('cfg', [replace(o, seed=5) for o in WAYS.values()], ids=list(WAYS))


def test_a_row_is_read_again_where_the_prior_is(monkeypatch):
    "Its steps answer on the CPU, wherever it is."
    class Elsewhere(TablePrior):
        def forward(self, codes): raise RuntimeError(f'asked on {codes.device}')
    prior = Elsewhere()
    prior.weight = torch.nn.Parameter(torch.zeros(1, device='meta'))
    monkeypatch.setattr(sampling, 'is_close_call', lambda drawn, *rest: np.ones(len(drawn.tokens), bool))
    with pytest.raises(RuntimeError, match='asked on meta'): sample_code_sequence(prior, 4)


@each_way
def test_one_seed_is_one_sound_whatever_the_batch_size(cfg):
    want = sample_code_sequence(TablePrior(), 64, cfg, n=30, batch_size=30)
    assert want.shape == (30, 64) and want.dtype == torch.long and 0 <= want.min() and want.max() < 24
    for batch_size in (1, 7): assert torch.equal(sample_code_sequence(TablePrior(), 64, cfg, n=30, batch_size=batch_size), want)
    assert torch.equal(sample_code_sequence(TablePrior(), 64, cfg, seed=5 + 12)[0], want[12])
    assert torch.equal(sample_code_sequence(TablePrior(), 20, cfg, n=30), want[:, :20])
    assert cfg.argmax is True or len({tuple(row) for row in want.tolist()}) == 30


def with_and_without_referee(cfg, monkeypatch):
    "Whether batch sizes 1, 7 and 30 agree when rounding depends on them; all a thousand times coarser than it is"
    monkeypatch.setattr(sampling, 'TOLERANCE', 2e-2)
    agree = []
    for referee in (sampling.is_close_call, lambda drawn, *rest: np.zeros(len(drawn.tokens), bool)):
        monkeypatch.setattr(sampling, 'is_close_call', referee)
        a, b, c = (sample_code_sequence(TablePrior(noise=1e-3), 48, cfg, n=30, batch_size=o) for o in (1, 7, 30))
        agree.append(torch.equal(a, b) and torch.equal(a, c))
    return agree


@each_way
def test_rounding_that_differs_with_the_batch_size_changes_nothing(cfg, monkeypatch):
    with_it, without = with_and_without_referee(cfg, monkeypatch)
    assert with_it
    assert cfg.argmax is True or not without  # so the test can fail


@each_way
def test_close_calls_are_rare(cfg):
    prior = TablePrior()
    sample_code_sequence(prior, 96, cfg, n=50)
    assert prior.settled < 96 * 50 * .02


def test_the_first_token_follows_its_distribution():
    prior = TablePrior()
    tokens = sample_code_sequence(prior, 1, n=20_000, batch_size=20_000, seed=0)[:, 0]
    assert chi_square(tokens.numpy(), softmax(prior.table[:1].double().numpy())[0]) < 49.7  # 23 degrees of freedom


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
    with pytest.raises(Stopped, match='token 16 of 50'):  # it is asked once per column of 8
        sample_code_sequence(prior, 50, should_stop=lambda: next(calls) >= 2)
    assert prior.training


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    sample_code_sequence(TablePrior(), 20, n=3)
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(np.random.get_state()[1], before_numpy)


@pytest.mark.parametrize('bad', [torch.nan, torch.inf])
@pytest.mark.filterwarnings('error')
def test_a_prior_that_answers_nan_is_named(bad):
    prior = TablePrior()
    prior.table[:, 3] = bad
    for cfg in WAYS.values():
        with pytest.raises(ValueError, match='NaN'): sample_code_sequence(prior, 5, cfg)
        with pytest.raises(ValueError, match='NaN'): Sampler(cfg, [1], 4, 24).next(prior.table[:1])


# --- the sampler as other loops use it
def answers(n, b=1, k=24): return torch.randn(n, b, k, generator=torch.Generator().manual_seed(n)) * 2


@each_way
def test_a_loop_of_ones_own_draws_the_same(cfg):
    "What `sample_code_sequence` does, done by hand."
    prior = TablePrior().eval()
    cache, tokens, sampler, codes = prior.new_cache(2), None, Sampler(cfg, [5, 6], 4, 24), []
    with torch.inference_mode():
        for _ in range(40):
            tokens = sampler.next(prior.step(tokens, cache))
            assert tokens.shape == (2,) and tokens.dtype == torch.long
            codes.append(tokens)
    assert torch.equal(torch.stack(codes, 1), sample_code_sequence(TablePrior(), 40, cfg, n=2, seed=5))


@each_way
def test_given_codes_count_for_the_penalty_and_use_no_chance(cfg):
    prompt = torch.randint(24, (3, 10), generator=torch.Generator().manual_seed(0))
    one, several, none = (Sampler(replace(cfg, **o), [1, 2, 3], 4, 24) for o in ({}, {}, {'repetition_penalty': 1.}))
    several.feed(prompt)
    for t in range(10): one.feed(prompt[:, t])
    none.t = 10
    with_prompt, again, without = [], [], []
    for o in answers(60, 3):
        with_prompt.append(one.next(o))
        again.append(several.next(o))
        without.append(none.next(o))
    assert torch.equal(torch.stack(with_prompt), torch.stack(again)) and one.t == several.t == none.t == 70
    same = torch.equal(torch.stack(with_prompt), torch.stack(without))
    assert same or cfg.repetition_penalty != 1.  # the same chance: only the penalty can make a difference


def test_a_prompt_makes_its_codes_less_likely():
    sampler, flat = Sampler(SamplingConfig(argmax=True, repetition_penalty=2.), [0], 2, 4), torch.tensor([[4., 3., 2.5, 1.]])
    sampler.feed(torch.tensor([[0, 1, 1]]))           # level 0: 0, 1; level 1: 1
    assert sampler.next(flat).tolist() == [0]         # token 3 belongs to level 1, where 0 is fresh
    assert sampler.next(flat).tolist() == [2]         # token 4 to level 0: of 2, 1.5, 2.5, 1


def test_one_more_number_per_row_leaves_the_codes_alone():
    cfg = SamplingConfig(top_p=.9)
    quiet, asking, numbers = Sampler(cfg, [1, 2], 4, 24), Sampler(cfg, [1, 2], 4, 24), []
    for o in answers(50, 2):
        numbers.append(asking.uniform())
        assert torch.equal(quiet.next(o), asking.next(o))
    numbers = torch.stack(numbers)
    assert numbers.shape == (50, 2) and numbers.dtype == torch.float64 and len(numbers.unique()) == 100
    alone = Sampler(cfg, [2], 4, 24)
    assert torch.equal(torch.cat([alone.uniform() for _ in range(50)]), numbers[:, 1])


def test_a_stream_uses_constant_memory():
    sampler, drawn = Sampler(SamplingConfig.default(), [1], 4, 24), []
    kept = lambda: len(pickle.dumps(sampler.recent))
    before = kept()
    for o in answers(64).repeat(20, 1, 1): drawn += sampler.next(o).tolist()
    assert sampler.t == 1280 and kept() <= before + 16                          # whole numbers that grew by a digit or two
    for level, o in enumerate(sampler.recent): assert set(o.used().nonzero()[1]) == set(drawn[level::4][-64:])


def test_close_calls_go_to_the_referee_of_their_row():
    logits, asked = torch.tensor([[0., 1., 5.], [2., 2. + 1e-6, 0.], [3., 0., 0.]]), []
    def settle(row): return asked.append(row) or torch.tensor([9., 0., 0.])
    assert next_codes(logits, SamplingConfig.greedy(), settle=settle).tolist() == [2, 0, 0] and asked == [1]
    assert next_codes(logits, SamplingConfig.greedy()).tolist() == [2, 1, 0]


# --- is a close call seen? Whoever draws from logits that differ by less than the tolerance must draw the same, or ask
@settings(**GRID | dict(max_examples=300))
@given(rows, st.sampled_from(list(WAYS)), st.integers(0, 3))
def test_what_is_not_a_close_call_survives_rounding(rng, way, q):
    "With a tolerance a hundred times wider, so that there are close calls."
    cfg = WAYS[way].at_level(q)
    logits = np.repeat(random_logits(rng, b=1, k=30, scale=2.), 40, 0)
    used = np.repeat(random_used(rng, logits[:1]), 40, 0)
    noise = None if cfg.argmax else np.repeat(rng.random((1, 30) if cfg.gumbel else 1), 40, 0)
    moved = logits + 5e-3 * rng.choice([-1., 1.], logits.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, 'TOLERANCE', 5e-3)
        asked = []
        alone = None if noise is None else noise[:1]
        first = next_codes(logits[:1], cfg, alone, used[:1], lambda i: asked.append(i) or logits[0])
    if not asked: assert (next_codes(moved, cfg, noise, used) == first).all()


# --- settings
@pytest.mark.parametrize('field, value', [
    ('temperature', 0), ('temperature', .0999), ('temperature', 2.01), ('temperature', float('nan')),
    ('temperature', 'hot'), ('temperature', None), ('temperature', True), ('top_p', -.1), ('top_p', 1.01), ('top_p', 90),
    ('top_k', -1), ('top_k', 513), ('top_k', 2.5), ('top_k', '50'), ('repetition_penalty', .9), ('repetition_penalty', 2.1),
    ('min_p', -.1), ('min_p', 1.1), ('min_p', '5%'), ('typical_p', -.1), ('typical_p', 1.1), ('typical_p', None),
    ('penalty_context', 0), ('penalty_context', 1.5), ('seed', -1), ('seed', 2**53), ('seed', 1.5), ('seed', 'x'),
    ('argmax', 1), ('gumbel', None)])
def test_what_is_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f'{field} is .* must be'): SamplingConfig(**{field: value})


@pytest.mark.parametrize('field, value', [
    ('temperature', .1), ('temperature', 2), ('top_p', 0), ('top_p', 1), ('top_k', 0), ('top_k', 512), ('top_k', np.int64(5)),
    ('min_p', 0), ('min_p', 1), ('typical_p', 0),
    ('typical_p', 1), ('repetition_penalty', 1), ('repetition_penalty', 2), ('penalty_context', 1), ('seed', 0), ('seed', 2**53 - 1), ('seed', None)])
def test_the_ends_of_each_range_are_fine(field, value): assert getattr(SamplingConfig(**{field: value}), field) == value


@pytest.mark.parametrize('given', [dict(seq_len=0), dict(seq_len=97), dict(n=0), dict(batch_size=0), dict(seq_len=4.5),
                                   dict(seed=-3), dict(top_p=2), dict(top_k=1000)], ids=str)
def test_the_loop_refuses_wrong_arguments(given):
    with pytest.raises(ValueError, match=f'{next(iter(given))} is'): sample_code_sequence(TablePrior(), **{'seq_len': 5} | given)


# --- one value per level
@pytest.mark.parametrize('name', PER_LEVEL)
@pytest.mark.parametrize('kind', [list, tuple])
def test_a_setting_may_have_a_value_for_every_level(name, kind):
    values = (True, False, True) if name == 'argmax' else (2, 1, 2) if name == 'top_k' else (1., .5, 1.)
    if name == 'repetition_penalty': values = (1., 1.5, 2.)
    cfg = SamplingConfig(**{name: kind(values)})
    assert getattr(cfg, name) == values and hash(cfg) is not None
    assert [getattr(o, name) for o in cfg.for_levels(5)] == [*values, values[-1], values[-1]]
    assert [o.at_level(1) for o in cfg.for_levels(3)] == cfg.for_levels(3)   # plain ones stay as they are
    with pytest.raises(ValueError, match=f'{name} has 3 values'): cfg.for_levels(2)
    with pytest.raises(ValueError, match=f'{name} has 3 values'): Sampler(cfg, [0], 2, 24)


@pytest.mark.parametrize('name', sorted({o.name for o in fields(SamplingConfig)} - set(PER_LEVEL)))
def test_other_settings_have_one_value(name):
    with pytest.raises(ValueError, match=f'{name} is .* one value'): SamplingConfig(**{name: (1, 1)})


@pytest.mark.parametrize('given', [dict(temperature=(1, 3)), dict(top_p=[.9, -1]), dict(top_k=(1, 2.5)), dict(argmax=(True, 0)),
                                   dict(min_p=(0, None)), dict(typical_p=(.5, (.5,)))], ids=str)
def test_a_wrong_value_of_one_level_is_named(given):
    with pytest.raises(ValueError, match=f'{next(iter(given))} is .* at level 1'): SamplingConfig(**given)


@pytest.mark.parametrize('name', PER_LEVEL)
def test_no_values_at_all_are_refused(name):
    with pytest.raises(ValueError, match=f'{name} is .*per quantizer level'): SamplingConfig(**{name: ()})


def test_gumbel_goes_with_levels_that_draw():
    cfg = SamplingConfig(gumbel=True, argmax=(True, False))
    assert [(o.argmax, o.gumbel) for o in cfg.for_levels(3)] == [(True, False), (False, True), (False, True)]
    for argmax in (True, (True,), (True, True)):
        with pytest.raises(ValueError, match='choose one'): SamplingConfig(gumbel=True, argmax=argmax)


def test_every_level_is_drawn_with_its_own_settings():
    cfg = SamplingConfig(temperature=(.5, 1.5), top_k=(3, 0, 5), argmax=(False, False, False, True), repetition_penalty=(1., 1.5))
    logits, sampler = answers(1)[0], Sampler(cfg, [1], 4, 24)
    noise, recent = RowNoise([1]), [RecentCodes(1, 24, 64) for _ in range(4)]
    for t in range(80):
        level = cfg.at_level(t % 4)
        want = next_codes(logits, level, None if level.argmax else noise.next(), recent[t % 4].used())
        recent[t % 4].add(want)
        assert sampler.next(logits).tolist() == want.tolist()


# --- presets
@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('DISTILL_HOME', str(tmp_path / 'home'))
    return tmp_path / 'home'


def test_presets_are_those_of_the_specification():
    assert preset('default') == SamplingConfig(temperature=1., top_k=50, top_p=.9, repetition_penalty=1.1, penalty_context=64, seed=42)
    assert preset('greedy').argmax and preset('creative') == SamplingConfig(
        temperature=1.2, top_p=.95, repetition_penalty=1.05, penalty_context=128, seed=None)
    assert list(PRESETS) == ['default', 'greedy', 'creative']
    assert preset('Default') == preset('default') and preset('GREEDY') == preset('greedy')    # case does not matter, as in those of one's own


def test_presets_are_saved_listed_loaded_and_forgotten(home):
    assert list_presets() == list(PRESETS) and not home.exists()     # looking makes no folder
    for name, cfg in WAYS.items():
        path = save_preset(f'my {name}', cfg)
        assert path.parent == home / 'presets' and json.loads(path.read_text(encoding='utf-8')) == cfg.to_dict()
    assert list_presets() == [*PRESETS, *sorted(f'my {o}' for o in WAYS)]
    for name, cfg in WAYS.items(): assert preset(f'my {name}') == cfg
    for name in WAYS: delete_preset(f'my {name}')
    assert list_presets() == list(PRESETS) and not any((home / 'presets').iterdir())


def test_saving_again_replaces_and_case_does_not_matter(home):
    save_preset('Warm', SamplingConfig(top_p=.5))
    save_preset('WARM', SamplingConfig(top_p=.6))
    assert list_presets() == [*PRESETS, 'Warm'] and preset('warm') == SamplingConfig(top_p=.6)
    delete_preset('wArM')
    assert list_presets() == list(PRESETS)


def test_a_name_in_another_alphabet_and_in_either_normal_form(home):
    save_preset('Körnig 日本', SamplingConfig(top_k=7))
    assert preset('Ko\u0308rnig 日本').top_k == 7


@pytest.mark.parametrize('name', ['', ' ', '.', '..', 'a/b', 'a\\b', '../a', '.hidden', 'a.', 'a:b', 'a*', 'con', 'COM1', 'x' * 61,
                                  'a\n', ' a', 'a ', '-a', 'a\0', None, 3])
def test_unsafe_names_are_refused(home, name):
    for act in (lambda: save_preset(name, SamplingConfig()), lambda: delete_preset(name)):
        with pytest.raises(ValueError, match='cannot be called'): act()
    with pytest.raises(ValueError, match='there is no preset'): preset(name)
    assert not home.exists()


@pytest.mark.parametrize('name', [*PRESETS, 'Default'])
def test_built_in_presets_stay_as_they_are(home, name):
    for act in (lambda: save_preset(name, SamplingConfig()), lambda: delete_preset(name)):
        with pytest.raises(ValueError, match='built in'): act()
    (home / 'presets').mkdir(parents=True)
    (home / 'presets' / f'{name}.json').write_text('{"top_k": 3}', encoding='utf-8')  # put there by hand
    assert list_presets() == list(PRESETS) and preset('default') == SamplingConfig.default()


@pytest.mark.parametrize('text', ['', '{', '[]', '{"loudness": 11}', '{"temperature": 9}', '\xff'])
def test_a_damaged_preset_is_named_and_the_others_work(home, text):
    save_preset('good', SamplingConfig(top_k=3))
    (home / 'presets' / 'bad.json').write_bytes(text.encode('latin-1'))
    assert list_presets() == [*PRESETS, 'bad', 'good'] and preset('good').top_k == 3
    with pytest.raises(ValueError, match='bad.* cannot be read .*mend or delete .*bad.json'): preset('bad')
    save_preset('bad', SamplingConfig(top_k=4))
    assert preset('bad').top_k == 4


def test_an_unknown_preset_is_answered_with_those_there_are(home):
    save_preset('warm', SamplingConfig())
    with pytest.raises(ValueError, match="no preset 'cold'.*default, greedy, creative, warm"): preset('cold')
    with pytest.raises(ValueError, match="no preset 'cold' of yours"): delete_preset('cold')
    with pytest.raises(ValueError, match='keeps a SamplingConfig'): save_preset('cold', {'top_k': 3})


def test_a_failed_save_leaves_the_old_preset_and_says_so(home, monkeypatch):
    save_preset('warm', SamplingConfig(top_k=3))
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='disk is full.*DISTILL_HOME'): save_preset('warm', SamplingConfig(top_k=9))
    assert preset('warm').top_k == 3 and [o.name for o in (home / 'presets').iterdir()] == ['warm.json']


def test_a_file_where_the_folder_should_be(home):
    home.write_text('not a folder', encoding='utf-8')
    assert list_presets() == list(PRESETS)
    with pytest.raises(OSError, match='DISTILL_HOME'): save_preset('warm', SamplingConfig())


@pytest.mark.parametrize('platform, env, want', [
    ('linux', {'XDG_DATA_HOME': os.path.abspath('xdg')}, Path(os.path.abspath('xdg'), 'distill')),
    ('linux', {'XDG_DATA_HOME': 'relative'}, Path.home() / '.local' / 'share' / 'distill'),
    ('linux', {}, Path.home() / '.local' / 'share' / 'distill'),
    ('darwin', {}, Path.home() / 'Library' / 'Application Support' / 'distill'),
    ('win32', {'LOCALAPPDATA': 'C:/Local'}, Path('C:/Local/distill')),
    ('win32', {}, Path.home() / 'AppData' / 'Local' / 'distill'),
    ('linux', {'DISTILL_HOME': 'here'}, Path('here'))], ids=str)
def test_where_presets_live(platform, env, want, monkeypatch):
    for name in ('DISTILL_HOME', 'XDG_DATA_HOME', 'LOCALAPPDATA'): monkeypatch.delenv(name, raising=False)
    for name, value in env.items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, 'platform', platform)
    assert data_folder() == want


def test_settings_survive_json():
    for cfg in WAYS.values():
        assert SamplingConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
        assert json.loads(json.dumps(cfg.to_dict())) == cfg.to_dict()
    assert SamplingConfig.from_dict({}) == SamplingConfig()
    for wrong in ({'min_q': .1}, {'temperature': 9}, [1], None):
        with pytest.raises(ValueError): SamplingConfig.from_dict(wrong)


def test_seeds():
    assert resolve_seed(0) == 0 and resolve_seed(np.int64(7)) == 7
    assert len({resolve_seed() for _ in range(20)}) == 20
    for wrong in (-1, 1.5, 'x', True, 2**53):
        with pytest.raises(ValueError, match='seed is'): resolve_seed(wrong)


@settings(**GRID)
@given(rows, some_settings)
def test_argmax_with_other_settings(rng, cfg):
    "Temperature, top-k, top-p and min-p cannot change which code is the likeliest; the penalty and typical can, and do."
    logits = random_logits(rng, b=2)
    used = random_used(rng, logits)
    cfg = replace(cfg, argmax=True)
    assume(not on_an_edge(logits, cfg, used))
    got = next_codes(logits, cfg, used=used)
    for b in (0, 1): assert reference(logits[b], cfg, used[b].nonzero()[0])[got[b]] == pytest.approx(
        reference(logits[b], cfg, used[b].nonzero()[0]).max(), abs=1e-12)
    if not 0 < cfg.typical_p < 1:
        assert np.array_equal(got, apply_repetition_penalty(logits, cfg.repetition_penalty, used).argmax(1))
