"""The crontab runs under a real cron daemon, which sees nothing of this machine's other tables.

The daemon has a mount namespace of its own, with a spool, a /run and a mailer of the test's, and
ends with the process that started it.
"""

import os
import pwd
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.schedules.files import CRONTAB, cron_lines

CRON = Path("/usr/sbin/cron")
LIMIT_S = 90.0          # cron looks once a minute
DAEMON = """
mount --bind {0}/spool /var/spool/cron
mount --bind {0}/nothing /etc/cron.d
mount --bind {0}/empty /etc/crontab
mount --bind {0}/run /run
mount --bind {0}/sbin /usr/sbin
exec /usr/sbin/cron -f
"""
RECORDER = """#!/bin/sh
printf '%s\\n' "{name}" "$@" > "$LIFELORA_HOME/{name}.draft"
{{ pwd; printf '%s\\n' "$PATH" "$LIFELORA_HOME" "$RAY_AUTH_MODE"; }} > "$LIFELORA_HOME/{name}.place"
echo "{name} says so"
mv "$LIFELORA_HOME/{name}.draft" "$LIFELORA_HOME/{name}.argv"
exit {code}
"""
MAILER = """#!/bin/sh
cat > "{0}/mail/$$.draft"
mv "{0}/mail/$$.draft" "{0}/mail/$$"
"""


def _require() -> None:
    if not CRON.exists():
        problem = f"there is no {CRON} (package cron)"
    elif os.geteuid() or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        problem = "only who may mount can give a cron daemon tables of its own"
    else:
        return
    if os.environ.get("LIFELORA_REQUIRE_CRON") == "1":
        pytest.fail(problem)
    pytest.skip(problem)


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def cron(tmp_path: Path) -> Iterator[Path]:
    """Run the table's two nights every minute, by recorders: `python` fails and `ray` succeeds."""
    _require()
    home, user = tmp_path / "home", pwd.getpwuid(os.geteuid()).pw_name
    for name in ("spool/crontabs", "nothing", "run", "sbin", "mail", "home/bin", "home/runs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "empty").touch()
    shutil.copy(CRON, tmp_path / "sbin")
    _program(tmp_path / "sbin/sendmail", MAILER.format(tmp_path))
    for name, code in (("python", 1), ("ray", 0)):
        _program(home / "bin" / name, RECORDER.format(name=name, code=code))
    table = CRONTAB.read_text().replace("/opt/lifelora/.venv/bin", str(home / "bin"))
    for line in cron_lines():
        table = table.replace(line.text, f"* * * * * {line.command}")
    spool = tmp_path / "spool/crontabs" / user
    spool.write_text(table.replace("/opt/lifelora", str(home)))
    spool.chmod(0o600)
    daemon = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc",
         DAEMON.format(shlex.quote(str(tmp_path)))],
        start_new_session=True,
    )
    yield tmp_path
    assert daemon.poll() is None, f"cron ended with {daemon.returncode}"
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()


def _wait_for(*paths: Path) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end_s, f"not there: {[str(p) for p in paths if not p.exists()]}"
        time.sleep(0.2)


def _mails(folder: Path) -> list[str]:
    return [each.read_text() for each in (folder / "mail").iterdir() if each.suffix != ".draft"]


@pytest.mark.slow
def test_cron_runs_the_night_logs_it_and_mails_only_a_failure(cron: Path) -> None:
    home = cron / "home"
    _wait_for(home / "python.argv", home / "ray.argv")
    end_s = time.monotonic() + 10
    while not _mails(cron) and time.monotonic() < end_s:
        time.sleep(0.1)
    time.sleep(0.5)                                     # a second mail would come about now
    for line in cron_lines():
        (name, *_), argv = line.words, (home / f"{line.words[0]}.argv").read_text().splitlines()
        assert argv == line.words
        place = (home / f"{name}.place").read_text().splitlines()
        assert place == [str(home), f"{home}/bin:/usr/local/bin:/usr/bin:/bin", str(home), "token"]
    log = (home / "runs/nightly.log").read_text()
    assert {"python says so", "ray says so"} <= set(log.splitlines())
    (mail,) = _mails(cron)
    assert "To: ops@example.com" in mail
    assert "python says so" in mail


def test_crontab_finds_no_fault() -> None:
    _require()
    checked = subprocess.run(
        ["crontab", "-n", str(CRONTAB)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
