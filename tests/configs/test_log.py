"""One handler shows what is logged, as plain lines on the stream of the moment, and only while a program shows it."""

import io
import logging
import sys

from scanfoundry.configs.log import ConsoleHandler, shown_log

logger = logging.getLogger("scanfoundry.somewhere.deep")


def test_lines_are_plain_and_errors_name_the_program(capsys):
    with shown_log():
        logger.debug("hidden")
        logger.info("fetching %s", "a.pth")
        logger.warning("[odd] 100%")
        logger.error("no such file")
    assert capsys.readouterr() == ("", "fetching a.pth\n[odd] 100%\nscanfoundry: no such file\n")


def test_it_goes_to_the_stream_of_the_moment(monkeypatch):
    with shown_log():
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        logger.info("here")
        assert sys.stderr.getvalue() == "here\n"


def test_nested_programs_say_it_once_and_the_root_hears_it_again_afterwards(capsys, caplog):
    with shown_log(), shown_log():
        logger.info("once")
    assert capsys.readouterr().err == "once\n"
    assert caplog.messages == []
    logger.warning("for whoever imports us")
    assert caplog.messages == ["for whoever imports us"]
    assert not any(isinstance(each, ConsoleHandler) for each in logging.getLogger("scanfoundry").handlers)
    assert not logger.isEnabledFor(logging.INFO)


def test_a_stream_that_is_closed_ends_no_program(monkeypatch):
    broken = io.StringIO()
    broken.close()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with shown_log():
        monkeypatch.setattr(sys, "stderr", broken)
        logger.error("nobody hears this")
