"Scores: on files that a model has not learned from and on no others, each by its definition, and in agreement with `fit`."
import json, math
from dataclasses import replace

import pytest
import torch

from distill.audio import AudioError, scan_folder
from distill.export import save_audio
from distill.evaluate import (Estimate, EvaluationReport, FileScore, GeneratedScores, LevelScore, evaluate_model, rebuild, score_file,
                              unseen_files)
from distill.fitting import fit_codes, fit_model
from distill.model import load_model
from distill.pipeline import ClipConfig, decode_codes, encode_waveform
from distill.spectrogram import AudioSpectrogram, log_mel_l1, multi_resolution_stft
from distill.synthesis import synthesise, write_collection

SMALL = dict(vqvae=dict(codebook_size=16, channels=(4, 8, 16, 32), search_steps=0), prior=dict(d_model=32, n_heads=1, n_layers=1))


@pytest.fixture(scope='module')
def sounds(tmp_path_factory): return write_collection(tmp_path_factory.mktemp('sounds'), n_files=12, seed=1)


@pytest.fixture(scope='module')
def loaded(sounds): return fit_model(sounds, epochs=25, seed=5, device='cpu', **SMALL)


@pytest.fixture(scope='module')
def report(loaded, sounds): return evaluate_model(loaded, sounds, n_clips=0)


def copy(files, folder, names=None):
    folder.mkdir()
    for i, f in enumerate(files): (folder/(names[i] if names else f'{i}.flac')).write_bytes(f.path.read_bytes())
    return folder


def remembering(loaded, **files): return replace(loaded, metadata=dict(loaded.metadata, files=files))


# --- which files
def test_only_held_out_files_are_scored(loaded, sounds, report):
    assert [f.name for f in report.files] == loaded.metadata['files']['valid']
    assert report.n_learned == len(loaded.metadata['files']['train']) == 10


def test_new_files_are_scored_too(loaded, sounds, tmp_path):
    for name in ['a.flac', 'b.flac']: (tmp_path/name).write_bytes(next(sounds.rglob('*.flac')).read_bytes())
    model = remembering(loaded, train=['a.flac'], valid=['gone.flac'])
    unseen = unseen_files(model, scan_folder(tmp_path))
    assert [f.name for f in unseen.scored] == ['b.flac'] and [f.name for f in unseen.learned] == ['a.flac']


def test_content_counts_more_than_names(loaded, sounds, tmp_path):
    files = scan_folder(sounds).used
    model = remembering(loaded, train=[f.name for f in files[:3]], train_digests=[f.digest[:16] for f in files[:3]])
    renamed = scan_folder(copy(files[1:6], tmp_path/'renamed'))
    assert [f.name for f in unseen_files(model, renamed).learned] == ['0.flac', '1.flac']
    same_name = scan_folder(copy(files[5:6], tmp_path/'other', [files[0].path.name]))
    model = remembering(loaded, train=[files[0].path.name], train_digests=[files[0].digest[:16]])
    assert not unseen_files(model, same_name).learned


def test_nothing_left_to_score(loaded, sounds):
    files = scan_folder(sounds)
    with pytest.raises(AudioError, match='learned from every usable file.*12'):
        unseen_files(remembering(loaded, train=[f.name for f in files.used]), files)


def test_a_model_that_remembers_nothing_is_scored_on_everything(loaded, sounds):
    assert len(unseen_files(replace(loaded, metadata={}), scan_folder(sounds)).scored) == 12


def test_no_sounds(loaded, tmp_path):
    with pytest.raises(AudioError, match='no sound files found'): evaluate_model(loaded, tmp_path)
    (tmp_path/'a.wav').write_bytes(b'no sound')
    with pytest.raises(AudioError, match='a.wav'): evaluate_model(loaded, tmp_path)
    with pytest.raises(FileNotFoundError, match='there is no folder'): evaluate_model(loaded, tmp_path/'gone')


# --- the figures
def test_mel_by_hand(loaded, sounds, report):
    "All frames of all held-out files in one long row, nothing padded, at their own level"
    spectrogram, errors = AudioSpectrogram(), []
    for file in scan_folder(sounds).used:
        if file.name not in loaded.metadata['files']['valid']: continue
        mel = spectrogram.waveform_to_mel(file.load())
        drawn = loaded.model(mel[None, None]).recon[0, 0].detach().clamp(min=math.log(1e-5))
        errors.append((drawn - mel).abs())
    assert report.mel == pytest.approx(torch.cat(errors, -1).mean().item(), abs=1e-5)
    assert report.mel != pytest.approx(sum(e.mean().item() for e in errors)/len(errors), abs=1e-4)    # not over files


def test_wave_is_of_the_sound_that_is_heard(loaded, sounds):
    file = scan_folder(sounds).used[0]
    wav, spectrogram = file.load(), AudioSpectrogram()
    heard = decode_codes(loaded, encode_waveform(loaded, wav), len(wav))
    by_hand = log_mel_l1(spectrogram.waveform_to_mel(heard), spectrogram.waveform_to_mel(wav))
    score = score_file(loaded, file)
    assert score.wave == pytest.approx(by_hand, abs=0.02) and score.stft == pytest.approx(multi_resolution_stft(heard, wav), abs=0.05)


def test_ceiling_has_no_model_in_it(loaded, sounds):
    file = scan_folder(sounds).used[0]
    untrained = fit_codes(sounds, epochs=1, device='cpu', vqvae=SMALL['vqvae'])
    one, other = score_file(loaded, file), score_file(untrained, file)
    assert one.ceiling == other.ceiling < 0.5 < other.wave and one.mel != other.mel
    assert one.stft_ceiling == other.stft_ceiling < one.stft
    assert 0 < one.phase < one.wave and one.wave < one.mel + one.phase      # a triangle of three spectrograms


def test_fit_and_evaluate_agree(loaded, report):
    "But for the rounding of the spectrograms that `fit` keeps"
    scores = loaded.metadata['scores']
    assert report.mel == pytest.approx(scores['log_mel_l1'], abs=3e-3)
    assert report.bits_per_code == pytest.approx(scores['bits_per_code'], abs=0.02)
    assert report.unigram_bits_per_code == pytest.approx(scores['unigram_bits_per_code'], abs=0.02)
    assert [v for level in report.levels for v in (level.bits, level.unigram)] == \
        pytest.approx([v for pair in scores['bits_by_level'] for v in pair], abs=0.05)
    assert [level.used for level in report.levels] == pytest.approx(scores['codes_used'], abs=0.07)
    assert 0 < report.train_bits_per_code < 10 and report.gap == report.bits_per_code - report.train_bits_per_code


def test_the_same_from_a_file(loaded, sounds, report, tmp_path):
    assert evaluate_model(load_model(loaded.save(tmp_path/'a.distill'), 'cpu'), sounds, n_clips=0) == report


def test_elsewhere(loaded, tmp_path):
    "A foreign folder: all of it, the prior's bits, no unigram"
    save_audio(tmp_path/'bell.wav', synthesise('bells', seed=7, seconds=1.5))
    report = evaluate_model(loaded, tmp_path, n_clips=3, clip=ClipConfig(duration_s=0.8))
    assert (len(report.files), report.n_learned, report.unigram_bits_per_code, report.gain) == (1, 0, None, None)
    assert report.memorisation is report.gap is report.generated.new is None and report.n_clips == 3
    assert 0 < report.bits_per_code < 10 and report.bits_per_code == pytest.approx(sum(o.bits for o in report.levels)/4, abs=1e-4)
    assert 'needs the training files' in str(report)


def test_without_a_prior(loaded, sounds):
    report = evaluate_model(replace(loaded, prior=None, prior_config=None), sounds)
    assert report.bits_per_code is None and report.gain is None and all(o.bits is None for o in report.levels)
    assert report.n_clips == 0 and report.generated is report.memorisation is None
    assert 'no prior yet' in str(report)


@pytest.mark.parametrize('n', [1, 511, 512, 513, 47_999, 48_000, 51_200, 102_400, 102_401])
def test_rebuilt_is_as_long_as_it_was(n):
    spectrogram = AudioSpectrogram()
    mel = spectrogram.waveform_to_mel(synthesise('textures', seed=1, seconds=2.5)[:n])
    for piece in 20, 100, 5625:
        again = rebuild(spectrogram, mel, n, piece_frames=piece)
        assert again.mel.shape == mel.shape and again.wav.shape == (n,)


def test_pieces_are_joined_without_a_mark():
    spectrogram, wav = AudioSpectrogram(), synthesise('strings', seed=2, seconds=3.)
    mel = spectrogram.waveform_to_mel(wav)
    whole, pieces = (log_mel_l1(rebuild(spectrogram, mel, len(wav), piece_frames=n).mel, mel) for n in (5625, 60))
    cut = log_mel_l1(rebuild(spectrogram, mel, len(wav), piece_frames=60, margin=0).mel, mel)
    assert pieces < 1.1*whole and pieces < cut
    once = rebuild(spectrogram, mel, len(wav)).wav
    assert log_mel_l1(spectrogram.waveform_to_mel(once), mel) == pytest.approx(whole, abs=0.02)     # the sound is that of the spectrogram


# --- the report
MADE = EvaluationReport(
    'm', 'f', (FileScore('a', 10, 1.0, 1.5, 0.5, 2.0, 0.7), FileScore('b', 30, 2.0, 2.5, 0.1, 3.0, 0.9)), 3, 0.4, 1.75, 2.25, 0.2, 2.75, 0.85,
    (LevelScore(0.5, 7.0, 3.0, 4.0), LevelScore(1.0, 9.5, 5.0, 5.0)), 4.0, 4.5, 3.5, (), 2,
    GeneratedScores(Estimate(0.25, 0.01), Estimate(0.125, 0.02), None, Estimate(0.9, 0.05)))


def test_report_as_text():
    text = str(MADE)
    for words in ('m on 2 files', '3 it has learned from', '1.750     2.250     0.200', '2.750     0.850', '50%      100%', '4.000 bits',
                  'unigram 4.500: 11% fewer', 'a gap of 0.500', '2 clips', 'distance 0.250 ± 0.010', 'held-out too few', 'diversity 0.900'):
        assert words in text, words
    assert '11% more' not in text and '25% more' in str(replace(MADE, bits_per_code=5.0, unigram_bits_per_code=4.0))
    assert max(map(len, text.splitlines())) < 100


def test_report_as_json():
    d = json.loads(json.dumps(MADE.to_dict()))
    assert d['mel'] == 1.75 and d['gain'] == pytest.approx(1/9) and d['files'][1]['name'] == 'b' and d['levels'][0]['used'] == 0.5
    assert d['generated']['distance'] == dict(value=0.25, error=0.01) and d['generated']['held_out'] is None and d['gap'] == 0.5
    bare = replace(MADE, bits_per_code=None, unigram_bits_per_code=None, train_bits_per_code=None, generated=None)
    assert json.loads(json.dumps(bare.to_dict()))['gain'] is None


def test_report_as_picture():
    import matplotlib.pyplot as plt
    axes = MADE.show()
    assert list(axes[0].lines[0].get_ydata()) == [2.0, 1.0] and len(axes[1].patches) == 4
    replace(MADE, levels=(LevelScore(0.5, 7.0),)).show()
    plt.close('all')


def test_progress_never_goes_back(loaded, tmp_path):
    save_audio(tmp_path/'bell.wav', synthesise('bells', seed=7, seconds=1.))
    said = []
    evaluate_model(loaded, tmp_path, lambda fraction, text: said.append((fraction, text)))
    assert [f for f, _ in said] == sorted(f for f, _ in said) and said[-1][0] == 1 and any('bell.wav' in t for _, t in said)
