"Packaging: every setting is in settings.ini; edit there, not here."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
lib = cfg['lib_path']
spdx = {'apache2': 'Apache-2.0', 'mit': 'MIT', 'gpl3': 'GPL-3.0-only', 'bsd3': 'BSD-3-Clause'}
raw = cfg['git_url'].replace('github.com', 'raw.githubusercontent.com') + f"/{cfg['branch']}/"


def long_description():
    "README.md, with its pictures and links made absolute: the package index shows it away from the repository."
    text = (here/'README.md').read_text(encoding='utf-8')
    text = re.sub(r'(!\[[^\]]*\]\(|src=")(?=nbs/)', lambda m: m[0] + raw, text)
    return re.sub(r'(\]\(|href=")(?=nbs/)', lambda m: m[0] + f"{cfg['git_url']}/blob/{cfg['branch']}/", text)


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl']},
    license=spdx.get(cfg['license'], cfg['license']),
    long_description=long_description(), long_description_content_type='text/markdown',
    classifiers=['Development Status :: 3 - Alpha', f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", 'Programming Language :: Python :: 3',
                 'Topic :: Multimedia :: Sound/Audio :: Sound Synthesis'],
    packages=find_packages(include=[lib, f'{lib}.*']), package_data={lib: ['*.safetensors', '*.js', '*.css']}, python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(), extras_require={'dev': cfg['dev_requirements'].split()},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']},
)
