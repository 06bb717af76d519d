"Does a model play its training sounds back? What is nearest, what is near, and who is accused."
import itertools, json, math, re, weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from distill.audio import scan_folder
from distill.export import save_audio
from distill.evaluate import (CHANCE, Clip, CopyPair, Distances, EvaluationReport, FileScore, LevelScore, MemorisationReport,
                              MomentSearch, Sounds, Unseen, copied_share, copy_bound, cut_moments, cut_sounds, describe_moments,
                              evaluate_model, find_copies, kernel_distance, level_free, longest_run, mean_distance, model_card,
                              moment_frames, rebuild, same_columns, score_generated, unseen_files)
from distill.fitting import fit_codes, fit_prior
from distill.pipeline import ClipConfig, generate_clips
from distill.prior import prior_training_config
from distill.spectrogram import AudioSpectrogram
from distill.synthesis import synthesise
from distill.training import TrainingConfig
from distill.vqvae import reconstruct_mel

SPECTROGRAM, FLOOR = AudioSpectrogram(), math.log(1e-5)


def draw(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(folder, seeds):
    "Sounds of two kinds, in turn"
    for i, seed in enumerate(seeds):
        family, seconds = (('bells', 0.9), ('drums', 0.4))[i % 2]
        save_audio(folder/f'{i:02}.flac', synthesise(family, seed=seed, seconds=seconds))
    return folder


@pytest.fixture(scope='module')
def sounds(tmp_path_factory): return write(tmp_path_factory.mktemp('sounds'), range(14))


@pytest.fixture(scope='module')
def codes(sounds):
    "Stage 1, good enough to tell sounds apart"
    return fit_codes(sounds, epochs=90, seed=1, device='cpu', vqvae=dict(codebook_size=32, channels=(4, 8, 16, 32), search_steps=0, listening_steps=0),
                     training=TrainingConfig(learning_rate=8e-3))


SMALL = dict(d_model=64, n_heads=2, n_layers=2, max_columns=6, dropout=0.0)


@pytest.fixture(scope='module')
def fresh(codes, sounds):
    "A prior that stops early"
    return fit_prior(codes, sounds, epochs=20, seed=1, prior=dict(SMALL, dropout=0.2))


@pytest.fixture(scope='module')
def parrot(codes, sounds, tmp_path_factory):
    "A prior that knows five files by heart, and the folder of these"
    folder = tmp_path_factory.mktemp('five')
    for name in ('00.flac', '01.flac', '02.flac', '03.flac', '04.flac'): (folder/name).write_bytes((sounds/name).read_bytes())
    files = scan_folder(folder).used
    remembered = dict(train=[f.name for f in files[:4]], valid=[files[4].name], train_digests=[f.digest[:16] for f in files[:4]])
    alone = replace(codes, metadata=dict(codes.metadata, files=remembered))
    training = prior_training_config(learning_rate=4e-3, weight_decay=0.0, keep='last', patience=1.0, validations=1)
    return fit_prior(alone, folder, epochs=350, seed=1, training=training, prior=SMALL), folder


# --- moments
@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.sampled_from([16, 48, 64, 128]), st.integers(16, 60), st.integers(1, 20))
def test_a_moment_has_no_level(gain, bands, frames, hop):
    mel, length = 2 * draw(bands, frames, seed=frames) - 2, 16
    vectors = level_free(mel, length, hop)
    assert vectors.shape == ((frames - length) // hop + 1, 32 * length // 4)
    assert torch.allclose(vectors, level_free(mel + gain, length, hop), atol=1e-4)


def test_moments_tell_sounds_apart():
    mels = [SPECTROGRAM.waveform_to_mel(synthesise(family, seed=2, seconds=1.)) for family in ('drums', 'bells', 'strings')]
    vectors = [level_free(mel, 40)[0] for mel in mels]
    for a, b in itertools.combinations(vectors, 2): assert (a - b).square().mean().sqrt() > 0.5
    shifted = level_free(SPECTROGRAM.waveform_to_mel(synthesise('bells', seed=2, seconds=1.)), 40)[2]
    assert (vectors[1] - shifted).square().mean().sqrt() < 0.5


def test_silence_has_no_moments():
    loud = torch.full((128, 60), FLOOR)
    loud[:, 20:40] = 0.
    sounds = Sounds(('a', 'b', 'c'), (torch.full((128, 60), FLOOR), loud, torch.full((128, 5), FLOOR)))
    moments = cut_moments(sounds, 20, FLOOR)
    assert set(moments.sound.tolist()) == {1} and 20 in moments.start.tolist()
    assert all(7 <= start <= 33 for start in moments.start.tolist())             # at least three tenths of it sounds


def test_a_sound_shorter_than_a_moment_is_one():
    assert cut_moments(Sounds(('a',), (torch.zeros(128, 9),)), 20, FLOOR).start.tolist() == [0]


@pytest.mark.parametrize('seconds, frames', [([0.02] * 4, 16), ([60.] * 4, 96), ([0.3, 1., 1., 1.], 92), ([0.2, 0.3, 0.5, 0.9], 28)])
def test_length_of_a_moment(seconds, frames):
    loaded = SimpleNamespace(spectrogram=SPECTROGRAM)
    found = moment_frames(loaded, [SimpleNamespace(seconds=s) for s in seconds])
    assert found % 4 == 0 and abs(found - frames) <= 4


# --- the nearest
@pytest.fixture
def plain(monkeypatch):
    "A search with nothing between it and the spectrograms"
    monkeypatch.setattr('distill.evaluate.reconstruct_mel', lambda model, mel, steps=None: mel)
    return SimpleNamespace(spectrogram=SPECTROGRAM, model=None)


def test_the_nearest_by_hand(plain):
    "Every shift of every file, one by one"
    files, queries, length = [draw(128, n, seed=n) for n in (30, 50, 7)], draw(3, 128, 16, seed=9), 16
    vectors = torch.cat([level_free(q, length) for q in queries])
    search = MomentSearch(plain, vectors, length)
    for i, mel in enumerate(files): search.look(i, mel)
    for q in range(3):
        best = (math.inf,)
        for i, mel in enumerate(files):
            shown = torch.nn.functional.pad(mel, (length, length), value=FLOOR)
            for start in range(shown.shape[1] - length + 1):
                piece = shown[:, start:start + length]
                if piece.max() <= FLOOR + 5: continue
                distance = (level_free(piece, length)[0] - vectors[q]).square().mean().sqrt().item()
                best = min(best, (distance, i, start - length))
        found = [x[q].item() for x in search.found]
        assert found[0] == pytest.approx(best[0], abs=1e-3) and found[1:] == list(best[1:])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 80), st.floats(-2, 2), st.sampled_from([1, 7, 64, 1024]))
def test_a_copy_is_found_wherever_it_is(at, gain, block):
    mel = draw(128, 100, seed=1)
    loaded = SimpleNamespace(spectrogram=SPECTROGRAM, model=None)
    with pytest.MonkeyPatch.context() as m:
        m.setattr('distill.evaluate.reconstruct_mel', lambda model, mel, steps=None: mel)
        search = MomentSearch(loaded, level_free(mel[:, at:at + 20] + gain, 20), 20, block)
        for i, file in enumerate([draw(128, 60, seed=2), mel, draw(128, 60, seed=3)]): search.look(i, file)
    assert search.found.distance[0] < 0.01 and [int(search.found.file), int(search.found.start)] == [1, at]


def test_memory_does_not_grow_with_the_collection(plain, monkeypatch):
    "Of all the training files, one at a time is there"
    alive = weakref.WeakSet()
    def files():
        for i in range(12):
            mel = draw(128, 100, seed=i)
            alive.add(mel)
            assert len(alive) <= 2
            yield mel
    search = MomentSearch(plain, level_free(draw(128, 16), 16), 16)
    for i, mel in enumerate(files()): search.look(i, mel)


# --- near, or too near
def distances(values, each=4): return Distances(torch.tensor(values), torch.arange(len(values)) // each)


def test_bound():
    new, copies = torch.linspace(1, 2, 101), torch.linspace(0.1, 0.5, 101)
    assert copy_bound(new, copies) == pytest.approx(0.48)                          # as near as copies are
    assert copy_bound(new - 0.9, copies) == pytest.approx(0.15)                    # nearer than new sounds are


def test_who_is_accused():
    new, copies = distances([0.8 + 0.02*i for i in range(40)]), distances([0.2 + 0.005*i for i in range(40)])
    share, low = copied_share(copies, new, copies)
    assert share == pytest.approx(0.95, abs=0.03) and low > 0.8
    share, low = copied_share(new, new, copies)
    assert share <= CHANCE and low <= CHANCE
    assert copied_share(distances([5.] * 16), new, copies) == (0., 0.)


def test_one_clip_of_many_moments_is_not_enough():
    "Moments of one clip are one piece of evidence, however many there are"
    new, copies = distances([0.8 + 0.02*i for i in range(40)]), distances([0.2 + 0.005*i for i in range(40)])
    made = Distances(torch.cat([torch.full((30,), 0.2), torch.full((7,), 1.0)]), torch.tensor([0] * 30 + list(range(1, 8))))
    share, low = copied_share(made, new, copies)
    assert share > 0.7 and low <= CHANCE


def test_far_is_far_even_if_the_held_out_are_farther():
    "One odd held-out file: all are nearer than it is, and none is a copy"
    new, copies = distances([3.0 + 0.1*i for i in range(8)], 8), distances([0.2 + 0.005*i for i in range(40)])
    assert copied_share(distances([1.0 + 0.05*i for i in range(16)]), new, copies) == (0., 0.)


def test_the_verdict_is_the_same_every_time():
    made, new, copies = (Distances(draw(48, seed=i).abs(), torch.arange(48) // 4) for i in range(3))
    before = torch.random.get_rng_state()
    assert copied_share(made, new, copies) == copied_share(made, new, copies)
    assert torch.equal(before, torch.random.get_rng_state())


@given(st.lists(st.booleans(), max_size=40))
def test_longest_run(flags):
    assert longest_run(flags) == max(map(len, ''.join('x' if f else ' ' for f in flags).split(' ')), default=0)


# --- how alike two sets are
def by_hand(x, y, groups_x, groups_y, sigma):
    k = lambda a, b: math.exp(-(a - b).square().sum().item() / (2*sigma**2))
    within = lambda s, g: [k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if g[i] != g[j]]
    mean = lambda values: sum(values) / len(values)
    return mean(within(x, groups_x)) + mean(within(y, groups_y)) - 2*mean([k(a, b) for a in x for b in y])


def test_kernel_distance_by_hand():
    x, y, gx, gy = draw(9, 5), draw(7, 5, seed=1) + 0.5, torch.tensor([0, 0, 1, 1, 2, 3, 3, 3, 4]), torch.tensor([0, 1, 1, 2, 3, 3, 4])
    found = kernel_distance(x, y, gx, gy, 2.0)
    assert found.value == pytest.approx(by_hand(x, y, gx, gy, 2.0), abs=1e-6)
    without = [by_hand(x[gx != g], y, gx[gx != g], gy, 2.0) for g in range(5)], [by_hand(x, y[gy != g], gx, gy[gy != g], 2.0) for g in range(5)]
    variance = sum(4/5*torch.tensor(v).var(correction=0).item()*5 for v in without)
    assert found.error == pytest.approx(variance**0.5, rel=1e-5)


def test_kernel_distance_is_unbiased_on_small_sets():
    values = torch.tensor([kernel_distance(draw(5, 8, seed=2*i), draw(5, 8, seed=2*i + 1), torch.arange(5), torch.arange(5), 3.0).value
                           for i in range(200)])
    assert values.mean().abs() < 3*values.std()/200**0.5 and values.min() < 0


def test_too_few_sources():
    two = torch.tensor([0, 0, 1, 1])
    assert kernel_distance(draw(4, 3), draw(4, 3), two, torch.arange(4), 1.0) is None and mean_distance(draw(4, 3), two) is None


def test_mean_distance_by_hand():
    x, g = draw(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    pairs = [(x[i] - x[j]).norm().item() for i in range(6) for j in range(6) if g[i] != g[j]]
    assert mean_distance(x, g).value == pytest.approx(sum(pairs)/len(pairs), abs=1e-5)
    assert mean_distance(x[:1].expand(6, 3), g).value == pytest.approx(0, abs=1e-6)


def test_halves_of_a_collection_are_alike_and_noise_is_not():
    "Six families of bells against six others, against noise, and against one bell again and again"
    make = lambda seeds: tuple(SPECTROGRAM.waveform_to_mel(synthesise('bells', seed=s, seconds=0.5)) for s in seeds)
    as_sounds = lambda mels: Sounds(tuple(range(len(mels))), mels)
    training, held_out = as_sounds(make(range(12))), as_sounds(make(range(100, 112)))
    noise = as_sounds(tuple(SPECTROGRAM.waveform_to_mel(0.1*draw(24_000, seed=i)) for i in range(12)))
    one = as_sounds(make([0]) * 12)
    scores = {name: score_generated(dict(training=training, held_out=held_out, new=held_out, generated=made), 16, FLOOR)
              for name, made in (('alike', as_sounds(make(range(200, 212)))), ('noise', noise), ('one', one))}
    assert abs(scores['alike'].distance.value) < 3*scores['alike'].distance.error
    assert scores['noise'].distance.value > 5*scores['noise'].distance.error and scores['noise'].diversity.value < 0.5
    assert 0.6 < scores['alike'].diversity.value < 1.5 and scores['one'].diversity.value < 0.6
    assert describe_moments(cut_moments(training, 16, FLOOR)).shape[1] == 39


# --- real models
def test_sounds_are_cut_as_the_prior_meets_them(codes, sounds):
    files = scan_folder(sounds).used
    cut = cut_sounds(codes, files, n=28, seed=3)
    assert len(cut.mels) == 28 and set(cut.sources) == {f.name for f in files}
    leads = {int((m == FLOOR).all(0).long().cumprod(0).sum()) for m in cut.mels}
    assert len(leads) > 5 and all(m.shape[1] <= 192 + 15 for m in cut.mels)
    same = cut_sounds(codes, files, n=28, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(cut.mels, same.mels)) and len(cut_sounds(codes, files[:1]).mels) == 8


def test_a_sound_has_its_own_codes(codes, sounds):
    mel = SPECTROGRAM.waveform_to_mel(scan_folder(sounds).used[0].load())
    drawn = reconstruct_mel(codes.model, mel, steps=0)
    near, far = same_columns(codes, drawn, mel, 0, 0.0), same_columns(codes, drawn, mel, 10_000, 0.0)
    assert len(near) == math.ceil(mel.shape[1]/16) and longest_run(near) >= 1 and longest_run(near) > longest_run(far)


def copies_of(loaded, files):
    "What a parrot would say: training files through codes and phase, not on their own grid, and softer"
    clips = []
    for i, file in enumerate(files):
        mel = torch.nn.functional.pad(SPECTROGRAM.waveform_to_mel(0.5*file.load()), (3 + i % 7, 0), value=FLOOR)
        clips.append(Clip(rebuild(SPECTROGRAM, reconstruct_mel(loaded.model, mel, steps=0), (mel.shape[1] - 1)*512).wav))
    return clips


def test_copies_are_copies_and_new_sounds_are_not(codes, sounds, tmp_path):
    unseen = unseen_files(codes, scan_folder(sounds))
    caught = find_copies(codes, unseen, copies_of(codes, unseen.learned))
    assert caught.copies and caught.share > 0.3 and 'It copies' in caught.verdict
    assert sum(p.file == f.name for p, f in zip(sorted(caught.pairs, key=lambda p: p.clip), unseen.learned)) >= 0.8*len(unseen.learned)
    innocent = find_copies(codes, unseen, copies_of(codes, scan_folder(write(tmp_path, range(300, 312))).used))
    assert innocent.copies is False and innocent.share < 0.5*caught.share and innocent.runs['generated'] < caught.runs['generated']


def test_five_files_by_heart(parrot):
    loaded, folder = parrot
    report = evaluate_model(loaded, folder, n_clips=12, clip=ClipConfig(duration_s=1.5)).memorisation
    assert report.copies, report
    assert report.at_least > CHANCE and report.n_held_out == 1 and 'Only 1 held-out file ' in report.verdict


def test_stopped_early(fresh, sounds):
    report = evaluate_model(fresh, sounds, n_clips=12, clip=ClipConfig(duration_s=1.5))
    assert report.memorisation.copies is False, report.memorisation
    assert report.gap is not None and report.n_clips == 12 and report.generated.distance is not None
    again = evaluate_model(fresh, sounds, n_clips=12, clip=ClipConfig(duration_s=1.5))
    assert again == report


def test_clips_from_elsewhere_can_be_asked_about(fresh, sounds):
    unseen = unseen_files(fresh, scan_folder(sounds))
    clips = generate_clips(fresh, ClipConfig(duration_s=0.8), seeds=[1, 2])
    assert len(find_copies(fresh, unseen, clips).pairs) <= 2
    assert find_copies(fresh, Unseen(unseen.scored, ()), clips) is None
    assert find_copies(fresh, unseen, [Clip(torch.zeros(48_000))]) is None


# --- words and pictures
PAIR = CopyPair(3, 0.5, '<b>kick & co</b>.wav', 1.25, 0.2, 4, Clip(0.1*draw(4800)), Clip(0.1*draw(4800, seed=1)))
MADE = MemorisationReport(0.4, 0.3, 0.6, 0.4, 0.7, 9, dict(generated=(0.2, 0.3), new=(0.9, 1.0), copies=(0.1, 0.2)),
                          dict(generated=3.0, new=0.2, copies=2.0), (PAIR,))
REPORT = EvaluationReport('mine', 'f', (FileScore('a', 10, 1.0, 1.5, 0.5, 2.0, 0.8),), 3, 0.4, 1.0, 1.5, 0.5, 2.0, 0.8,
                          (LevelScore(0.5, 7.0, 3.0, 4.0),), 4.0, 4.5, 3.0, ('level 0: dull',), 1, None, MADE)


@pytest.mark.parametrize('fields, copies, words', [
    (dict(), True, ['It copies: 60%', 'more than 40%']),
    (dict(at_least=0.05), False, ['It may copy: 60%', 'at most 5%', 'surely more than 5%']),
    (dict(at_least=0.0, share=0.04), False, ['No sign of copying: 4%', 'at most 5%']),
    (dict(at_least=0.0, sensitivity=0.1), None, ['Cannot be told', '10%']),
    (dict(n_held_out=1), True, ['Only 1 held-out file to compare']),
    (dict(n_held_out=4, at_least=0.0), False, ['Only 4 held-out files to compare'])])
def test_verdict(fields, copies, words):
    report = replace(MADE, **fields)
    assert report.copies is copies and all(w in report.verdict for w in words) and report.verdict in str(report)
    assert ('held-out' in report.verdict) == (report.n_held_out < 5)


def test_report_as_json():
    d = json.loads(json.dumps(REPORT.to_dict()))['memorisation']
    assert d['copies'] is True and d['pairs'][0]['file'] == '<b>kick & co</b>.wav' and d['distances']['new'] == [0.9, 1.0]


def test_report_as_page():
    page = MADE._repr_html_()
    assert page.count('<audio') == 2 and '&lt;b&gt;kick &amp; co' in page and '<b>kick' not in page


def test_page_fits_a_small_window(browser):
    page = browser.new_page(viewport=dict(width=640, height=600))
    try:
        page.set_content(MADE._repr_html_())
        assert page.locator('img').first.evaluate('x => x.complete || new Promise(done => x.onload = () => done(true))')
        assert page.evaluate('document.documentElement.scrollWidth') <= 640 and page.locator('td').first.inner_text().endswith('nats')
    finally: page.close()


def test_report_as_picture():
    import matplotlib.pyplot as plt
    axes = MADE.show()
    assert len(axes) == 3 and len(axes[0].lines) == 4
    plt.close('all')


def test_card(fresh, sounds):
    card = model_card(fresh, REPORT)
    for words in ('# mine', '14 files', 'licence', 'distill fit FOLDER', MADE.verdict, 'level 0: dull', '| 1.500 | 0.500', f'`{fresh.fingerprint}`'):
        assert words in card, words
    assert card.count('\n## ') == 7 and '| – |' in card                               # no generated scores there
    size = f'--levels {fresh.vqvae_config.n_quantizers} --codes {fresh.vqvae_config.codebook_size} --width {fresh.prior_config.d_model} --layers {fresh.prior_config.n_layers}'
    how = lambda **training: re.search('distill (fit|train) FOLDER.*', model_card(replace(fresh, training_config=training), REPORT))[0]
    assert how(seed=3, base=None, dataset=dict(speed_semitones=2.0, mix_probability=0.25, eq_db=3.0)).endswith(f' --seed 3 {size} --from-scratch --varispeed 2 --mix 0.25 --eq 3')
    assert how(seed=3, base=dict(name='all kinds'), dataset=dict(speed_semitones=0.0)).endswith(f' --seed 3 {size}')
    stages = dict(stage_1=dict(batch_size=8, learning_rate=1e-3), stage_2=dict(batch_size=16, learning_rate=3e-4))
    assert how(**stages, dataset=dict(valid_fraction=0.1)).endswith(' --batch-size 8,16 --learning-rate 0.001,0.0003 --held-out 0.1')
    assert '--width' not in model_card(replace(fresh, prior=None, prior_config=None), REPORT)
    assert 'distill train FOLDER' in model_card(replace(fresh, prior=None), REPORT)
    bare = model_card(replace(fresh, metadata={}, training_config={}), replace(REPORT, memorisation=None, warnings=()))
    assert 'Not checked' in bare and 'well used' in bare and 'unknown' in bare
