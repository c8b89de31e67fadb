"""The scripts from where people start them: any directory and path, another shell, settings of the environment, and
file systems that name or know things in their own way."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPO
from tests.shell import copy_scripts, run_script, script_environment, single_error_line, write_script

COMMANDS = sorted(
    path.relative_to(REPO) for path in (REPO / "commands").glob("*.sh") if path.read_text().startswith("#!")
)
JOBS = sorted(path.relative_to(REPO) for path in (REPO / "drivers").rglob("*.sh"))
SCRIPTS = [*COMMANDS, *JOBS]
OTHERS = [Path(".ci/run"), Path("tests/slurm/cluster.sh")]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts, a program that does nothing, and a checkpoint."""
    root = tmp_path_factory.mktemp("places")
    repo = copy_scripts(root)
    shutil.copytree(REPO / "drivers", repo / "drivers", ignore=shutil.ignore_patterns("*.py"), dirs_exist_ok=True)
    write_script(root / "python", 'echo "${*:1:2} in $PWD"\n')
    (root / "checkpoint").mkdir()
    (root / "checkpoint" / "config.json").write_text("{}")
    return repo


def settings(repo: Path, **changes: str | Path) -> dict[str, str | Path]:
    root = repo.parent
    given = {"PYTHON": root / "python", "WARMUP_CHECKPOINT": root / "checkpoint", "RAW_DATA_DIR": root}
    given |= {"GPUS": "0", "LC_ALL": "C.UTF-8"}
    return {**given, **changes}


def path_with(directory: Path, name: str, text: str) -> str:
    """PATH with this script in front."""
    return f"{write_script(directory / 'bin' / name, text).parent}:{script_environment()['PATH']}"


def words(script: Path) -> list[str]:
    """Arguments with which the script does nothing but start its programs, which are stand-ins."""
    if script.name == "setup_venv.sh":
        return ["--help"]
    return ["--strategy", "top", "--dry_run"] if script.name == "submit_ance.sh" else ["--dry_run"]


def check_starts(repo: Path, script: Path, result: subprocess.CompletedProcess[str]) -> None:
    """It has started its programs in ``repo``, or said that it would."""
    assert result.returncode == 0 and not result.stderr, result
    expected = {
        "setup_venv.sh": "usage: bash commands/setup_venv.sh",
        "data_download.sh": "collectionandqueries.tar.gz: to fetch",
        "quickstart.sh": f"results.report --run_dir {repo}/results/runs/quickstart",
        "study.sh": f"results.report --run_dir {repo}/results/runs/study",
        "submit_ance.sh": f"--output={repo}/results/runs/msmarco/logs",
        "test.sh": f"-m pytest in {repo}\n",
    }
    assert expected.get(script.name, f" in {repo}\n") in result.stdout.replace("\\", ""), result


# From any directory, by any path


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_script_starts_from_any_directory_by_any_path(repo: Path, script: Path, tmp_path: Path) -> None:
    link = tmp_path / "a link.sh"
    link.symlink_to(repo / script)
    (tmp_path / "other").symlink_to(repo)
    # With CDPATH, cd enters the directory of this name in another place, and says so.
    (tmp_path / "elsewhere" / script.parent).mkdir(parents=True)
    cdpath = f"{tmp_path / 'elsewhere'}:{repo}"
    depth = len(script.parent.parts)
    for cwd, path in (
        (repo, script),
        (repo / script.parent, script.name),
        (repo / "commands", Path("..", script)),
        (repo / script.parent, Path(*[".."] * depth, script)),
        (repo.parent, Path(repo.name, script)),
        (tmp_path, Path("other", script)),
        (tmp_path, link.name),
    ):
        result = run_script(path, *words(script), cwd=cwd, **settings(repo, CDPATH=cdpath))
        check_starts(tmp_path / "other" if "other" in Path(path).parts else repo, script, result)


@pytest.mark.parametrize("script", ["quickstart.sh", "run_evaluation.sh"])
def test_a_script_starts_by_its_name_in_path(repo: Path, script: str, tmp_path: Path) -> None:
    path = f"{repo / 'commands'}:{script_environment()['PATH']}"
    for options in (words(Path(script)), ["--help"]):
        result = run_script(script, *options, cwd=tmp_path, **settings(repo, PATH=path))
        assert result.returncode == 0 and result.stdout and not result.stderr


def test_the_cluster_of_the_tests_finds_its_own_directory(tmp_path: Path) -> None:
    (tmp_path / "tests" / "slurm").mkdir(parents=True)
    command = ["bash", "-x", "tests/slurm/cluster.sh"]
    result = subprocess.run(command, cwd=REPO, env=script_environment(CDPATH=tmp_path), capture_output=True, text=True)
    assert result.returncode == 2 and f"\n+ here={REPO / 'tests/slurm'}\n".replace("'", "") in result.stderr.replace(
        "'", ""
    )


def test_every_script_finds_the_repository_in_the_same_way() -> None:
    """These lines alone stand in each script: what they would be read from is what they find."""
    texts = {script: (REPO / script).read_text() for script in SCRIPTS}
    ways = {re.findall(r"^set -eu\n(?:.*\n)*?.*SUBMIT_DIR.*\n", text, re.M)[0] for text in texts.values()}
    (way,) = ways
    assert way.count("\n") <= 5
    for script, text in texts.items():
        assert text.count("SLURM_SUBMIT_DIR") == text.count("BASH_SOURCE") == 1, script
        used = r'(?:# shellcheck source=.*\n)?(?:source|exec bash) "\$REPO/commands/'
        assert re.search(re.escape(way) + used, text), script


def test_a_link_in_another_checkout_runs_the_scripts_that_it_links_to(repo: Path, tmp_path: Path) -> None:
    another = copy_scripts(tmp_path)
    (another / "commands" / "env.sh").write_text("echo the wrong repository; exit 1\n")
    for script in (Path("commands/run_arm.sh"), Path("drivers/sbatch_arm.sh")):
        link = another / script.parent / "a link.sh"
        link.symlink_to(repo / script)
        check_starts(repo, script, run_script(link, *words(script), **settings(repo)))


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_SUBMIT_DIR"])
def test_slurms_variables_may_be_empty(repo: Path, name: str, tmp_path: Path) -> None:
    """As a site's wrapper leaves them; no job is looked for, and the directory is this one."""
    spool = tmp_path / "spool"
    spool.mkdir()
    shutil.copy(repo / "commands" / "run_arm.sh", spool / "slurm_script")
    path = path_with(tmp_path, "squeue", f'[[ $* != "-ho %o -j " ]] || echo {shlex.quote(str(tmp_path / "a/x.sh"))}\n')
    job = settings(repo, PATH=path, **{"SLURM_SUBMIT_DIR": repo, "SLURM_JOB_ID": "7", name: ""})
    check_starts(repo, Path("run_arm.sh"), run_script(spool / "slurm_script", "--dry_run", cwd=repo, **job))


def checkout_for_ci(directory: Path) -> Path:
    """A checkout whose set-up, style, quickstart and tests only say where they are."""
    write_script(directory / "commands" / "quickstart.sh", "pwd\n")
    write_script(directory / "commands" / "test.sh", 'echo "$PWD: $* with ${PYTHON-its own}"; exit "${CODE:-0}"\n')
    python = """[[ $* != *torch.__file__* ]] || echo "${0%/.venv/*}/torch"\n[[ $* != *ruff\\ check* ]]\n"""
    install = f"mkdir -p .venv/bin && printf '#!/usr/bin/env bash\\n%s' {shlex.quote(python)} >.venv/bin/python"
    write_script(directory / "commands" / "setup_venv.sh", f"{install} && chmod +x .venv/bin/python\n")
    (directory / ".ci").mkdir()
    shutil.copy(REPO / ".ci" / "run", directory / ".ci" / "run")
    git = ["git", "-C", str(directory), "-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    return directory


@pytest.mark.parametrize("has_git", [True, False])
def test_ci_works_in_a_clone_with_a_blank_and_an_umlaut_and_leaves_nothing(tmp_path: Path, has_git: bool) -> None:
    checkout = checkout_for_ci(tmp_path / "checkout")
    if not has_git:
        shutil.rmtree(checkout / ".git")
    for name in ("python3", "curl", "flock", "shellcheck", "slurmctld", "slurmd", "sbatch", "munged", "chromium"):
        path = path_with(tmp_path, name, "")  # so that nothing is installed
    (tmp_path / "tmp").mkdir()
    before = sorted(checkout.rglob("*"))
    result = run_script(checkout / ".ci" / "run", PATH=path, TMPDIR=tmp_path / "tmp", LC_ALL="C.UTF-8", CODE="1")
    assert result.returncode == 1, result
    lines = re.sub(r"^(== .*) \(\d+ s\)$", r"\1", result.stdout, flags=re.MULTILINE).splitlines()
    clone = re.escape(f"{tmp_path}/tmp/ci.") + r"\w+/der gepr\u00fcfte Klon"
    assert re.fullmatch(f"{clone}/commands", lines[lines.index("== quickstart") + 1])
    plain = rf"{tmp_path}/tmp/ci\.\w+/plain/\.venv/bin/python"
    compiled = lines[lines.index("== compiling in a plain path") + 1]
    assert re.fullmatch(rf"{clone}: -n 0 tests/model/kernels/test_compile\.py with {plain}", compiled), compiled
    assert re.fullmatch(f"{clone}:  with its own", lines[lines.index("== tests") + 1])
    failed = ["ruff check", "compiling in a plain path", "tests"]
    assert lines[lines.index("== tests") + 2 :] == [f"FAILED: {name}" for name in failed]
    assert sorted(checkout.rglob("*")) == before and not list((tmp_path / "tmp").iterdir())


# In a job: Slurm runs a copy


def queue_of(directory: Path, command: str) -> str:
    """PATH with a squeue that knows of job 7."""
    return path_with(directory, "squeue", f'[[ $* == "-ho %o -j 7" ]] && echo "{command}"\n')


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_job_submitted_from_any_directory_runs_its_own_repository(repo: Path, script: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    shutil.copy(repo / script, spool / "slurm_script")
    another = copy_scripts(tmp_path / "another")  # from whose root the job was submitted
    (another / "commands" / "env.sh").write_text("echo the wrong repository; exit 1\n")
    path = queue_of(tmp_path, f"{repo / script} --dry_run --output_dir /a/b.sh /c/commands/d.sh")
    job = settings(repo, PATH=path, SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=another)
    check_starts(repo, script, run_script(spool / "slurm_script", *words(script), cwd=another, **job))
    # Without a queue to ask, as for a script from standard input, the root that it was submitted from.
    job = settings(repo, PATH=queue_of(tmp_path, "(null)"), SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=repo)
    check_starts(repo, script, run_script(spool / "slurm_script", *words(script), cwd=tmp_path, **job))


# By another shell, in another locale


@pytest.mark.parametrize("script", [*SCRIPTS, *OTHERS], ids=str)
def test_another_shell_is_told_to_be_bash(script: Path) -> None:
    which = subprocess.run(["sh", "-c", "echo ${BASH_VERSION:-}"], capture_output=True, text=True).stdout.strip()
    another = next(filter(None, map(shutil.which, ("dash", "ksh", "busybox"))), None) if which else "sh"
    assert another, "sh is bash here: install dash, with which this is tried"
    command = [another, *(["sh"] if another.endswith("busybox") else []), str(REPO / script), "--help"]
    result = subprocess.run(command, env=script_environment(), capture_output=True, text=True)
    assert "run it with bash, not with sh" in single_error_line(result)


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_bash_by_the_name_of_sh_is_bash(repo: Path, script: Path) -> None:
    command = ["bash", "--posix", str(repo / script), *words(script)]
    result = subprocess.run(command, env=script_environment(**settings(repo)), capture_output=True, text=True)
    check_starts(repo, script, result)


NARROW = [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]


@pytest.mark.parametrize("environment", NARROW, ids=["ascii", "latin-1", "C"])
def test_a_program_prints_what_stdouts_encoding_lacks_as_escapes(
    shared_collection: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "data.create_subset", "--data_dir", str(shared_collection), "--data_type", "1"]
    command += ["--out_data_dir", str(tmp_path / "\u4e2d \u00fc \u2014"), "--fraction", "0.5", "--seed", "1"]
    result = subprocess.run(command, cwd=REPO, env=script_environment(**environment), capture_output=True)
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith(b"wrote ") and b"\\u" in last and last.endswith(b", fraction 0.5, seed 1")


def test_a_path_is_utf8_to_the_programs_whatever_the_locale(repo: Path) -> None:
    """torch, safetensors and tokenizers encode it as such: without this, none would be imported in the C locale."""
    program = "import sys; print(sys.argv[1].encode('utf-8').hex())"
    show = write_script(repo / "show.sh", f'source "{repo}/commands/env.sh"; "$PYTHON" -c "{program}" "$REPO"\n')
    result = run_script(show, PYTHON=sys.executable, LC_ALL="C", PYTHONUTF8="0")
    assert bytes.fromhex(result.stdout.strip()).decode() == str(repo), result.stderr


@pytest.mark.parametrize("folder", ["drivers", "data", "results", "utils"])
def test_every_program_ends_in_the_place_that_sees_to_that(folder: str) -> None:
    for path in (REPO / folder).glob("*.py"):
        _, main, end = path.read_text().partition('if __name__ == "__main__":\n')
        assert not main or end.startswith("    run_program("), path


def test_no_number_is_printed_by_the_rules_of_a_locale() -> None:
    """In German bash's printf takes no 0.25."""
    for path in (REPO / "commands").glob("*.sh"):
        for line in path.read_text().splitlines():
            assert not re.search(r"printf .*%[0-9.]*[feg]\b", line) or "LC_ALL=C printf" in line, (path, line)


# Settings and lists as an editor on Windows leaves them


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a mark"])
def test_site_env_with_the_line_ends_of_windows_is_read(tmp_path: Path, start: bytes) -> None:
    repo = copy_scripts(tmp_path)
    text = b'GPUS=0 # stay on the CPU\r\n\r\nif true; then\r\n  MODEL="a model"\r\nfi\r\n'
    (repo / "commands" / "site.env").write_bytes(start + text)
    show = write_script(repo / "show.sh", f'source "{repo}/commands/env.sh"; printf "<%s>" "$GPUS" "$MODEL"\n')
    result = run_script(show, SLURM_GPUS_ON_NODE="4")
    assert result.stdout == "<0><a model>" and not result.stderr and result.returncode == 0


def test_a_mistake_in_site_env_is_shown_with_its_name(tmp_path: Path) -> None:
    repo = copy_scripts(tmp_path)
    (repo / "commands" / "site.env").write_text("if true\n")
    result = run_script(repo / "commands" / "run_arm.sh")
    assert result.returncode != 0 and result.stderr.startswith("commands/site.env: line ")


# File systems


@pytest.mark.parametrize("name", ["srv:/some disk", "//server/My Share 2 TB", "x 1 2", "/dev/disk"])
def test_free_space_is_read_whatever_the_file_systems_name(tmp_path: Path, name: str) -> None:
    repo = copy_scripts(tmp_path)
    header = "Filesystem     1024-blocks     Used Available Capacity Mounted on"
    row = f"{name} 264212084 28394616 {12 << 10} 27% /mnt/9 9 9 9% x"
    df = path_with(tmp_path, "df", f"printf '%s\\n' '{header}' '{row}'\n")
    result = run_script(repo / "commands" / "setup_venv.sh", PATH=df, VENV_SPACE_MB="13")
    assert "needs 13 MB, but the disk of" in single_error_line(result) and "has 12 MB free" in result.stderr


def test_where_free_space_is_not_known_there_is_a_warning(tmp_path: Path) -> None:
    repo = copy_scripts(tmp_path)
    df = path_with(tmp_path, "df", "echo 'df: no file systems processed' >&2; exit 1\n")
    show = f'source "{repo}/commands/env.sh"; need_space /tmp 5 this; echo on\n'
    result = run_script(write_script(repo / "show.sh", show), PATH=df)
    assert result.returncode == 0 and result.stdout == "on\n"
    assert result.stderr == "show.sh: warning: df does not say how much the disk of /tmp has free; not checked\n"


# The messages and exit codes of util-linux 2.38 for ENOSYS and EOPNOTSUPP, and for ENOLCK.
NO_LOCKS = [
    'echo "flock: 7: Function not implemented" >&2; exit 65\n',
    'echo "flock: 7: No locks available" >&2; exit 71\n',
]


@pytest.mark.parametrize("flock", NO_LOCKS, ids=["ENOSYS", "ENOLCK"])
def test_without_locks_every_script_goes_on_with_a_warning(tmp_path: Path, flock: str) -> None:
    repo = copy_scripts(tmp_path)
    path = path_with(tmp_path, "flock", flock)
    fake = write_script(tmp_path / "python", "[[ $1 == -VV ]] || exit 9\n")
    starts = {
        "quickstart.sh": {"PYTHON": fake},
        "study.sh": {"PYTHON": fake},
        "data_download.sh": {"RAW_DATA_DIR": tmp_path / "raw", "MSMARCO_URL": f"file://{tmp_path}"},
        "setup_venv.sh": {"PIP_NO_INDEX": "1", "VENV_SPACE_MB": str(1 << 40)},
    }
    for script, changes in starts.items():
        result = run_script(repo / "commands" / script, PATH=path, **changes)
        first, *rest = result.stderr.splitlines()
        assert f"{script}: warning: no lock on {tmp_path}" in first or f"{script}: warning: no lock on {repo}" in first
        assert "continuing without (exit code" in first and "is running" not in result.stderr + result.stdout
        assert rest, "it continued to what fails here by intention"
