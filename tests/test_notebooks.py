"Runs every notebook in nbs/ with nbdev's own runner, then the filters that make its page: a process and a test for each."
import os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(ROOT).parts))
SECONDS = 900    # then it hangs
RUN = """import sys
from pathlib import Path
from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.processors import FilterDefaults
from nbdev.test import test_nb
if __name__=='__main__':
    cfg, nb = get_config(), Path(sys.argv[1])
    run = 'exec_doc' in nb.read_text(encoding='utf-8')    # when its page is made
    if not run and not test_nb(nb, skip_flags=cfg.tst_flags.split(), force_flags=sys.argv[2:], basepath=cfg.config_path)[0]: sys.exit(1)
    FilterDefaults()(read_nb(nb))"""


def name(nb): return nb.relative_to(ROOT/'nbs').with_suffix('').as_posix()


def run(nb, flags=()):
    "Runs the notebook `nb`; what it printed if it failed, else nothing."
    try: r = subprocess.run([sys.executable, '-c', RUN, str(nb), *flags], cwd=ROOT, capture_output=True, text=True,
                            encoding='utf-8', errors='replace', timeout=None if flags else SECONDS,
                            env=dict(os.environ, PYTHONUTF8='1'))
    except subprocess.TimeoutExpired: return f'not done after {SECONDS} seconds'
    return r.returncode and (r.stdout + r.stderr or f'exit code {r.returncode}')


def test_there_are_notebooks(): assert NBS


@pytest.mark.parametrize('nb', NBS, ids=name)
def test_notebook(nb, request):
    failure = run(nb, ['slow'] if request.config.getoption('--slow') else [])
    assert not failure, f'{name(nb)}\n{failure}'


def test_a_failing_notebook_fails(tmp_path):
    "The runner above tells a good notebook from a bad one, and does not run cells that are flagged slow."
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    def fails(*cells, flags=()):
        nbformat.write(new_notebook(cells=[new_code_cell(c) for c in cells]), tmp_path/'a.ipynb')
        return run(tmp_path/'a.ipynb', flags)
    assert not fails('assert 1')
    assert 'AssertionError' in fails('assert 1', 'assert not 1')
    assert not fails('#| slow\nassert not 1')
    assert fails('#| slow\nassert not 1', flags=['slow'])
