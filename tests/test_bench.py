"The bench: a job in a process of its own, its memory measured alone, the plain recipe and ours under the same conditions."
import json, subprocess, sys, threading, time
from dataclasses import asdict, replace

import pytest

from distill import bench
from distill.bench import RecipeResult, RecipeTable, bench_recipes, format_table, peak_memory, run_apart
from distill.synthesis import write_collection

SMALL = dict(vqvae=dict(codebook_size=16, channels=(4, 8, 16, 32)), prior=dict(d_model=32, n_heads=1, n_layers=1))


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
