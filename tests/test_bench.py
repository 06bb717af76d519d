"The bench: jobs in a process of their own, recipes and peers under the same conditions, seams and drifts that are found when they are there."
import itertools, json, math, subprocess, sys, threading, time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from distill import bench
from distill.bench import (LongTable, LoopRow, ModelTable, RecipeResult, RecipeTable, SeamRow, SeamTable, SeedTable, WholeTable,
                           bench_long, bench_model, bench_recipes, bench_seams, bench_seeds, change_curves, fastest, format_table,
                           gpt2_sampler, held_out_sounds, level_and_flatness, loop_contrast, measure_peers, model_to_measure,
                           naive_codes, peak_memory, prior_peers, run_apart, seam_contrast, seam_places, summarise_seams, time_stages,
                           untrained_model)
from distill.pipeline import ClipConfig, generate_clips
from distill.sampling import SamplingConfig, sample_code_sequence
from distill.synthesis import write_collection

SMALL = dict(vqvae=dict(codebook_size=16, channels=(4, 8, 16, 32), search_steps=1, search_sweeps=0), prior=dict(d_model=32, n_heads=1, n_layers=1))


def test_importing_is_cheap():
    code = 'import sys, distill.bench; print(*{"torch", "numpy"} & set(sys.modules))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.split() == []


def test_memory_of_a_job_is_its_own():
    "Also when the process that starts it has used far more before"
    ballast = bytearray(600*2**20)
    ballast[::4096] = b'x'*len(ballast[::4096])
    assert peak_memory() > 600*2**20
    small, large = (run_apart('measure_memory', dict(megabytes=n))['peak']/2**20 for n in (0, 300))
    if sys.platform != 'darwin': assert small < 200
    assert 280 < large - small < 330


def test_last_words_of_a_job_that_fails():
    with pytest.raises(RuntimeError, match=r"(?s)nothing failed \(exit code 1\).*KeyError: 'nothing'"): run_apart('nothing', {})
    with pytest.raises(RuntimeError, match='unexpected keyword'): run_apart('measure_memory', dict(wings=2))


def test_other_output_does_no_harm(monkeypatch, capsys):
    "A library that prints in the middle, even something like JSON"
    @bench.job
    def noisy(progress_callback, **settings):
        print('hello')
        print('{no json')
        progress_callback(0.5, 'ä')
        return settings
    monkeypatch.setitem(bench.JOBS, 'noisy', noisy)
    bench.do_job(json.dumps(['noisy', dict(a=1)]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ['hello', '{no json'] and json.loads(lines[2]) == dict(fraction=0.5, text='ä')
    assert json.loads(lines[3]) == dict(result=dict(a=1))


def test_interrupted_is_over_at_once():
    def stop(fraction, text): raise KeyboardInterrupt
    before, started = threading.active_count(), time.perf_counter()
    with pytest.raises(KeyboardInterrupt): run_apart('measure_memory', dict(megabytes=1), stop)
    assert time.perf_counter() - started < 20 and threading.active_count() == before


def test_recipes(tmp_path):
    said, sounds = [], write_collection(tmp_path/'sounds', n_files=8, seed=1)
    table = bench_recipes(sounds, minutes=0.03, seed=3, device='cpu', progress_callback=lambda f, t: said.append(f), **SMALL)
    plain, ours = table.plain, table.ours
    assert said == sorted(said)
    assert plain.held_out == ours.held_out and len(ours.held_out) == 2 and plain.ceiling == ours.ceiling
    assert (len(plain.steps), len(ours.steps)) == (1, 2) and min(plain.steps + ours.steps) > 0
    assert plain.minutes_stage_1 == 0.03 > ours.minutes_stage_1
    assert plain.bits_per_code is None and ours.bits_per_code > 0 and len(plain.codes_used) == 4
    assert all(50 < r.peak_memory/2**20 < 4000 and r.seconds > 1 for r in (plain, ours))
    assert table.ratio == ours.mel/plain.mel and json.loads(json.dumps(table.to_dict()))['ratio'] == table.ratio


ONE = RecipeResult('plain', 301.5, 5.0, [1234], 2**30, ['a', 'b'], 0.8, 0.9, 0.1, [0.25, 0.5], [8.0, 16.0])
TABLE = RecipeTable('drums', 5.0, 0, ONE, replace(ONE, name='ours', mel=0.4, steps=[900, 2000], bits_per_code=5.0, unigram_bits_per_code=6.5))


def test_table():
    text = str(TABLE)
    for words in ('drums, 5 minutes for each, scored on 2 held-out files', 'ours / plain, mel: 0.500', '900 + 2,000', '1,024', '25% 50%', '6.500', '–'):
        assert words in text, words
    lines = [o for o in text.splitlines()[2:14]]
    assert len({len(o) for o in lines}) == 1
    assert RecipeResult(**json.loads(json.dumps(asdict(TABLE.ours)))) == TABLE.ours


def test_columns():
    assert format_table([('a', 'bb'), ('ccc', 'd', 'e')]) == 'a    bb\nccc   d  e'


@pytest.mark.parametrize('minutes', [0, -1, float('nan')])
def test_wrong_minutes(tmp_path, minutes):
    with pytest.raises(ValueError, match='expected more than 0'): bench_recipes(tmp_path, minutes)


def test_too_few_sounds(tmp_path):
    with pytest.raises(ValueError, match='2 usable sound files are needed'): bench_recipes(tmp_path, 1)
    with pytest.raises(FileNotFoundError): bench_recipes(tmp_path/'gone', 1)


# a model that makes sound

@pytest.fixture(scope='module')
def toy(): return untrained_model(device='cpu', **SMALL)


def test_untrained_model_has_the_usual_size_and_is_always_the_same(toy):
    usual = untrained_model(device='cpu')
    assert (usual.vqvae_config.codebook_size, usual.vqvae_config.n_quantizers) == (128, 4)
    assert (usual.prior_config.d_model, usual.prior_config.n_layers, usual.prior_config.column) == (256, 4, 32)
    again, state = untrained_model(device='cpu', **SMALL), torch.random.get_rng_state()
    assert (toy.fingerprint, toy.prior_fingerprint) == (again.fingerprint, again.prior_fingerprint)
    assert toy.prior_fingerprint != untrained_model(device='cpu', seed=1, **SMALL).prior_fingerprint
    assert torch.equal(torch.random.get_rng_state(), state)


def test_untrained_model_sounds(toy):
    "Codes that stand for nothing would be faster to make into sound than real ones"
    wav = generate_clips(toy, ClipConfig(2.0), [0])[0].wav
    assert wav.std() > 1e-3 and len(toy.model.quantizer.codebooks.flatten(0, 1).unique(dim=0)) == 4 * 16


def test_model_without_prior(toy, tmp_path):
    path = replace(toy, prior=None, prior_config=None).save(tmp_path/'half.distill')
    with pytest.raises(ValueError, match='half.distill has no prior.*train-prior'): model_to_measure(path)
    with pytest.raises(RuntimeError, match='has no prior'): bench_long(path, minutes=0.05)
    with pytest.raises(RuntimeError, match='there is no file'): bench_model(tmp_path/'no.distill')


def test_where_the_time_goes(toy):
    said = []
    table = bench_model(toy, seconds=1.5, rounds=2, progress_callback=lambda f, text: said.append(f))
    assert said == sorted(said) and (table.name, table.trained, table.codes, table.peers) == ('untrained', True, 9*32, None)
    stages = [table.prior, table.decode, table.phase, table.write]
    assert min(stages) > 0 and min(table.load, table.start, table.whole) > 0 and table.first_sound < table.stream
    assert 100 < table.peak_memory/2**20 < 3000
    assert table.real_time == 1.5/table.whole and table.codes_per_second == table.codes/table.prior
    found = json.loads(json.dumps(table.to_dict()))
    assert found['real_time'] == table.real_time and ModelTable(**{k: found[k] for k in asdict(table)}) == table


def test_stages_are_those_of_a_clip(toy, tmp_path, monkeypatch):
    "What is timed stage by stage is the sound that a user gets, up to its last five milliseconds"
    from distill.audio import read_audio
    from distill.pipeline import Clip
    saved = {}
    monkeypatch.setattr(Clip, 'save', lambda self, path: saved.setdefault('wav', self.wav))
    time_stages(toy, 1.3, tmp_path, seed=5)
    want = generate_clips(toy, ClipConfig(1.3), [5])[0].wav
    assert len(saved['wav']) == len(want) and torch.allclose(saved['wav'][:-300], want[:-300], atol=1e-5)
    monkeypatch.undo()
    time_stages(toy, 1.3, tmp_path, seed=5)
    assert len(read_audio(tmp_path/'clip.wav').samples) == len(want)


def test_naive_sampler_draws_the_same_codes(toy):
    for cfg in (SamplingConfig(top_p=0.9), SamplingConfig.greedy(), SamplingConfig.creative()):
        assert torch.equal(naive_codes(toy.prior, cfg, 77, seed=2), sample_code_sequence(toy.prior, 77, cfg, seed=2))


def test_gpt2_draws_as_many_codes(toy):
    pytest.importorskip('transformers')
    sample, before = gpt2_sampler(toy.prior_config, 40), torch.random.get_rng_state()
    for use_cache in (True, False): assert sample(use_cache).shape == (1, 40)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_peers_without_transformers(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    monkeypatch.setattr(bench, 'held_out_sounds', lambda folder: [torch.randn(4800)])
    peers = measure_peers(toy, None, 1, lambda fraction, text: None)
    assert list(peers['prior']) == ['ours', 'naive sampler'] and peers['codes'] == toy.prior_config.max_length and peers['waveform']['synthesised']['sounds'] == 1
    assert 'transformers is not installed' in peers['left_out'][0] and [row['name'] for row in peers['waveform']['synthesised']['rows']] == ['ours', 'Griffin-Lim 32']
    text = str(ModelTable('x', False, 30, 1, 1, 2, None, '0', *[1.0]*9, 2**20, json.loads(json.dumps(peers))))
    for words in ('untrained', 'naive sampler', 'GPT-2 is left out', 'log-mel L1', 'Griffin-Lim 32', 'peak memory 1 MiB'): assert words in text, words


def test_what_is_asked_for_can_be_missed(toy, tmp_path):
    folder = write_collection(tmp_path, n_files=10, seed=1)
    peers = measure_peers(toy, [folder], 1, lambda fraction, text: None)
    across, apart = peers['waveform'][folder.name]['bits']
    assert 0 < across and 0 < apart and across != apart
    slow = ModelTable('x', True, 30, 1, 1, 2, None, '0', *[1.0]*6, 2.0, 1.0, 1.0, 2**20, peers)
    rows = [SeamRow('continue', 'second borders', 9, 1.2, 0.01, 1.0, 0.01), SeamRow('crossfade', 'second borders', 9, 3.0, 0.01, 3.0, 0.01)]
    seams = SeamTable('x', 1, 9.0, rows, LoopRow(2, 0.5, 1.0, 1.0, 1.0), 4.0)
    long = LongTable('x', 1.0, 99, 100, 1.0, [100, 110], [-10.0]*120, [-20.0]*120)
    table = WholeTable(slow, seams, long, SeedTable('x', 3, 10, [(1, 0, 9.0), (3, 4, 9.0)]), (1.0, 1.0))
    met = {o['what']: o['met'] for o in table.checks}
    assert not any(met[what] for what in ('30 s of sound, seed to file', 'sample step at 9 second borders', 'seams of 2 loops within the inside',
                                          'codes that differ at batch sizes 1, 3', 'length of 1 minutes', 'their memory, last tenth to first'))
    assert met['peak memory of that'] and met['spectral flux at 9 second borders'] and met['their drift']
    assert str(table).count('MISSED') >= 6 and json.loads(json.dumps(table.to_dict()))['checks']


def test_all_peers(toy):
    pytest.importorskip('transformers')
    ways, left_out = prior_peers(toy)
    assert list(ways) == ['ours', 'naive sampler', 'transformers, GPT-2', 'transformers, no cache'] and not left_out
    assert all(0 < t < 100 for t in fastest(1, ways).values())


def test_fastest_takes_turns_and_keeps_the_shortest(monkeypatch):
    calls, clock = [], itertools.accumulate([0, 5, 0, 7, 0, 3, 0, 9])
    monkeypatch.setattr(bench, 'time', SimpleNamespace(perf_counter=lambda: next(clock)))
    assert fastest(2, dict(a=lambda: calls.append('a'), b=lambda: calls.append('b'))) == dict(a=3, b=7)
    assert calls == ['a', 'b', 'a', 'b']


def test_held_out_sounds(tmp_path):
    from distill.dataset import load_collection
    folder = write_collection(tmp_path, n_files=10, seed=1)
    names = [f.name for f in load_collection(folder).files.used]
    wavs = held_out_sounds(folder, seconds=0.5)
    assert len(wavs) == 2 < len(names) and all(0 < len(wav) <= 24_000 for wav in wavs)
    assert len(held_out_sounds(folder, most=1)) == 1


# seams

def seamless(seconds=10, seed=0): return torch.randn(48_000*seconds, generator=torch.Generator().manual_seed(seed))*0.1


SECONDS = range(375, 3750, 375)     # in places of 128 samples


def ratios(wav): return seam_contrast(change_curves(wav), SECONDS, 375).mean(0).exp()


def test_nothing_is_found_where_nothing_is():
    assert (ratios(torch.cat([seamless(), seamless(1, 1)])) - 1).abs().max() < 0.1
    assert (ratios(torch.zeros(480_000)) == 1).all()                                         # silence has no seams


@pytest.mark.parametrize('at, found', [(0, True), (700, True), (-700, True), (24_000, False)])
def test_a_click_is_found_at_a_seam_only(at, found):
    wav = seamless()
    wav[48_000 + at::48_000] += 2
    assert (ratios(wav)[0] > 2) == found


def test_a_change_of_spectrum_is_found_without_a_click():
    hum = torch.sin(torch.arange(480_000)*0.05)*0.3 + 1e-3*seamless()
    loud = torch.tensor([0.5, 1.5]).repeat(5).repeat_interleave(48_000)
    soft = torch.nn.functional.avg_pool1d(loud[None], 401, 1, 200, count_include_pad=False)[0]         # over 8 ms: no step
    step, flux = ratios(hum*soft)
    assert flux > 1.5 and step < flux


def test_a_rhythm_is_no_seam():
    "Loud and quiet in turn, once a second: the borders lie in the quiet, and are like what is next to them"
    swell = 0.7 - 0.3*torch.cos(torch.arange(480_000)*2*torch.pi/48_000)
    assert (ratios(seamless()*swell) - 1).abs().max() < 0.25


def test_the_error_is_that_between_clips():
    "Two clips, each the same at all of its borders: as many borders as one likes do not make them more than two"
    one, two = torch.zeros(50, 2), torch.full((50, 2), 0.2)
    row = summarise_seams('continue', 'second borders', [one, two])
    assert row.seams == 100 and row.step == pytest.approx(math.exp(0.1)) and row.step_error == pytest.approx(row.step*0.1, rel=1e-5)
    assert summarise_seams('continue', 'joins', [one, torch.zeros(0, 2)]).step_error is None


def test_seams_too_close_to_the_ends_are_left_out():
    curves = change_curves(seamless(2))
    assert len(seam_contrast(curves, [0, 63, 64, 375, 686, 687, 751], 375)) == 3 and seam_contrast(curves, [], 375).shape == (0, 2)


def test_places_of_seams(toy):
    places = seam_places(toy, ClipConfig(10.0))
    assert places['second borders'] == (list(SECONDS), 375)
    assert places['column borders'][0][:2] == [64, 128]                                      # 16 frames of 512 samples
    joins = seam_places(toy, ClipConfig(10.0, 'crossfade'))['joins']
    assert joins[0][0]*128 == pytest.approx(12*8192 - 1200, abs=64) and (joins[0][1] - joins[0][0])*128 == pytest.approx(12*8192 - 2400, abs=128)


def test_a_full_context_slides_and_an_end_empties_it(toy, monkeypatch):
    "Where the prior reads anew: after 12 columns of a sound, then after every 8, of which 4 were known"
    drawn, read = [], []
    resume = type(toy.prior).resume
    monkeypatch.setattr(type(toy.prior), 'resume', lambda *args, **how: read.append(len(drawn)) or resume(*args, **how))
    from distill.stream import sample_columns
    for column in itertools.islice(sample_columns(toy.prior, SamplingConfig(), [0]), 90): drawn.append(column)
    starts = [0, *(i + 1 for i, column in enumerate(drawn) if column.ended)]
    want = [at for start, end in itertools.pairwise([*starts, 90]) for at in range(start + 12, end, 8)]
    assert read == want and 3 <= len(read) and 3 <= len(starts)


def test_loops():
    turn = torch.sin(torch.arange(48_000)*2*torch.pi*300/48_000)
    assert (loop_contrast(turn) - 1).abs().max() < 0.2
    assert (loop_contrast(turn[:-40])[:, 0] > 3).all()
    with pytest.raises(ValueError, match='a loop of 5000 samples'): loop_contrast(turn[:5000])


def test_seams_of_a_model(toy):
    table = bench_seams(toy, clips=3, seconds=5.0, loop_seconds=1.0)
    assert [(r.stitch, r.where) for r in table.rows] == [('continue', 'second borders'), ('continue', 'column borders'),
                                                         ('crossfade', 'second borders'), ('crossfade', 'joins')]
    assert table.rows[0].seams == 3*4 and table.rows[3].seams == 3*2 and 0 <= table.loop.step_within <= 1
    assert '± ' in str(table) and 'loops of 1 s' in str(table)
    assert json.loads(json.dumps(table.to_dict()))['rows'][0]['step'] == table.rows[0].step > 0
    few = bench_seams(toy, clips=1, seconds=2.0, loop_seconds=1.0)                           # one seam has no error, none has no ratio
    assert few.rows[0].step_error is None and few.rows[3].step is None and '–' in str(few)
    json.dumps(few.to_dict(), allow_nan=False)


def test_seams_of_a_model_are_found(toy, monkeypatch):
    "A renderer that breaks the sound at every second"
    def broken(*args, **settings):
        clips = generate_clips(*args, **settings)
        for clip in clips: clip.wav[48_000::48_000] += 1
        return clips
    monkeypatch.setattr('distill.pipeline.generate_clips', broken)
    seconds, columns, *_ = bench_seams(toy, clips=2, seconds=4.0, loop_seconds=1.0).rows
    assert seconds.step > 1.5 > columns.step


@pytest.mark.parametrize('wrong', [dict(clips=0), dict(seconds=1), dict(seconds=math.nan)])
def test_wrong_seams(toy, wrong):
    with pytest.raises(ValueError, match='expected at least 1 clip of at least 2 seconds'): bench_seams(toy, **wrong)


# ten minutes

def long(**changes):
    n = 600
    return replace(LongTable('x', 10.0, 28_800_000, 28_800_000, 30.0, [2**29]*10, [-20.0 + i % 3 for i in range(n)], [-30.0]*n), **changes)


def test_long_stream(toy):
    table = bench_long(toy, minutes=0.11)
    assert table.samples == table.expected == round(0.11*60*48_000) and len(table.level) == len(table.flatness) == 6 and len(table.memory) == 10
    assert table.memory == sorted(table.memory) and table.growth == table.memory[-1] - table.memory[0]
    found = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert found['drifts'] == table.drifts and {'growth', 'level_trend'} < set(found)


def test_drift():
    steady = long()
    assert not steady.drifts and steady.level_drift[0] == 0 and abs(steady.level_trend) < 0.01 and 'no drift' in str(steady) and 'exact' in str(steady)
    fading = long(level=[-20 - i/60 for i in range(600)])                                   # a dB a minute
    assert fading.drifts and fading.level_drift[0] == pytest.approx(-9, abs=0.1) and fading.level_trend == pytest.approx(-1) and 'it drifts' in str(fading)
    wandering = long(level=[(-20, -45)[i // 60 % 2] + i % 3 for i in range(600)])               # by minutes, and the last one is 25 dB below the first
    assert not wandering.drifts and wandering.level_drift[1] > 5
    noisy = long(flatness=[-30 + i/30 for i in range(600)])
    assert noisy.drifts and noisy.level_drift[0] == 0
    assert '-5 too many or too few' in str(long(samples=28_799_995))
    assert long(level=[-20.0], flatness=[-3.0]).level_trend == 0


def test_level_and_flatness():
    t = torch.arange(48_000)
    assert level_and_flatness(torch.sin(t*2*torch.pi*100/48_000)*0.1)[0] == pytest.approx(-23.01, abs=0.01)
    assert level_and_flatness(seamless(1))[1] > -4 > -40 > level_and_flatness(torch.sin(t*2*torch.pi*100/48_000))[1]
    assert level_and_flatness(torch.zeros(48_000)) == pytest.approx((-120, 0), abs=0.01)


# seeds

def test_seeds(toy):
    said = []
    table = bench_seeds(toy, seeds=7, batch_sizes=(1, 3, 7), columns=14, progress_callback=lambda f, text: said.append(text))
    assert [row[:2] for row in table.rows] == [(1, 0), (3, 0), (7, 0)] and table.codes == 14*32 and len(said) == 3
    assert 'codes that differ' in str(table) and json.loads(json.dumps(table.to_dict()))['seeds'] == 7


def test_seeds_that_differ_are_found(toy, monkeypatch):
    "A sampler whose chance depends on the batch"
    from distill.stream import sample_columns
    monkeypatch.setattr('distill.stream.sample_columns', lambda prior, cfg, seeds: sample_columns(prior, cfg, [s + len(seeds) for s in seeds]))
    first, second = bench_seeds(toy, seeds=2, batch_sizes=(1, 2), columns=2).rows
    assert first[1] == 0 < second[1]


@pytest.mark.parametrize('wrong', [(), (0,), (3, -1)])
def test_wrong_batch_sizes(toy, wrong):
    with pytest.raises(ValueError, match='expected numbers from 1'): bench_seeds(toy, batch_sizes=wrong)


def test_wrong_numbers(toy):
    for wrong in (dict(seconds=0), dict(seconds=math.nan), dict(rounds=0)):
        with pytest.raises(ValueError, match='expected'): bench_model(toy, **wrong)
    for wrong in (0, math.nan):
        with pytest.raises(ValueError, match='such as 10'): bench_long(toy, minutes=wrong)
