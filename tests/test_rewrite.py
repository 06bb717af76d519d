"Rewriting by the model: only the cells that are named, one seed one result, both sides seen, any length; and the commands for codes."
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import soundfile as sf
import torch
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner

import distill.cli as cli
from distill.api import Distill
from distill.audio import load_audio
from distill.codes import CodeGrid, CodesError, Region, decode, encode
from distill.model import LoadedVQModel
from distill.prior import CodeExcerpt, CodePrior, PriorConfig, fit_guess, gap_examination, look_ahead, next_given, prior_bits, random_gap
from distill.rewrite import Gap, fill_place, rewrite, variations, windows
from distill.sampling import Sampler, SamplingConfig, Stopped
from distill.spectrogram import AudioSpectrogram, SpectrogramConfig
from distill.synthesis import synthesise, write_collection
from distill.vqvae import ConvVQVAE, VQVAEConfig


def made_prior(bands=4, q=3, columns=6, **changes):
    "An untrained prior; its weights are large enough for everything to matter"
    cfg = PriorConfig(**{**dict(codebook_size=16, n_quantizers=q, n_bands=bands, max_columns=columns, d_model=32, n_layers=2, n_heads=2), **changes})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        prior = CodePrior(cfg).eval()
        for weight in prior.parameters(): torch.nn.init.normal_(weight, std=0.15)
        prior.set_vectors(torch.randn(q, 16, cfg.code_dim))
        torch.nn.init.normal_(prior.guess.weight, std=0.02)
    return prior


PRIOR = made_prior()


@pytest.fixture(scope='module')
def m(tmp_path_factory):
    "A model that has learned nothing: its codes come from noise, and its prior knows how often they occur"
    folder, cfg = tmp_path_factory.mktemp('rewrite'), VQVAEConfig(codebook_size=16, n_quantizers=4, channels=(8, 8, 8, 8), search_steps=0)
    write_collection(folder/'sounds', n_files=8, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ConvVQVAE(cfg)
        model(torch.randn(4, 1, 128, 96))
        prior = CodePrior(PriorConfig(codebook_size=16, d_model=32, n_heads=2, n_layers=1, labels=('bells', 'drums'))).eval()
        prior.set_vectors(model.quantizer.codebooks.detach())
        sounds = [CodeExcerpt(torch.randint(16, (9, 32))) for _ in range(60)]
        prior.count(sounds)
        fit_guess(prior, sounds, 40)
    loaded = LoadedVQModel(model.eval(), prior, AudioSpectrogram(), torch.device('cpu'), SpectrogramConfig(), cfg, prior.cfg)
    return SimpleNamespace(folder=folder, loaded=loaded, file=loaded.save(folder/'m.distill'), sound=next((folder/'sounds').rglob('*.flac')),
                           grid=encode(loaded, synthesise('bells', seed=1, seconds=1.)), drum=next((folder/'sounds'/'drums').glob('*.flac')))


@pytest.fixture
def labelled(m, tmp_path):
    "Its prior as if it had learned something about classes"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = CodePrior(m.loaded.prior_config).eval()
        with torch.no_grad(): prior.embedding.label.weight.normal_(std=5)
        prior.set_vectors(m.loaded.model.quantizer.codebooks.detach())
    loaded = replace(m.loaded, prior=prior)
    return SimpleNamespace(loaded=loaded, grid=m.grid, file=loaded.save(tmp_path/'labelled.distill'))


# --- what a gap may see
@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_nothing_sees_what_is_still_to_be_found(seed):
    "Any gap: a code that is to be filled in changes no logits but those of codes that are filled in after it"
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(16, (1, 72), generator=rng)
    known = (torch.rand(24, 3, generator=rng) < 0.5) | (torch.rand(24, 1, generator=rng) < 0.5)
    known = known.flatten()[None]
    if known.all(): return
    missing = (~known[0]).nonzero().flatten()
    t = int(missing[torch.randint(len(missing), (1,), generator=rng)])
    other = codes.clone()
    other[0, t] = (other[0, t] + 1) % 16
    with torch.no_grad(): moved = (PRIOR(other, known=known) - PRIOR(codes, known=known)).abs().amax((0, 2)) > 0
    assert not moved[:t + 1][~known[0, :t + 1]].any()


def test_both_sides_are_seen():
    codes, known = torch.randint(16, (1, 72)), torch.ones(1, 72, dtype=torch.bool)
    known[:, 24:48] = False
    with torch.no_grad():
        before = PRIOR(codes, known=known)[0, 24:48]
        for t in (0, 23, 48, 59):
            other = codes.clone()
            other[0, t] = (other[0, t] + 1) % 16
            assert ((PRIOR(other, known=known)[0, 24:48] - before).abs().amax(1) > 0).all(), t


def test_how_far_it_is_to_what_is_given():
    "Against a loop: the next given column of each band, the one after it, and the share of the way"
    rng = torch.Generator().manual_seed(1)
    done, given = torch.randn(2, 24, 5, generator=rng), torch.rand(2, 24, generator=rng) < 0.4
    there, after, share = next_given(done, given, 4)
    for b in range(2):
        for w in range(6):
            for h in range(4):
                column = next((c for c in range(w, 6) if given[b, c*4 + h]), None)
                at = lambda c: done[b, c*4 + h] if c is not None and c < 6 and given[b, c*4 + h] else torch.zeros(5)
                assert torch.equal(there[b, w, h], at(column)) and torch.equal(after[b, w, h], at(None if column is None else column + 1))
                assert share[b, w, h].item() == pytest.approx(0 if column is None else 1/(column - w + 1))


def test_going_on_from_the_left_knows_nothing_of_gaps():
    "Rows with gaps are read as all others are"
    codes, states = torch.randint(16, (1, 24, 3)), None
    with torch.no_grad():
        states = PRIOR.read(codes)
        left = PRIOR.answer(states, codes)
        other = codes.clone()
        other[0, 20:] = (other[0, 20:] + 1) % 16
        assert torch.equal(PRIOR.answer(PRIOR.read(other), other)[0, :20], left[0, :20])


@pytest.mark.parametrize('columns, bands', [(1, 1), (1, 4), (3, 1), (2, 2)])
def test_small_grids(columns, bands):
    prior = made_prior(bands, 2, max(2, columns))
    codes, known = torch.randint(16, (1, columns*bands*2)), torch.zeros(1, columns*bands*2, dtype=torch.bool)
    known[:, -1] = True
    assert prior(codes, known=known).isfinite().all()
    assert look_ahead(torch.randn(1, columns*bands, 3), bands).shape == (1, columns*bands, 18)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 8), st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_gaps_to_learn_from(seed, q, bands, columns):
    import random
    gap = random_gap(PriorConfig(n_quantizers=q, n_bands=bands, max_columns=columns), random.Random(seed))
    assert gap.shape == (columns, bands, q) and gap.dtype == torch.bool and gap.any()
    assert torch.equal(gap, gap.cummax(-1).values)          # from some level on


# --- place by place
@given(st.integers(0, 2**31))
@settings(max_examples=12, deadline=None)
def test_one_place_at_a_time_is_all_at_once(seed):
    rng = torch.Generator().manual_seed(seed)
    codes, known = torch.randint(16, (24, 3), generator=rng), torch.rand(24, 3, generator=rng) < 0.6
    with torch.inference_mode():
        whole = PRIOR.answer(PRIOR.read(codes[None]), codes[None], known[None])[0]
        gap = Gap(PRIOR, torch.where(known, codes, 0), known, onset=True)
        for place in (~known).any(1).nonzero().flatten().tolist():
            state = gap.state(place)
            for level in range(3):
                assert torch.allclose(gap.logits(place, level, state), whole[place, level], atol=1e-4)
                gap.codes[place, level] = codes[place, level]


def test_what_is_given_is_not_drawn():
    codes, known = torch.randint(16, (24, 3)), torch.ones(24, 3, dtype=torch.bool)
    known[5, 1] = False
    with torch.inference_mode():
        found = set()
        for seed in range(12):
            gap = Gap(PRIOR, codes.clone(), known, onset=False)
            fill_place(gap, 5, Sampler(SamplingConfig(), [seed], 3, 16))
            assert torch.equal(gap.codes[known], codes[known])
            found.add(int(gap.codes[5, 1]))
    assert len(found) > 3


@given(st.sets(st.integers(0, 59), max_size=60), st.integers(1, 60), st.integers(2, 12))
@settings(max_examples=80, deadline=None)
def test_windows_cover_every_column_once(columns, total, context):
    columns, cfg = sorted(c for c in columns if c < total), PriorConfig(max_columns=context)
    found = list(windows(columns, total, cfg))
    assert sum((inside for _, _, inside in found), []) == columns
    for start, end, inside in found:
        assert 0 <= start <= inside[0] and inside[-1] < end <= total and end - start <= context
        assert start == 0 or inside[0] - start >= min(cfg.keep, total - context) or end == total
        assert end == total or end - 1 - inside[-1] >= context//4           # something after it is seen


# --- a grid
@pytest.mark.parametrize('where', [dict(seconds=(0.3, 0.6)), dict(hz=(500, 3000)), dict(levels=(2, 3)), dict(seconds=(0.5, None), hz=(None, 800), levels=1), dict()])
def test_only_the_named_cells(m, where):
    region = m.grid.select(**where)
    made = [rewrite(m.loaded, m.grid, region, SamplingConfig(temperature=2.), seed) for seed in (1, 1, 2, 3)]
    assert made[0] == made[1] and len(set(made)) > 1
    for grid in made:
        assert replace(grid, codes=m.grid.codes) == m.grid and len(grid.diff(m.grid) - region) == 0
        assert int(grid.codes.max()) < 16


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_any_cells_of_any_sound(m, data):
    "Cells here and there, in sounds shorter and longer than the context: no others change, and a seed is a result"
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    grid = replace(m.grid, codes=torch.randint(16, (8, columns := data.draw(st.integers(1, 30)), 4), generator=rng), n_samples=8192*columns)
    region = Region(torch.rand(grid.codes.shape, generator=rng) < data.draw(st.sampled_from([0., 0.02, 0.3])))
    seed = data.draw(st.integers(0, 9))
    made = rewrite(m.loaded, grid, region, SamplingConfig(temperature=2.), seed)
    assert replace(made, codes=grid.codes) == grid and len(made.diff(grid) - region) == 0 and 0 <= int(made.codes.min()) <= int(made.codes.max()) < 16
    assert made == rewrite(m.loaded, grid, region, SamplingConfig(temperature=2.), seed)


def test_any_cells_of_a_long_sound(m):
    grid = m.grid.repeat(6)
    assert grid.columns > 2*m.loaded.prior_config.max_columns
    region = Region(torch.rand(grid.codes.shape, generator=torch.Generator().manual_seed(0)) < 0.3)
    told = []
    made = rewrite(m.loaded, grid, region, seed=1, progress_callback=lambda fraction, text: told.append(fraction))
    assert len(made.diff(grid) - region) == 0 and len(made.diff(grid)) > 0
    assert told == sorted(told) and told[-1] == 1


def test_the_sampler_is_obeyed(m):
    region = m.grid.select(seconds=(0.3, 0.6))
    likeliest = [rewrite(m.loaded, m.grid, region, SamplingConfig.greedy(), seed) for seed in (1, 2)]
    assert likeliest[0] == likeliest[1]
    one = rewrite(m.loaded, m.grid, region, SamplingConfig(top_k=1), 5)
    assert one == likeliest[0]
    first = region.columns.start
    coarse = [rewrite(m.loaded, m.grid, region, SamplingConfig(temperature=2., argmax=(True, False, False, False)), seed) for seed in range(4)]
    assert len({int(c.codes[0, first, 0]) for c in coarse}) == 1 < len(set(coarse))


def test_variations(m):
    hot = SamplingConfig(temperature=2.)
    takes = variations(m.loaded, m.grid, 3, 1, hot, seed=4)
    assert len(set(takes)) > 1 and all(torch.equal(t.codes[..., 0], m.grid.codes[..., 0]) for t in takes)
    assert takes[1] == variations(m.loaded, m.grid, 1, 1, hot, seed=5)[0]


def test_variations_of_a_class(labelled, tmp_path):
    "As `rewrite` draws with it; the same from Python and from the command line"
    m, hot = labelled, SamplingConfig(temperature=2.)
    takes = {label: variations(m.loaded, m.grid, 2, 2, hot, 3, label) for label in ('', 'bells', 'drums')}
    assert len({grid for both in takes.values() for grid in both}) == 6
    assert takes['drums'][1] == rewrite(m.loaded, m.grid, m.grid.select(levels=(2, 3)), hot, 4, 'drums')
    assert takes['drums'] == Distill(m.loaded).vary(m.grid, 2, 2, 3, hot, 'drums', progress=False)
    report('vary', m.file, m.grid.save(tmp_path/'a.npz'), '-o', tmp_path/'t', '--count', 1, '--keep-levels', 2, '--seed', 3, '--temperature', 2, '--top-p', 0, '--label', 'drums')
    heard, made = load_audio(tmp_path/'t'/'a-take3.wav').wav, decode(m.loaded, takes['drums'][0])
    assert (heard - made).abs().max() < 2e-5 < (heard - decode(m.loaded, takes[''][0])).abs().max()
    assert json.loads((tmp_path/'t'/'a-take3.wav.json').read_text(encoding='utf-8'))['label'] == 'drums'


@pytest.mark.parametrize('use, words', [
    (lambda m: rewrite(replace(m.loaded, prior=None), m.grid, m.grid.select()), 'no prior yet'),
    (lambda m: rewrite(replace(m.loaded, prior_config=replace(m.loaded.prior_config, gap_share=0.)), m.grid, m.grid.select()), 'never seen a gap'),
    (lambda m: rewrite(m.loaded, m.grid, None), 'no region'), (lambda m: rewrite(m.loaded, m.grid, m.grid.repeat(2).select()), 'select it on this grid'),
    (lambda m: rewrite(m.loaded, replace(m.grid, model_fingerprint='x'), m.grid.select()), 'another model'),
    (lambda m: rewrite(m.loaded, m.grid, m.grid.select(), label='dogs'), 'knows bells'),
    (lambda m: variations(m.loaded, m.grid, keep_levels=0), 'keep_levels=0'), (lambda m: variations(m.loaded, m.grid, label='dogs'), 'knows bells'), (lambda m: variations(m.loaded, m.grid, 0), 'n=0')])
def test_what_cannot_be_rewritten(m, use, words):
    with pytest.raises(CodesError, match=words): use(m)


def test_stop(m):
    with pytest.raises(Stopped): rewrite(m.loaded, m.grid, m.grid.select(), should_stop=lambda: True)


def test_bits_of_a_gap_count_only_the_gap(m):
    sound = CodeExcerpt(torch.randint(16, (7, 32)))
    rows = gap_examination([sound], m.loaded.prior_config)
    assert rows.counted().sum() == 2*32
    assert not torch.equal(prior_bits(m.loaded.prior, rows)[rows.counted()], prior_bits(m.loaded.prior, rows._replace(known=rows.known & False))[rows.counted()])


# --- commands
def run(*args): return CliRunner().invoke(cli.app, [str(a) for a in args], prog_name='distill')

def report(*args):
    done = run(*args, '--json')
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_commands_do_what_the_methods_do(m, tmp_path):
    codes, out, grid = m.grid.save(tmp_path/'a.npz'), tmp_path/'b.npz', m.grid
    part = ('--from', 0.2, '--to', 0.6, '--low', 300, '--levels', '0,2')
    region = grid.select(seconds=(0.2, 0.6), hz=(300, None), levels=(0, 2))
    cases = {('reverse',): grid.reverse(region), ('shift', '--by', '-1'): grid.shift(-1, region), ('randomise', '--seed', 3): grid.randomise(region, m.loaded, 3),
             ('repeat', '--by', 2): grid.repeat(2, region), ('stretch', '--by', 1.5): grid.stretch(1.5, region), ('crop',): grid.crop(region), ('remove',): grid.remove(region)}
    for (operation, *by), expected in cases.items():
        about = report('edit', m.file, codes, operation, *by, *part, '-o', out)
        assert CodeGrid.load(out) == expected and about['file'] == str(out) and about['cells_changed'] == len(expected.diff(grid)), operation
    report('rewrite', m.file, codes, *part, '--seed', 4, '--top-p', 0.5, '-o', out)
    assert CodeGrid.load(out) == rewrite(m.loaded, grid, region, SamplingConfig(top_p=0.5), 4)
    other = encode(m.loaded, load_audio(m.drum).wav)
    for amount in '0.5', '0,0,1,1':
        report('morph', m.file, codes, m.drum, '--amount', amount, *part, '-o', out)
        assert CodeGrid.load(out) == grid.interpolate(other, [float(x) for x in amount.split(',')] if ',' in amount else 0.5, region)
    report('morph', m.file, codes, m.drum, '--blend', '-o', out)
    assert CodeGrid.load(out) == grid.interpolate(other, 0.5, loaded=m.loaded)


def test_cut_paste_and_compare(m, tmp_path):
    "The commands do what the methods do, with codes and with sounds"
    rng = torch.Generator().manual_seed(2)
    grid, other = (replace(m.grid, codes=torch.randint(16, (8, w, 4), generator=rng), n_samples=8192*w - 100) for w in (6, 5))
    a, b, out, drum = grid.save(tmp_path/'a.npz'), other.save(tmp_path/'b.npz'), tmp_path/'c.npz', encode(m.loaded, load_audio(m.drum).wav)
    part = other.select(seconds=(0.1, 0.4), hz=(None, 800), levels=(0, 2))
    for at, lost in (None, 0), (0.0, 0), (grid.seconds - 0.1, 2), (0.5, 0):
        about = report('paste', m.file, a, b, '--from', 0.1, '--to', 0.4, '--high', 800, '--levels', '0,2', *(('--at', at) if at is not None else ()), '-o', out)
        assert CodeGrid.load(out) == (pasted := grid.copy_from(other, part, at)) != grid, at
        assert (about['cells_changed'], about['cells_left_out']) == (len(pasted.diff(grid)), len(part)*lost//len(part.columns)), at
    differs = grid.diff(pasted)
    told = report('diff', m.file, a, out)
    assert (told['cells'], told['of'], told['differing']) == (len(differs), grid.codes.numel(), differs.mask.nonzero().tolist())
    assert [o['cells'] for o in told['levels']] == differs.mask.sum((0, 1)).tolist() and told['levels'][1]['seconds'] == []
    (seconds,), (hz,) = (told['levels'][0][o] for o in ('seconds', 'hz'))
    assert grid.select(seconds, hz, (0, 2)) == grid.landing(other, part, 0.5)
    report('join', m.file, a, m.drum, b, '-o', out)
    assert CodeGrid.load(out) == grid.concatenate(drum, other)
    said = run('diff', m.file, a, out).stdout
    assert f'0 of {grid.codes.numel()} cells differ (0%)' in said and f'and {CodeGrid.load(out).seconds:.2f} s long' in said
    report('paste', m.file, a, m.drum, '-o', out)
    assert CodeGrid.load(out) == grid.copy_from(drum)
    report('join', m.file, m.sound, m.drum, '-o', tmp_path/'two.wav')
    assert len(load_audio(tmp_path/'two.wav').wav) == encode(m.loaded, load_audio(m.sound).wav).concatenate(drum).n_samples


def test_sound_in_sound_out(m, tmp_path):
    about = report('rewrite', m.file, m.sound, '--from', 0.1, '--to', 0.3, '-o', tmp_path/'a.flac')
    assert len(load_audio(tmp_path/'a.flac').wav) == len(load_audio(m.sound).wav) and about['cells_changed'] > 0
    files = report('vary', m.file, m.sound, '-o', tmp_path/'takes', '--count', 2, '--keep-levels', 2, '--seed', 7)['files']
    assert [f['file'] for f in files] == [str(tmp_path/'takes'/f'{m.sound.stem}-take{seed}.wav') for seed in (7, 8)]


FILES = {    # a line, what its sidecar says, whether there is a seed to tell
    'decode M A --levels 0,1': (dict(made_by='codes', source='a.npz', levels=[0, 1]), None),
    'reconstruct M S': (dict(made_by='reconstruction', source='{S}'), None),
    'edit M A shift --by 2 --from 0.2': (dict(made_by='edit', operation='shift', by=2, region=dict(from_s=0.2), source='a.npz'), None),
    'edit M A randomise --seed 5': (dict(made_by='edit', operation='randomise', region={}), 5),
    'rewrite M S --to 0.3 --seed 6 --top-p 0.5': (dict(made_by='rewrite', region=dict(to_s=0.3), source='{S}', label=''), 6),
    'morph M A D --levels 1 --seed 7': (dict(made_by='morph', other='{D}', amount=0.5, blend=False, region=dict(levels=1)), 7),
    'morph M A D --blend': (dict(made_by='morph', blend=True), None),
    'paste M A D --at 0.3 --high 900': (dict(made_by='paste', source='a.npz', other='{D}', at_s=0.3, region=dict(high_hz=900)), None),
    'join M A D': (dict(made_by='join', sources=['a.npz', '{D}']), None)}

@pytest.mark.parametrize('line', FILES)
def test_every_sound_says_how_it_was_made(m, tmp_path, line):
    "Its form is what was asked for, its findings are told, and nobody takes its sidecar for that of a new sound"
    (tmp_path/'a.npz').write_bytes(m.grid.save(tmp_path/'x.npz').read_bytes())
    names = dict(M=m.file, A=tmp_path/'a.npz', S=m.sound, D=m.drum)
    expected, seed = FILES[line]
    told = report(*(names.get(o, o) for o in line.split()), '-o', out := tmp_path/'b.flac', '--bit-depth', 24, '--sample-rate', 44_100, '--lufs', -30, '--stereo', 0.4, '--title', 'One')
    told = told['files'][0] if 'files' in told else told
    about, file = json.loads((tmp_path/'b.flac.json').read_text(encoding='utf-8')), sf.SoundFile(out)
    fill = lambda x: x.format(S=m.sound.name, D=m.drum.name) if isinstance(x, str) else [fill(o) for o in x] if isinstance(x, list) else x
    assert {k: about.get(k) for k in expected} == {k: fill(v) for k, v in expected.items()}
    assert (about['model'], about['model_fingerprint'], about.get('sampling', {}).get('seed')) == ('m', m.loaded.fingerprint, seed)
    assert (file.subtype, file.samplerate, file.channels, file.title) == ('PCM_24', 44_100, 2, 'One')
    assert about['export'] == dict(bit_depth=24, sample_rate=44_100, lufs=-30, width=0.4, title='One')
    assert file.comment.startswith('Distill ') and ('seed' in file.comment) == (seed is not None)
    assert told['file'] == str(out) and told['channels'] == 2 and told['findings'] == about['findings'] and told.get('seed') == seed
    again = run('generate', m.file, '--from-sidecar', tmp_path/'b.flac.json', '-o', tmp_path/'c.flac')
    assert again.exit_code == 1 and 'does not describe a generated clip' in again.stderr and not (tmp_path/'c.flac').exists()


def test_each_take_has_its_seed(m, tmp_path):
    files = report('vary', m.file, m.sound, '-o', tmp_path/'t', '--count', 2, '--seed', 3, '--keep-levels', 2, '--format', 'ogg', '--artist', 'Me', '--comment', 'mine')['files']
    about = [json.loads((tmp_path/'t'/f'{m.sound.stem}-take{s}.ogg.json').read_text(encoding='utf-8')) for s in (3, 4)]
    assert [(o['made_by'], o['sampling']['seed'], o['keep_levels']) for o in about] == [('vary', 3, 2), ('vary', 4, 2)] and [f['seed'] for f in files] == [3, 4]
    assert (sf.SoundFile(files[0]['file']).artist, sf.SoundFile(files[0]['file']).comment) == ('Me', 'mine')


def test_what_a_check_finds_is_said(m, tmp_path):
    "This model makes no sound"
    done = run('edit', m.file, m.grid.save(tmp_path/'a.npz'), 'reverse', '-o', tmp_path/'b.wav')
    assert done.exit_code == 0 and 'note: silent' in done.stdout


@pytest.mark.parametrize('line, code, words', [
    ('edit M A crop --title One --stereo 0.5 -o b.npz', 2, 'leave out --stereo, --title'), ('join M A A --lufs -14 -o b.npz', 2, 'leave out --lufs'),
    ('rewrite M A --bit-depth 32 -o b.flac', 2, 'flac holds 16 or 24'), ('vary M A --bit-depth 32 --format flac -o takes', 2, 'flac holds 16 or 24'),
    ('paste M A A --lufs 3 -o b.wav', 2, '--lufs'),
    ('edit M A dance -o b.npz', 2, 'none of reverse, shift'), ('edit M A shift -o b.npz', 2, 'wants a number'), ('edit M A crop --by 2 -o b.npz', 2, 'takes none'),
    ('edit M A repeat --by 1.5 -o b.npz', 2, 'not a whole number'), ('edit M A repeat --by 0 -o b.npz', 1, 'times=0'), ('edit M A crop --from 50 -o b.npz', 1, 'outside the grid'),
    ('edit M A remove -o b.npz', 1, 'nothing would be left'), ('edit M A reverse --levels 9 -o b.npz', 1, 'some of 0 to 3'), ('edit M A reverse --from 2 --to 1 -o b.npz', 1, 'the smaller first'),
    ('rewrite M A --temperature 9 -o b.npz', 2, 'from 0.1 to 2'), ('rewrite M A --label dogs -o b.npz', 1, 'dogs'), ('vary M A --label dogs -o takes', 1, 'dogs'), ('vary M A --keep-levels 4 -o takes', 1, '--keep-levels 4: expected 1 to 3'),
    ('paste M A A --at 50 -o b.npz', 1, 'to_s=50'), ('paste M A A --at -1 -o b.npz', 2, '--at'), ('paste M A A --from 50 -o b.npz', 1, 'outside the grid'),
    ('paste M A none.npz -o b.npz', 1, 'there is no file'), ('paste M A A -o A', 1, 'is an input'), ('paste M A X -o b.npz', 1, 'another model'),
    ('paste M A L --from 0.8 -o b.npz', 1, 'say where it goes with --at'), ('join M A -o b.npz', 2, 'two or more'), ('join M A X -o b.npz', 1, 'another model'),
    ('join M A A -o A', 1, 'is an input'), ('diff M A X', 1, 'another model'), ('diff M A none.wav', 1, 'none.wav'),
    ('morph M A A --amount 2 -o b.npz', 2, 'from 0 to 1'), ('morph M A A --amount 0,1 -o b.npz', 1, 'each of 4 levels'), ('rewrite M A -o A', 1, 'is an input'),
    ('rewrite M none.npz -o b.npz', 1, 'there is no file'), ('rewrite M A -o gone/b.npz', 1, 'there is no folder'), ('rewrite M A -o b.xyz', 2, 'b.xyz')])
def test_commands_refuse(m, tmp_path, line, code, words):
    short, other = m.grid.crop(m.grid.select(seconds=(0, 0.3))), replace(m.grid, model_fingerprint='x')
    names = {'M': m.file, 'A': (short if 'L' in line.split() else m.grid).save(tmp_path/'a.npz'), 'L': m.grid.save(tmp_path/'long.npz'), 'X': other.save(tmp_path/'x.npz')}
    words_ = [str(names.get(o, tmp_path/o if '.' in o and not o[0].isdigit() or o == 'takes' else o)) for o in line.split()]
    done = run(*words_, '--json')
    assert done.exit_code == code, done.output
    assert words in json.loads(done.stdout)['error']
    assert 'Traceback' not in done.stderr and not list(tmp_path.glob('b.*'))


@pytest.mark.parametrize('line', ['edit M A shift -o b.npz', 'edit M A crop --by 2 -o b.npz', 'edit M A repeat --by 1.5 -o b.npz', 'vary M A --keep-levels 4 -o takes'])
def test_numbers_are_checked_before_the_model_is_loaded(m, tmp_path, monkeypatch, line):
    import distill.model
    def too_late(*a, **k): raise AssertionError('the work has begun')
    monkeypatch.setattr(distill.model, 'load_model', too_late)
    monkeypatch.chdir(tmp_path)
    done = run(*[{'M': m.file, 'A': m.sound}.get(o, o) for o in line.split()])
    assert done.exit_code in (1, 2) and ('--by' in done.stderr or '--keep-levels' in done.stderr)
    assert 'the work has begun' not in done.stderr and not list(tmp_path.iterdir())
