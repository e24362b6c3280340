"""Log lines on the terminal and in a run's directory."""

import logging
import re
import subprocess
import sys

import pytest

from t5x_lite import console, log_setup

LOG = logging.getLogger("t5x_lite.some.module")
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def test_the_terminal_shows_messages_and_the_level_of_warnings(capsys):
    with log_setup.to_terminal():
        LOG.info("saving [100] %d")
        LOG.debug("not shown")
        LOG.warning("a" * 200)
        logging.getLogger("another.library").info("not shown")
    LOG.info("not shown")
    assert capsys.readouterr() == (f"saving [100] %d\nWARNING: {'a' * 200}\n", "")


def test_a_library_that_configures_the_root_logger_prints_no_line_again(capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler(sys.stderr)])
    with log_setup.to_terminal():
        LOG.info("once")
    assert capsys.readouterr() == ("once\n", "")


def test_what_was_configured_before_is_restored():
    logger = logging.getLogger("t5x_lite")
    before = logger.level, logger.propagate, list(logger.handlers)
    with pytest.raises(KeyError), log_setup.to_terminal():
        raise KeyError
    with log_setup.to_terminal():
        log_setup.only_warnings()
    assert (logger.level, logger.propagate, logger.handlers) == before


def test_processes_other_than_the_first_log_warnings_alone(capsys):
    with log_setup.to_terminal():
        log_setup.only_warnings()
        LOG.info("not shown")
        LOG.warning("shown")
    assert capsys.readouterr().out == "WARNING: shown\n"


def test_lines_go_to_stderr_where_stdout_carries_data(capsys):
    with log_setup.to_terminal():
        log_setup.use_stderr()
        LOG.info("loading")
    assert capsys.readouterr() == ("", "loading\n")


def test_importing_the_package_configures_no_logging():
    program = (
        "import logging, t5x_lite, t5x_lite.log_setup, t5x_lite.cli.main\n"
        "assert not logging.root.handlers\n"
        "logger = logging.getLogger('t5x_lite')\n"
        "assert (logger.handlers, logger.level, logger.propagate) == ([], 0, True)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_run_keeps_its_lines_with_time_level_and_logger(tmp_path):
    """The directory comes into being after the first line; the second start appends."""
    directory = tmp_path / "run"
    with log_setup.to_terminal():
        with log_setup.to_run_directory(directory):
            LOG.info("tokenizing")
            assert not directory.exists()
            directory.mkdir()
            LOG.warning("a file is damaged")
        LOG.info("not of the run")
        with log_setup.to_run_directory(directory):
            LOG.info("resuming")
    levels = ["INFO", "WARNING", "INFO"]
    messages = ["tokenizing", "a file is damaged", "resuming"]
    lines = (directory / "log.txt").read_text().splitlines()
    for line, level, message in zip(lines, levels, messages, strict=True):
        assert re.fullmatch(f"{TIME} {level} t5x_lite.some.module: {message}", line)


def test_the_error_that_ends_a_run_is_in_its_log_and_not_printed(tmp_path, capsys):
    with (
        log_setup.to_terminal(),
        pytest.raises(ValueError, match="no such thing"),
        log_setup.to_run_directory(tmp_path),
    ):
        raise ValueError("no such thing")
    text = (tmp_path / "log.txt").read_text()
    assert "ERROR t5x_lite.log_setup: the run ended with an error\nTraceback" in text
    assert text.endswith("ValueError: no such thing\n")
    assert capsys.readouterr() == ("", "")


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    (tmp_path / "file").write_text("not a directory")
    with log_setup.to_terminal(), log_setup.to_run_directory(tmp_path / "file"):
        LOG.info("training")
    assert capsys.readouterr() == ("training\n", "")


def test_without_a_configuration_warnings_stay_on_stderr(tmp_path):
    program = (
        "import logging, sys\n"
        "from t5x_lite import log_setup\n"
        "with log_setup.to_run_directory(sys.argv[1]):\n"
        "    logging.getLogger('t5x_lite.a').warning('seen')\n"
        "    logging.getLogger('t5x_lite.a').info('not seen')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "seen\n")
    assert (tmp_path / "log.txt").read_text().endswith("WARNING t5x_lite.a: seen\n")


@pytest.fixture
def fake_terminal(monkeypatch):
    """Let rich take standard output for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    console.terminal.cache_clear()
    yield
    console.terminal.cache_clear()


@pytest.mark.usefixtures("fake_terminal")
def test_the_live_line_is_rewritten_below_the_log_lines(tmp_path, capsys):
    shown = console.Console()
    with log_setup.to_terminal(), log_setup.to_run_directory(tmp_path), shown.line():
        shown.update("step 1/3")
        LOG.info("saving checkpoint at step 1")
        shown.update("step 2/3")
    text = capsys.readouterr().out
    lines = [re.sub(r"\x1b\[[\d?]*[A-Za-z]|\r", "", line) for line in text.splitlines()]
    assert [line for line in lines if "saving" in line] == ["saving checkpoint at step 1"]
    assert [line for line in lines if line][-1] == "step 2/3"
    logged = [line.split(": ", 1)[1] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert logged == ["step 1/3", "saving checkpoint at step 1", "step 2/3"]


def test_elsewhere_each_state_of_the_live_line_is_a_log_line(capsys):
    console.terminal.cache_clear()
    shown = console.Console()
    with log_setup.to_terminal(), shown.line():
        shown.update("step 1/3")
        shown.update("step 2/3")
    assert capsys.readouterr().out == "step 1/3\nstep 2/3\n"


def test_a_wait_is_logged_before_and_after(log_lines):
    with console.logged_wait(LOG, "restoring step 3"):
        assert log_lines == ["restoring step 3 ..."]
    assert re.fullmatch(r"restoring step 3 took 0\.\d s", log_lines[1])
