"What is made from the notebooks and settings.ini is what would be made from them now: package, README, site settings."
import os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKE = """from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export
from nbdev.quarto import refresh_quarto_yml
if __name__=='__main__':
    for step in nbdev_clean, nbdev_export: step.__wrapped__()
    refresh_quarto_yml()"""


def python(*args, cwd=ROOT):
    "Runs Python; fails with what it printed."
    env = {k: v for k, v in os.environ.items() if k!='IN_TEST'}    # nbdev_export does nothing, silently, when it is set
    done = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=dict(env, PYTHONUTF8='1'),
                          capture_output=True, text=True, encoding='utf-8')
    assert done.returncode==0, done.stdout + done.stderr


def tree(folder, pattern):
    "The text of every file under `folder` that matches, lines ending in \\n."
    return {f.relative_to(folder).as_posix(): f.read_text(encoding='utf-8') for f in folder.rglob(pattern)
            if not {'.ipynb_checkpoints', '__pycache__'} & set(f.parts)}


def differing(a, b): return sorted(k for k in a.keys() | b.keys() if a.get(k)!=b.get(k))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A copy of the notebooks and settings, cleaned and exported."
    copy = tmp_path_factory.mktemp('sync')
    shutil.copy(ROOT/'settings.ini', copy)
    shutil.copytree(ROOT/'nbs', copy/'nbs', ignore=shutil.ignore_patterns('_quarto.yml', 'nbdev.yml', '.*'))
    (copy/'distill').mkdir()
    for name in '__init__', '__main__': shutil.copy(ROOT/f'distill/{name}.py', copy/'distill')    # written by hand
    python('-c', MAKE, cwd=copy)
    return copy


def test_notebooks_are_clean(made):
    assert not differing(tree(made/'nbs', '*.ipynb'), tree(ROOT/'nbs', '*.ipynb')), 'run nbdev_clean'


def test_package_is_exported(made):
    assert not differing(tree(made/'distill', '*.py'), tree(ROOT/'distill', '*.py')), 'run nbdev_export'


def test_readme_is_the_index(tmp_path):
    python('.ci/readme.py', tmp_path/'README.md')
    assert tree(tmp_path, 'README.md')['README.md']==(ROOT/'README.md').read_text(encoding='utf-8'), \
        'run python .ci/readme.py'


def test_site_settings(made):
    assert differing(tree(made/'nbs', 'nbdev.yml'), tree(ROOT/'nbs', 'nbdev.yml'))==[], 'delete it and run nbdev_docs'
    link = ROOT/'nbs/_quarto.yml'    # git without symlinks, as on Windows, writes a file that holds the target
    target = os.readlink(link) if link.is_symlink() else link.read_text(encoding='utf-8').strip()
    assert target=='../_quarto.yml'


def test_sidebar_lists_every_notebook():
    "Also in order: the numbered notebooks stand as their numbers say."
    listed = re.findall(r'- (\S+\.ipynb)', (ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    there = sorted(tree(ROOT/'nbs', '*.ipynb'))
    assert sorted(listed)==there
    assert [o for o in listed if o[0].isdigit()]==[o for o in there if o[0].isdigit()]


def test_one_test_command():
    "The README, the script for a clean machine and the workflow run the same line."
    command = 'pip install -e ".[dev]" && pytest'
    for f in 'README.md', '.ci/run', '.github/workflows/test.yml':
        assert command in (ROOT/f).read_text(encoding='utf-8'), f'{f} lacks: {command}'
