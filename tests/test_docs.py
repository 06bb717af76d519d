"The documentation: every link leads somewhere, every name that is mentioned exists, every command that is shown could be run."
import ast, dataclasses, importlib, json, os, re, shlex, subprocess, types, typing
from functools import lru_cache
from pathlib import Path

import pytest
import typer
import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
PAGES = sorted(p for kind in ('*.ipynb', '*.qmd') for p in NBS.rglob(kind) if not any(o[0] in '._' for o in p.relative_to(NBS).parts))
NUMBERED = [p for p in PAGES if re.match(r'\d\d', p.name) and p.parent==NBS]
MADE = re.compile(r'clips/[\w-]+\.(wav|mp3)$')    # files that a page makes when the site is built
NOT_OURS = {'nbdev_clean', 'nbdev_export', 'nbdev_docs', 'drum_cymbal_hard', 'drum_cymbal_soft'}    # other programs, names of recordings
STYLES = {'ROW', 'STYLE', 'LIVE_STYLE'}    # of widgets: nobody would look them up
LINK = re.compile(r'\]\(([^)\s]+)\)|\b(?:src|href)="([^"]+)"')
CODE = re.compile(r'^(```|~~~).*?^\1', re.M | re.S)
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda p: p.relative_to(NBS).as_posix())


# --- reading pages
@lru_cache
def cells(page): return json.loads(page.read_text(encoding='utf-8'))['cells'] if page.suffix=='.ipynb' else []


def text_of(page):
    "The prose of a page, code fences included."
    if page.suffix!='.ipynb': return page.read_text(encoding='utf-8')
    return '\n\n'.join(''.join(c['source']) for c in cells(page) if c['cell_type']!='code')


def code_of(page): return '\n'.join(''.join(c['source']) for c in cells(page) if c['cell_type']=='code')


def slug(heading):    # as pandoc makes it
    words = re.sub(r'[^\w\s.-]', '', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)).strip().lower()
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', words)) or 'section'


def anchors(page):
    names = {slug(h) for h in re.findall(r'^#+ (.+?)(?: \{.*\})?$', CODE.sub('', text_of(page)), re.M)}
    return names | set(re.findall(r'\{#([\w-]+)', text_of(page)))


def wrong_links(page, text, made=MADE):
    "The relative links of a text that lead nowhere."
    found = []
    for target in (a or b for a, b in LINK.findall(CODE.sub('', text))):
        if re.match(r'[a-z][a-z0-9+.-]*:', target) or made.search(target): continue
        path, _, anchor = target.partition('#')
        there = (page.parent/path).resolve() if path else page
        if not there.exists(): found.append(f'{target}: there is no such file')
        elif anchor and there.suffix in ('.ipynb', '.qmd') and anchor not in anchors(there): found.append(f'{target}: no such heading')
    return found


# --- what names there are
def modules(): return [importlib.import_module(f'distill.{p.stem}') for p in sorted((ROOT/'distill').glob('*.py')) if p.stem[0]!='_']


@lru_cache
def known():
    "Every name that the package uses: of modules, classes, functions, arguments, attributes, and words in its texts."
    names = set()
    for p in (ROOT/'distill').glob('*.py'):
        names.add(p.stem)
        for node in ast.walk(ast.parse(p.read_text(encoding='utf-8'))):
            for field in ('id', 'attr', 'arg', 'name', 'asname', 'module'):
                value = getattr(node, field, None)
                if isinstance(value, str): names |= set(value.split('.'))
            if isinstance(node, ast.Constant) and isinstance(node.value, str): names |= set(re.findall(r'\w+', node.value))
    return names


def resolves(name):
    "Whether a dotted name leads to something: `distill.codes.encode`, `Clip.save`, `audio.load_audio`."
    first, *rest = name.split('.')
    starts = [m for m in modules() if m.__name__=='distill.' + first] + [getattr(m, first) for m in modules() if hasattr(m, first)]
    if first=='distill': starts = [importlib.import_module('distill')]
    for thing in starts:
        for part in rest:
            fields = {f.name for f in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()
            if hasattr(thing, part): thing = getattr(thing, part)
            elif part in fields | set(getattr(thing, '__annotations__', {})) | set(getattr(thing, '_fields', ())): thing = None
            elif isinstance(thing, types.ModuleType):
                try: thing = importlib.import_module(f'{thing.__name__}.{part}')
                except ImportError: break
            else: break
        else: return True
    return not starts    # of something else: torch, numpy…


def unknown_names(text, code=''):
    "Names in back-ticks that look like code of this package and occur nowhere in it."
    names, here = known(), set(re.findall(r'\w+', code))
    found = []
    for span in re.findall(r'(?<!`)`([^`\n]+)`(?!`)', CODE.sub('', text)):
        name = re.sub(r'\(.*\)$', '', span.strip())
        if not re.fullmatch(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*', name): continue
        if name in NOT_OURS: continue
        parts = name.split('.')
        looks = '_' in name or re.search(r'[a-z][A-Z]', name)
        if re.search(r'\.(wav|flac|ogg|mp3|aiff|json|npz|distill|safetensors|png|py|ini|yml|ipynb|md|sh|db|npy|toml|pt|part)$', name): continue
        if looks and not set(parts) <= names | here: found.append(span)
        elif len(parts) > 1 and parts[0] not in here and not resolves(name): found.append(span)
    return found


# --- what commands there are
@lru_cache
def program():
    import distill.cli as cli
    return typer.main.get_command(cli.app)


def wrong_commands(text):
    "Lines in shell blocks that the command line would refuse."
    found = []
    for block in shell_blocks(text):
        for line in re.sub(r'\\\n', ' ', block).splitlines():
            for part in re.split(r'\s*(?:&&|\|)\s*', line):
                words = shlex.split(part, comments=True)
                while words and '=' in words[0]: words = words[1:]
                if words[:1]!=['distill']: continue
                command, rest = program(), words[1:]
                while rest and hasattr(command, 'commands'):
                    if rest[0] not in command.commands: break
                    command, rest = command.commands[rest[0]], rest[1:]
                if hasattr(command, 'commands') and rest and not rest[0].startswith('-'): found.append(f'{part}: no command {rest[0]}')
                options = {o for p in command.params for o in [*p.opts, *p.secondary_opts]} | {'--help', '-h', '--version'}
                found += [f'{part}: no option {o}' for o in rest if o.startswith('-') and o.split('=')[0] not in options and not re.match(r'-\d', o)]
    return found


def shell_blocks(text): return re.findall(r'^```(?:bash|sh|shell)\n(.*?)^```', text, re.M | re.S)


def unmade_sidecars(text):
    "Sidecars in shell blocks beside sounds that no line above makes."
    found = []
    for block in shell_blocks(text):
        made = set()
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:2]!=['distill', 'generate']: continue
            given = {a: b for a, b in zip(words, words[1:]) if a[0]=='-'}
            if '--from-sidecar' in given and given['--from-sidecar'] not in {f'{o}.json' for o in made}: found.append(line)
            folder = '--count' in given or given['-o'].endswith('/')
            made.add(given['-o'] if not folder else f"{given['-o'].rstrip('/')}/{Path(words[2]).stem}-seed{given.get('--seed')}.{given.get('--format', 'wav')}")
    return found


def told_otherwise(page):
    "Cells of a session whose stored output shows other commands than they run."
    found = []
    for cell in cells(page):
        if cell['cell_type']!='code': continue
        source, said = ''.join(cell['source']), ''.join(''.join(o.get('text', '')) for o in cell.get('outputs', []))
        shown = re.findall(r'^\$ distill (.*)$', said, re.M)
        if not shown and not re.search(r'^[^#\n]*\bsh\(', re.sub(r'^def sh\(', '', source, flags=re.M), re.M): continue
        texts = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        if shown!=sorted((o for o in texts if o.split(' ')[0] in program().commands and ' ' in o), key=source.index): found.append((shown, source))
    return found


# --- the tests
@each_page
def test_links(page): assert not wrong_links(page, text_of(page))


def test_links_of_the_readme():
    assert not wrong_links(ROOT/'README.md', (ROOT/'README.md').read_text(encoding='utf-8'))


@each_page
def test_names_that_are_mentioned_exist(page): assert not unknown_names(text_of(page), code_of(page))


@pytest.mark.parametrize('page', [*PAGES, ROOT/'README.md'], ids=lambda p: p.name)
def test_commands_that_are_shown_exist(page): assert not wrong_commands(text_of(page) if page.suffix!='.md' else page.read_text(encoding='utf-8'))


@pytest.mark.parametrize('page', [*PAGES, ROOT/'README.md'], ids=lambda p: p.name)
def test_sidecars_that_are_shown_are_made(page): assert not unmade_sidecars(text_of(page) if page.suffix!='.md' else page.read_text(encoding='utf-8'))


@pytest.mark.parametrize('page', NUMBERED, ids=lambda p: p.stem)
def test_a_session_shows_the_commands_that_it_runs(page): assert not told_otherwise(page), 'run the cells again'


def names_of_commands(group, before=''):
    for name, command in group.commands.items():
        if hasattr(command, 'commands'): yield from names_of_commands(command, f'{before}{name} ')
        else: yield before + name


def unexplained(text): return [name for name in names_of_commands(program()) if not re.search(rf'distill {name}(?![\w-])', text)]


def test_the_page_on_the_command_line_has_every_command(): assert not unexplained(text_of(NBS/'howto/command_line.qmd'))


def test_there_is_a_session(): assert sum(''.join(o.get('text', '')).count('$ distill ') for c in cells(NBS/'15_cli.ipynb') for o in c.get('outputs', []))>15


@pytest.mark.skipif(os.name=='nt', reason='a shell of its own')
def test_the_loop_for_a_cluster_runs_as_written(tmp_path):
    "With names that have spaces, and programs that only write down what they are told."
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin'/'sbatch').write_text('#!/bin/sh\nexec sh -c "$2"\n', encoding='utf-8')
    (tmp_path/'bin'/'distill').write_text('#!/bin/sh\nfor word in "$@"; do printf "%s|" "$word"; done\n', encoding='utf-8')
    for program in (tmp_path/'bin').iterdir(): program.chmod(0o755)
    for name in 'rain', 'kitchen drums': (tmp_path/'collections'/name).mkdir(parents=True)
    block, = [b for b in shell_blocks((NBS/'howto/cluster.qmd').read_text(encoding='utf-8')) if 'sbatch' in b]
    env = dict(os.environ, PATH=f"{tmp_path/'bin'}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(['sh', '-ec', block], cwd=tmp_path, env=env, capture_output=True, text=True, encoding='utf-8')
    assert done.returncode==0 and not done.stderr, done.stderr
    for name in 'rain', 'kitchen drums':
        assert f'fit|collections/{name}/|-o|models/{name}.distill|' in (tmp_path/'logs'/f'{name}.json').read_text(encoding='utf-8')


@each_page
def test_title_and_what_it_is_about(page):
    text = text_of(page)
    if text.startswith('---'): assert {'title', 'description'} <= set(next(yaml.safe_load_all(text)))
    else: assert re.match(r'# [^\n]+\n+> [^\n]+', text)


def undocumented(page):
    "Public names of a notebook's module that its page does not show."
    sources = [''.join(c['source']) for c in cells(page) if c['cell_type']=='code']
    name = next(m[1] for s in sources if (m := re.search(r'^#\|\s*default_exp (\S+)', s, re.M)))
    shown = set(re.findall(r'show_doc\((\w+)', '\n'.join(sources)))
    plain = ''
    for s in sources:
        if re.search(r'^#\|\s*hide', s, re.M): continue
        if re.search(r'^#\|\s*exports', s, re.M): plain += s
        if re.search(r'^#\|\s*exports?\b', s, re.M):    # nbdev adds the documentation of what is defined here
            shown |= {n.name for n in ast.parse(re.sub(r'^\s*[%!].*$', '', s, flags=re.M)).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    module = importlib.import_module(f'distill.{name}')
    is_ours = lambda x: isinstance(x, (type, types.FunctionType)) and x.__module__==module.__name__
    values = {o for o in module.__all__ if not is_ours(getattr(module, o))}
    is_option = lambda o: isinstance(getattr(module, o), (typer.Typer,)) or typing.get_origin(getattr(module, o)) is typing.Annotated
    text = plain + text_of(page) + '\n'.join(s for s in sources if not re.search(r'^#\|', s, re.M))
    said = lambda o: re.search(rf'\b{o}\b', text)
    return sorted(o for o in module.__all__ if o not in shown | STYLES and not (o in values and (is_option(o) or said(o))))


@pytest.mark.parametrize('page', NUMBERED, ids=lambda p: p.stem)
def test_every_public_name_is_in_the_reference(page): assert not undocumented(page)


def has_words(x, name=''):    # and not those that a dataclass or a NamedTuple gives itself
    x = x.fget if isinstance(x, property) else getattr(x, '__func__', x)
    return bool(x.__doc__) and not x.__doc__.startswith(f'{name}(')


def wordless(module):
    "Public functions and classes that a module defines without a docstring."
    ours = {o: x for o in module.__all__ if isinstance(x := getattr(module, o), (type, types.FunctionType)) and x.__module__==module.__name__}
    return [o for o, x in ours.items() if not has_words(x, o)]


def wordless_methods(cls):
    "The same of what a class and those of this package that it is made from have."
    parts = {f'{o.__name__}.{name}': x for o in cls.__mro__ if o.__module__.startswith('distill') for name, x in vars(o).items() if name[0]!='_'}
    return [name for name, x in parts.items() if isinstance(x, (property, types.FunctionType, classmethod, staticmethod)) and not has_words(x)]


@pytest.mark.parametrize('module', modules(), ids=lambda m: m.__name__)
def test_every_public_name_says_what_it_is(module): assert not wordless(module)


@pytest.mark.parametrize('name', ['api.Distill', 'api.StopRequest', 'evaluate.EvaluationReport', 'evaluate.MemorisationReport', 'cli.Stopper', 'controls.Job',
                                  'library.Library', 'training.Checkpoints'])
def test_every_method_says_what_it_does(name):
    module, cls = name.split('.')
    assert not wordless_methods(getattr(importlib.import_module(f'distill.{module}'), cls))


def test_the_sidebar_leads_to_every_page():
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    listed = [o for section in site['website']['sidebar']['contents'] for o in section['contents']]
    assert sorted(listed)==sorted(p.relative_to(NBS).as_posix() for p in PAGES) and len(set(listed))==len(listed)
    assert site['website']['navbar']['search'] is True


def test_the_site_is_built_with_what_it_needs():
    work = yaml.safe_load((ROOT/'.github/workflows/docs.yml').read_text(encoding='utf-8'))
    build, publish = work['jobs']['build'], work['jobs']['publish']
    said = '\n'.join(json.dumps(s) for s in build['steps'])
    assert all(o in said for o in ('quarto-dev/quarto-actions/setup', 'nbdev_docs', '.ci/site.py', 'actions/upload-pages-artifact', '"_docs"'))
    assert 'actions/deploy-pages' in json.dumps(publish['steps']) and publish['needs']=='build'
    assert work['permissions']=={'contents': 'read'} and publish['permissions']=={'pages': 'write', 'id-token': 'write'}
    assert 'output-dir: _docs' in (NBS/'nbdev.yml').read_text(encoding='utf-8')
    assert yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['project']['resources']==['clips/*.mp3']


def test_the_check_of_a_rendered_site(tmp_path):
    import runpy
    wrong = runpy.run_path(str(ROOT/'.ci/site.py'))['wrong']
    (tmp_path/'a').mkdir()
    (tmp_path/'index.html').write_text('<h1 id="top">x</h1><a href="a/b.html#here">b</a><img src="https://example.org/x.png">', encoding='utf-8')
    (tmp_path/'a'/'b.html').write_text('<p id="here"><a href="../index.html#top">x</a><a href="#here">y</a><audio src="c.mp3"></audio>', encoding='utf-8')
    (tmp_path/'a'/'c.mp3').write_bytes(b'ID3')
    index = [dict(href='index.html'), dict(href='a/b.html#here')]
    (tmp_path/'search.json').write_text(json.dumps(index), encoding='utf-8')
    assert wrong(tmp_path)==[]
    (tmp_path/'a'/'c.mp3').unlink()
    (tmp_path/'search.json').write_text(json.dumps(index[:1]), encoding='utf-8')
    assert len(wrong(tmp_path))==2
    (tmp_path/'a'/'b.html').write_text('<p>', encoding='utf-8')
    assert any('names no place' in o for o in wrong(tmp_path))


def cells_with(page, flag): return [''.join(c['source']) for c in cells(page) if re.search(rf'^#\|\s*{flag}', ''.join(c['source']), re.M)]


def test_the_clips_that_pages_play_are_made(tmp_path):
    "Each file that a page plays is written by a cell of it that runs when the site is built."
    from nbdev.process import NBProcessor
    from nbdev.processors import _do_eval, _want_doc
    for page in PAGES:
        played = {m[0] for m in MADE.finditer(text_of(page))} | {a or b for a, b in LINK.findall(text_of(page)) if MADE.search(a or b)}
        if not played: continue
        made = '\n'.join(cells_with(page, 'exec_doc'))
        stems = [Path(o).stem for o in played]
        wanted = {re.sub(r'(bells|drums|strings|textures)', '{family}', re.sub(r'\d', '{seed}', s)) for s in stems}
        assert all(f'{o}.mp3' in made for o in wanted), wanted
        cells = [c for c in NBProcessor(page).nb.cells if c.cell_type == 'code']
        run = [c for c in cells if 'exec_doc' in c.source or 'exec_doc' in getattr(c, 'directives_', {})]
        assert run and all(map(_want_doc, run)) and all(map(_do_eval, cells))    # all of it, so that it is tested once, with its page


def test_no_sound_is_stored():
    files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, encoding='utf-8').stdout.splitlines()
    assert not [f for f in files if Path(f).suffix.lower() in ('.wav', '.flac', '.ogg', '.mp3', '.aiff', '.distill')]


def test_the_rule_about_docstrings_bites():
    class Named(typing.NamedTuple): x: int
    class Bare(BaseException): pass
    class Half:
        "Some"
        def f(self): pass
        @property
        def p(self): "Said"
        @classmethod
        def g(cls): pass
    Half.__module__ = 'distill.some'
    module = types.ModuleType('distill.some')
    for x in Named, Bare, Half, lambda: None:
        x.__module__ = 'distill.some'
        setattr(module, x.__name__, x)
    module.__all__ = ['Named', 'Bare', 'Half', '<lambda>']
    assert wordless(module)==['Named', 'Bare', '<lambda>'] and wordless_methods(Half)==['Half.f', 'Half.g']


def test_each_rule_bites(tmp_path):
    page = tmp_path/'page.qmd'
    page.write_text('---\ntitle: x\n---\n\n## A heading, and more\n', encoding='utf-8')
    assert wrong_links(page, '[a](gone.ipynb)') and wrong_links(page, '![a](images/gone.png)') and wrong_links(page, '[a](#nowhere)')
    assert not wrong_links(page, '[a](page.qmd#a-heading-and-more) [b](https://example.org) [c](clips/bell.wav)')
    assert not wrong_links(page, '```\n[a](gone.ipynb)\n```')
    assert unknown_names('`generate_sounds`') and unknown_names('`Distill.sing`') and unknown_names('`distill.gone`') and unknown_names('`ClipSettings()`')
    assert not unknown_names('`generate_clips` `Distill.generate` `distill.codes` `d.panel()` `Clip.save(path)` `x`', 'd = 1')
    assert wrong_commands('```bash\ndistill sing\n```') and wrong_commands('```bash\ndistill fit a -o b --louder\n```')
    session = lambda name, said: (tmp_path/name).write_text(json.dumps(dict(cells=[dict(cell_type='code', source="sh('info a')", outputs=[dict(text=said)] if said else [])])), encoding='utf-8')
    for name, said in ('same.ipynb', '$ distill info a\nNone'), ('other.ipynb', '$ distill info b\nNone'), ('none.ipynb', ''): session(name, said)
    assert [bool(told_otherwise(tmp_path/f'{name}.ipynb')) for name in ('same', 'other', 'none')]==[False, True, True]
    assert {'train', 'presets save'} <= set(unexplained('distill train-prior, distill presets list')) and 'train-prior' not in unexplained('distill train-prior')
    assert unmade_sidecars('```bash\ndistill generate a -o b/ --count 2\ndistill generate a -o c.wav --from-sidecar b/a-seed7.wav.json\n```')
    assert not unmade_sidecars('```bash\ndistill generate a -o b/ --seed 7\ndistill generate a -o c.wav --from-sidecar b/a-seed7.wav.json\n```')
    assert not wrong_commands('```bash\ndistill fit a -o b --minutes 5 && distill library list --json   # all\n```')
