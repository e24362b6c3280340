"""What the documents name exists: files, commands with their flags, gin names and modules.

Documents are README.md, docs/, benchmarks/, the other Markdown files, the launch files, and the
comments of the shipped gin files. All checks read text; neither jax nor seqio is imported.
"""

import ast
import functools
import re
import shlex
from pathlib import Path

from t5x_lite.cli import arguments
from t5x_lite.cli.command_table import commands

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "gin_configs"
# Written by programs, with the file names of the time.
GENERATED = ("docs/explore/report.md", "docs/planning_table.md")
MARKDOWN = [
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
    if str(path.relative_to(ROOT)) not in GENERATED
]
GIN_FILES = sorted(CONFIGS.rglob("*.gin"))
SCRIPTS = [
    path
    for pattern in ("launch/**/*", "benchmarks/*.py", ".ci/run", "tests/run.sh")
    for path in sorted(ROOT.glob(pattern))
    if path.is_file() and path.suffix in ("", ".py", ".sh", ".sbatch", ".yaml", ".Dockerfile")
]
DOCUMENTS = [*MARKDOWN, *GIN_FILES, *SCRIPTS]
# Not files of this repository: what runs write, examples, what workers get, other repositories.
OTHER_FOLDERS = ("exported", "..", "source", "t5x", "configs")
FILES_OF_RUNS = {"run.gin", "model.gin", "run.py"}
FILE_TYPES = ("gin", "json", "txt", "md", "png", "sbatch")
FOLDERS = (ROOT, ROOT / "t5x_lite", CONFIGS, CONFIGS / "explore", CONFIGS / "models", ROOT / "docs")
STARTS = {"--", ";", "|", "&&", "||", "(", "do", "exec", "-m"}
MESSAGES = ("t5x_lite needs Python",)
PATH = re.compile(r"(?<![\w/.$-])[\w.-]+(?:/[\w.-]+)*\.(?:gin|py|md|sh|sbatch|yaml|Dockerfile)\b")


def text_of(path):
    """The prose and commands of a document; of a gin file its comments."""
    text = path.read_text("utf-8")
    if path.suffix == ".gin":
        text = "\n".join(re.findall(r"(?:^|\s)#(.*)", text))
    elif path.suffix != ".md":
        text = re.sub(r"^[ ]*# ?", "", text, flags=re.MULTILINE)
    if path.name == "CHANGELOG.md":  # The first column of a table has names that are no more.
        text = re.sub(r"^\| `[^|]*\|", "|", text, flags=re.MULTILINE)
    return text


def code_of(path):
    """Lines of code blocks, with continuation lines joined, and code in the text of a document."""
    text = text_of(path)
    spans = [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    joined = re.sub(r"\s*\\+\n\s*", " ", text)
    in_block = False
    for line in joined.splitlines():
        in_block ^= line.startswith("```")
        indented = line.startswith(("    ", "  " if path.suffix in (".gin", ".py") else "    "))
        if in_block or indented or path.suffix not in (".md", ".gin", ".py"):
            yield line.strip()
    yield from spans


def words_of(line):
    """The words of a line of shell; none if it is not one."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&()")
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return []


def command_lines(path):
    """Calls of t5x_lite in a document, as lists of words from the command's name on."""
    for line in code_of(path):
        if line.startswith(MESSAGES) or ("t5x_lite" not in line and "launch/" not in line):
            continue
        words = words_of(line)
        words += words_of(" ".join(w.split("=", 1)[1] for w in words if w.startswith("ARGUMENTS=")))
        for number, word in enumerate(words[:-1]):
            following = words[number + 1]
            first = number == 0 or words[number - 1] in STARTS
            starts = (word == "t5x_lite" and first) or word == "--" or word.endswith("train.sbatch")
            if starts and re.fullmatch(r"[a-z]\w*", following) and following != "t5x_lite":
                end = (n for n, w in enumerate(words) if n > number and w in ";|&&||()")
                yield [w for w in words[number + 1 : next(end, None)] if w[0] not in ".$"]


ALL_COMMANDS = [(path, words) for path in DOCUMENTS for words in command_lines(path)]


@functools.cache
def parameters():
    """By name of a function or class of the package: the parameters that gin can set."""
    table, bases = {}, {}
    for path in (ROOT / "t5x_lite").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                a = node.args
                names = {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)}
            elif isinstance(node, ast.ClassDef):
                names = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
                names |= {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
                bases[node.name] = [ast.unparse(base).split(".")[-1] for base in node.bases]
            else:
                continue
            table.setdefault(node.name, set()).update(names)
    for _ in range(3):  # levels of inheritance
        for name, parents in bases.items():
            table[name].update(*(table.get(parent, ()) for parent in parents))
    return table


@functools.cache
def macros():
    """The macros that shipped gin files set or use."""
    text = "\n".join(path.read_text("utf-8") for path in GIN_FILES)
    return set(re.findall(r"%([A-Z_0-9]+)\b", text)) | set(
        re.findall(r"^([A-Z_0-9]+) =", text, re.MULTILINE)
    )


def exists_in_gin(name):
    """Whether a macro, or a parameter as "function.parameter", can be set by gin."""
    function, _, parameter = name.rpartition(".")
    if not function:
        return name in macros()
    function = function.split("/")[-1].split(".")[-1]
    known = parameters().get(function)
    return parameter in known if known is not None else name.startswith("optax.")


def test_the_documents_are_there():
    assert len(MARKDOWN) > 20
    assert len(GIN_FILES) > 150
    assert len(SCRIPTS) > 20
    assert len(ALL_COMMANDS) > 150


def test_every_command_in_a_document_can_be_parsed(capsys):
    wrong = []
    for path, words in ALL_COMMANDS:
        if words[0] not in commands():
            wrong.append(f"{path.relative_to(ROOT)}: no command {words[0]}")
            continue
        positional = len([word for word in words[1:] if not word.startswith("-")])
        missing = [a.name for a in commands()[words[0]].arguments if not a.many][positional:]
        try:
            arguments.parse([*words, *missing])
        except SystemExit:
            error = capsys.readouterr().err.strip().splitlines()[-1]
            wrong.append(f"{path.relative_to(ROOT)}: {shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


def test_every_gin_file_and_gin_name_in_a_command_exists():
    wrong = []
    for path, words in ALL_COMMANDS:
        for word in words:
            name, _, value = word.partition("=")
            if name == "--gin_file" and not _is_shipped_or_an_example(value):
                wrong.append(f"{path.relative_to(ROOT)}: no file {value}")
            if name.startswith("--gin.") and not exists_in_gin(name.removeprefix("--gin.")):
                wrong.append(f"{path.relative_to(ROOT)}: nothing reads {name}")
    assert not wrong, "\n".join(wrong)


def _is_shipped_or_an_example(name):
    other = Path(name).name in FILES_OF_RUNS or "..." in name or "$" in name
    return other or (CONFIGS / name).is_file()


def test_every_gin_name_in_the_text_of_a_document_exists():
    """Such as `Update.microbatches`, `--gin.Data.tokenizer=sentencepiece` and `TRAIN_STEPS`."""
    wrong = []
    for path in (*MARKDOWN, *GIN_FILES):
        for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text_of(path)):
            name = re.split(r"[ =]", span.removeprefix("--gin."))[0].removeprefix("%")
            function, _, parameter = name.rpartition(".")
            is_setting = span.startswith("--gin.") and "..." not in span
            is_parameter = function.split(".")[-1] in parameters() and parameter.isidentifier()
            is_module = name.startswith("t5x_lite.")
            is_parameter = is_parameter and not is_module and parameter not in FILE_TYPES
            if (is_setting or is_parameter) and name != "NAME" and not exists_in_gin(name):
                wrong.append(f"{path.relative_to(ROOT)}: {span}")
    assert not wrong, "\n".join(wrong)


def test_the_header_of_every_gin_file_shows_a_command_with_it_or_names_the_file_that_uses_it():
    with_command = {path for path, _ in ALL_COMMANDS}
    wrong = []
    for path in GIN_FILES:
        header = " ".join(re.findall(r"^# ?(.*)", path.read_text("utf-8"), re.MULTILINE))
        if path not in with_command and not re.search(r"\b(Used|Included)\s+by ", header):
            wrong.append(str(path.relative_to(CONFIGS)))
    assert not wrong, "\n".join(wrong)


def test_every_gin_name_that_a_header_says_to_override_exists():
    wrong = []
    for path in GIN_FILES:
        header = " ".join(re.findall(r"^# ?(.*)", path.read_text("utf-8"), re.MULTILINE))
        lists = re.findall(
            r"(?:Commonly overridden|Required|Needs|Gives):? (.*?)(?:\. |\.?$)", header
        )
        for text in lists:
            text = re.sub(r"\([^()]*(?:\([^()]*\)[^()]*)*\)|`[^`]*`|\"[^\"]*\"", "", text)
            for name in re.findall(r"(?<![\w/.-])(?:[A-Z]+_[A-Z_]+|\w+\.\w+)(?![\w/*-])", text):
                ours = name.isupper() or name.split(".")[0] in parameters()
                if ours and not exists_in_gin(name):
                    wrong.append(f"{path.relative_to(CONFIGS)}: {name}")
    assert not wrong, "\n".join(wrong)


@functools.cache
def all_flags():
    """The flags of all commands, of the launchers, and of the launchers' own programs."""
    flags = {"--help", "--version"}
    flags |= {f"--{flag.name}" for command in commands().values() for flag in command.flags}
    sources = [*ROOT.glob("launch/*.py"), *ROOT.glob("benchmarks/*.py")]
    sources += [ROOT / "t5x_lite/cli/arguments.py", ROOT / "t5x_lite/distributed/local_launcher.py"]
    for path in sources:
        text = path.read_text("utf-8")
        flags |= set(re.findall(r"[\"'](--[a-z_]+)", text))
        flags |= {f"--{name}" for name in re.findall(r"\"([a-z_]{3,})\"", text)}
    return flags


def test_every_flag_in_the_text_of_a_document_exists():
    """Without docs/launch/, which names flags of gcloud, kubectl, sbatch and others."""
    wrong = []
    for path in (p for p in MARKDOWN if p.parent.name != "launch"):
        spans = set(re.findall(r"(?<!`)`(--[a-z_]+)(?=[=`])", text_of(path)))
        wrong += [f"{path.relative_to(ROOT)}: {flag}" for flag in spans - all_flags()]
    assert not wrong, "\n".join(wrong)


def test_every_file_of_the_repository_that_a_document_names_exists():
    names = {path.name for path in ROOT.rglob("*") if path.is_file()}
    wrong = []
    for path in DOCUMENTS:
        for name in PATH.findall(text_of(path)):
            top, base = name.split("/")[0], name.split("/")[-1]
            if "/" not in name:
                missing = name.endswith((".gin", ".py")) and name not in names | FILES_OF_RUNS
            else:
                missing = not any((folder / name).exists() for folder in (*FOLDERS, path.parent))
                missing = missing and top not in OTHER_FOLDERS and base not in FILES_OF_RUNS
                missing = missing and not (top == "runs" and not name.endswith(".gin"))
            if missing:
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong, "\n".join(wrong)


def test_every_module_that_a_document_names_exists():
    wrong = []
    for path in DOCUMENTS:
        for name in re.findall(r"(?<![\w/.@-])t5x_lite(?:\.[a-z_]\w*)+", text_of(path)):
            parts = name.split(".")
            lengths = range(len(parts), 0, -1)
            prefixes = ["/".join(parts[:length]) for length in lengths]
            modules = [p for p in prefixes if (ROOT / f"{p}.py").exists() or (ROOT / p).is_dir()]
            rest = parts[modules[0].count("/") + 1 :] if modules else parts
            if not modules or (rest and not _defines(modules[0], rest[0])):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
        for span in re.findall(r"(?<!`)`([a-z_]+/[a-z_/]+)`", text_of(path)):
            known = [f for f in FOLDERS if (f / span.split("/")[0]).is_dir()]
            here = [f for f in known if (f / span).exists() or (f / f"{span}.py").exists()]
            is_of_a_run = span == "metrics/averages" or span.startswith("runs/")
            if known and not here and not is_of_a_run:
                wrong.append(f"{path.relative_to(ROOT)}: {span}")
    assert not wrong, "\n".join(wrong)


def _defines(module, name):
    path = ROOT / f"{module}.py"
    text = (path if path.exists() else ROOT / module / "__init__.py").read_text("utf-8")
    return re.search(rf"^(?:def |class )?{name}\b|\b{name}\b", text, re.MULTILINE) is not None
