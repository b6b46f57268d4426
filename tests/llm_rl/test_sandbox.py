"""What a program in the sandbox can and cannot do. Where the system does not isolate, tests skip and say so."""

import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from zoo.llm_rl.sandbox import Outcome, Sandbox, isolation

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the sandbox needs POSIX")


def run(code: str, sandbox: Sandbox | None = None, **options) -> Outcome:
    options = {"timeout_s": 20.0, **options}
    return (sandbox or Sandbox()).run([sys.executable, "-s", "-P", "-B", "p.py"], {"p.py": code}, **options)


def needs(name: str) -> None:
    if not isolation()[name]:
        pytest.skip(f"this system does not let a sandbox isolate {name}: isolation() is {isolation()}")


def processes_with(mark: str) -> list[str]:
    """Ids of processes with ``mark`` in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in entry.read_bytes().decode(errors="replace"):
                found.append(entry.parent.name)
        except OSError:
            continue
    return found


def gone(mark: str) -> bool:
    """Whether they have all ended, or do within a second."""
    for _ in range(20):
        if not processes_with(mark):
            return True
        time.sleep(0.05)
    return False


def test_gives_input_output_and_exit_status():
    outcome = run("import sys; print(sys.stdin.read()[::-1]); print('no', file=sys.stderr); sys.exit(3)", stdin="abc")
    assert outcome == Outcome(3, "cba\n", "no\n", False)


def test_stdin_is_empty_unless_given():
    assert run("import sys; print(repr(sys.stdin.read()))").stdout == "''\n"


def test_a_signal_is_an_exit_status():
    assert run("import os; os.abort()").code == 128 + 6


def test_endless_loop_is_stopped_in_time():
    start = time.monotonic()
    outcome = run("print('begun', flush=True)\nwhile True: pass", timeout_s=1.0)
    assert time.monotonic() - start < 2.0
    assert outcome.code is None
    assert outcome.timed_out


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_no_child_is_left():
    mark = f"left-behind-{os.getpid()}"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])"
    roomy = Sandbox(processes=4096)  # where namespaces are refused, all processes of the user count
    assert run(f"{child}\nprint('done')", roomy).stdout == "done\n"
    assert gone(mark)
    assert run(f"{child}\nwhile True: pass", roomy, timeout_s=1.0).timed_out
    assert gone(mark)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_not_even_one_that_left_the_group():
    needs("processes")
    mark = f"left-the-group-{os.getpid()}"
    argv = f"[sys.executable, '-c', 'import time; time.sleep(60)', '{mark}']"
    outcome = run(f"import subprocess, sys; subprocess.Popen({argv}, start_new_session=True)\nprint('done')")
    assert outcome.stdout == "done\n"
    assert gone(mark)


def test_fork_bomb_is_contained():
    needs("count")
    outcome = run(
        "import os\nchildren = 0\ntry:\n    while True:\n        if os.fork() == 0:\n            import time\n"
        "            time.sleep(60)\n        children += 1\nexcept BlockingIOError:\n    print(children)",
        Sandbox(processes=8),
    )
    assert outcome.code == 0
    assert 0 <= int(outcome.stdout) < 8 + 2  # two are the launcher's, which needs none without namespaces
    assert run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout_s=1.0).timed_out
    assert run("print(1)").stdout == "1\n"


def test_output_is_cut_and_its_writer_stopped():
    start = time.monotonic()
    outcome = run("while True: print('x' * 1000)", Sandbox(output_kb=8), timeout_s=20.0)
    assert time.monotonic() - start < 10
    assert (outcome.code, outcome.timed_out, len(outcome.stdout)) == (None, False, 8192)


@pytest.mark.parametrize(
    ("code", "error"),
    [("open('big', 'wb').write(bytes(1 << 25))", "File too large"), ("x = bytes(1 << 29)", "MemoryError")],
)
def test_files_and_memory_are_limited(code, error):
    if error == "MemoryError" and sys.platform == "darwin":
        pytest.skip("macOS does not limit address space")
    outcome = run(code, Sandbox(memory_mb=256, file_mb=16))
    assert outcome.code == 1
    assert error in outcome.stderr


def test_environment_of_the_parent_is_not_visible(monkeypatch):
    monkeypatch.setenv("A_SECRET", "hunter2")
    look = (
        "import glob, os\nfound = str(dict(os.environ))\nfor path in glob.glob('/proc/[0-9]*/environ'):\n"
        "    try: found += open(path, 'rb').read().decode(errors='replace')\n    except OSError: pass\n"
        "print('hunter2' in found, os.environ.get('GIVEN'))"
    )
    assert run(look, environment={"GIVEN": "yes"}).stdout == "False yes\n"


def test_runs_in_a_fresh_folder_that_is_removed():
    first, second = (run("import os; open('mine', 'x'); print(os.getcwd(), os.listdir())").stdout for _ in range(2))
    assert first.split()[0] != second.split()[0]
    assert not Path(first.split()[0]).exists()
    assert sorted(eval(first.split(maxsplit=1)[1])) == ["mine", "p.py"]


def test_nothing_outside_the_folder_can_be_changed(tmp_path):
    needs("files")
    tmp_path.chmod(0o777)
    target = tmp_path / "there"
    target.write_text("before")
    target.chmod(0o666)
    for change in ("open(path, 'w')", "os.remove(path)", "os.truncate(path, 0)", "os.mkdir(path + '2')"):
        outcome = run(f"import os\npath = {str(target)!r}\n{change}")
        assert "PermissionError" in outcome.stderr, change
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]
    assert run("open('/dev/null', 'w').write('x'); print('ok')").stdout == "ok\n"


def test_there_is_no_network():
    needs("network")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(("127.0.0.1", 0))
        datagrams.settimeout(0.2)
        tcp, udp = server.getsockname()[1], datagrams.getsockname()[1]
        with socket.create_connection(("127.0.0.1", tcp), timeout=5):
            pass  # it can be reached from here
        outcome = run(f"import socket; socket.create_connection(('127.0.0.1', {tcp}), timeout=5)")
        assert outcome.code == 1
        assert "OSError" in outcome.stderr or "PermissionError" in outcome.stderr
        run(f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp}))")
        with pytest.raises(TimeoutError):
            datagrams.recv(1)


def test_other_processes_cannot_be_killed():
    needs("processes")
    outcome = run(f"import os; os.kill({os.getpid()}, 0)")
    assert "ProcessLookupError" in outcome.stderr or "PermissionError" in outcome.stderr


def test_a_program_that_does_not_start_is_an_error():
    with pytest.raises(OSError, match=r"/no/such/program.*does not start"):
        Sandbox().run(["/no/such/program"], {}, timeout_s=20.0)


def test_works_from_threads():
    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda at=at: found.update({at: run(f"print({at})").stdout})) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {at: f"{at}\n" for at in range(4)}


def test_limits_are_checked():
    with pytest.raises(ValueError, match="processes=0: must be at least 1"):
        Sandbox(processes=0)
