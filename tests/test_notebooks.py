"Runs every notebook in nbs/ with nbdev's own runner, then the filters that make its page: a process and a test for each."
import io, multiprocessing, os, sys, traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(ROOT).parts))
SECONDS = 900    # then it hangs

# a process begins with what all notebooks import; of `distill`, each imports what it needs itself
PROCESSES = multiprocessing.get_context('forkserver' if sys.platform=='linux' else 'spawn')    # elsewhere, it is not safe to fork after them
if sys.platform=='linux':
    PROCESSES.set_forkserver_preload(['nbdev.test', 'nbdev.processors', 'nbdev.showdoc', 'execnb.shell', 'fastcore.test', 'torch', 'torchaudio',
                                      'vector_quantize_pytorch', 'matplotlib.pyplot', 'ipywidgets', 'accelerate', 'safetensors.torch', 'soundfile'])


def name(nb): return nb.relative_to(ROOT/'nbs').with_suffix('').as_posix()


def work(nb, flags, said):
    "In a process of its own: runs a notebook, and writes what went wrong to a file."
    from execnb.nbio import read_nb
    from nbdev.config import get_config
    from nbdev.process import NBProcessor
    from nbdev.processors import FilterDefaults, _do_eval, _want_doc
    from nbdev.test import test_nb
    os.chdir(ROOT)
    out, cfg = io.StringIO(), get_config()
    with redirect_stdout(out), redirect_stderr(out):
        try:
            cells = [c for c in NBProcessor(nb).nb.cells if c.cell_type=='code']
            made = any(map(_want_doc, cells)) and all(map(_do_eval, cells))    # then all of them run when its page is made
            ok = made or test_nb(nb, skip_flags=cfg.tst_flags.split(), force_flags=flags, basepath=cfg.config_path)[0]
            if ok: FilterDefaults()(read_nb(nb))
        except BaseException:
            ok = False
            traceback.print_exc()
    if not ok: said.write_text(out.getvalue() or 'it failed, and said nothing', encoding='utf-8')
    sys.exit(not ok)


def run(nb, said, flags=()):
    "Runs the notebook `nb`; what it printed if it failed, else nothing."
    process = PROCESSES.Process(target=work, args=(nb, list(flags), said))
    with mock.patch.dict(os.environ, PYTHONUTF8='1'): process.start()
    process.join(None if flags else SECONDS)
    if process.is_alive(): process.kill(); return f'not done after {SECONDS} seconds'
    return process.exitcode and (said.read_text(encoding='utf-8') if said.exists() else f'exit code {process.exitcode}')


def test_there_are_notebooks(): assert NBS


@pytest.mark.parametrize('nb', NBS, ids=name)
def test_notebook(nb, request, tmp_path):
    failure = run(nb, tmp_path/'said', ['slow'] if request.config.getoption('--slow') else [])
    assert not failure, f'{name(nb)}\n{failure}'


def test_a_failing_notebook_fails(tmp_path):
    "The runner above tells a good notebook from a bad one, and does not run cells that are flagged slow."
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    def fails(*cells, flags=()):
        nbformat.write(new_notebook(cells=[new_code_cell(c) for c in cells]), tmp_path/'a.ipynb')
        return run(tmp_path/'a.ipynb', tmp_path/'said', flags)
    assert not fails('assert 1')
    assert 'AssertionError' in fails('assert 1', 'assert not 1')
    assert not fails('#| slow\nassert not 1')
    assert fails('#| slow\nassert not 1', flags=['slow'])
